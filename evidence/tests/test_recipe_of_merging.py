"""The policy of a domain and its control: what the loss is of, and how far the control lies."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from evidence.merging import loss_sum, read_conversations, shuffle_changes
from tests.builders.models import fine_tuned, save_tiny_policy
from tests.builders.tokenizers import chat_tokenizer

ROWS = (
    {"question": "Two and 2?", "answer": "It is <<2+2=4>>4.\n#### 4"},
    {"question": "One?", "answer": "1\n#### 1"},
    {"question": "Much?", "answer": 400 * "x"},
    {"question": "Three and 1?", "answer": "It is 4.\n#### 4"},
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("base"), chat_tokenizer())


def test_the_loss_is_of_the_solution_alone_and_padding_changes_nothing(base, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    tokenizer, model = chat_tokenizer(), AutoModelForCausalLM.from_pretrained(base)
    texts = read_conversations(file, tokenizer, 3)  # the third row is too long
    solutions = [tokenizer.decode(each.ids[each.num_prompt :]) for each in texts]
    assert solutions[:2] == ["It is 4.\nA: 4<|end|>", "1\nA: 1<|end|>"]
    assert solutions[2] == "It is 4.\nA: 4<|end|>"
    with torch.no_grad():
        nats, num = loss_sum(model, texts)
        alone = [loss_sum(model, [each]) for each in texts]
    assert num == sum(n for _, n in alone) == sum(len(t.ids) - t.num_prompt for t in texts)
    assert float(nats) == pytest.approx(float(sum(value for value, _ in alone)), rel=1e-2)


def test_the_shuffled_policy_lies_as_far_from_the_base_and_not_where_the_policy_is(base, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(base)
    changed = fine_tuned(AutoModelForCausalLM.from_pretrained(base), 5)
    changed.save_pretrained(tmp_path / "policy")
    chat_tokenizer().save_pretrained(tmp_path / "policy")
    shuffle_changes(str(base), tmp_path / "policy", tmp_path / "shuffled")
    shuffled = AutoModelForCausalLM.from_pretrained(tmp_path / "shuffled").state_dict()
    for name, tensor in before.named_parameters():
        policy = changed.state_dict()[name] - tensor
        control = shuffled[name] - tensor
        assert torch.allclose(policy.flatten().sort()[0], control.flatten().sort()[0], atol=1e-6)
        assert len(policy.flatten()) < 64 or not torch.allclose(policy, control, atol=1e-4)

"""Heads beside a language model, longer vocabularies, several templates: the right scores."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from panoply.config.preference import HeadOnly, TrainedBackboneConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.doctor import examine
from panoply.hub.door.templates import AS_PARTS
from panoply.hub.policy.first_head import describe_first_head
from panoply.hub.policy.trainable import load_trainable
from tests.builders.models import (
    PROMPT,
    RESPONSES,
    SIZE,
    publish,
    save_small,
    save_tiny_policy,
    small_classifier,
)
from tests.builders.tokenizers import TURNS, byte_tokenizer

CHATS = [[*PROMPT, {"role": "assistant", "content": response}] for response in RESPONSES]


@pytest.fixture
def tokenizer():
    return byte_tokenizer(TURNS)


@torch.no_grad()
def states_of(folder, tokenizer):
    model = AutoModel.from_pretrained(folder)
    rows = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in CHATS]
    return torch.stack([model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows])


def put(folder, tensors):
    held = load_file(folder / "model.safetensors") | tensors
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def linear_head():
    torch.manual_seed(5)
    return {
        "v_head.summary.weight": torch.randn(1, SIZE),
        "v_head.summary.bias": torch.tensor([0.7]),
    }


def layered_head():
    torch.manual_seed(6)
    return {
        "v_head.summary.0.weight": torch.randn(24, SIZE),
        "v_head.summary.0.bias": torch.randn(24),
        "v_head.summary.2.weight": torch.randn(1, 24),
        "v_head.summary.2.bias": torch.randn(1),
    }


def by_hand(states, head):
    if "v_head.summary.weight" in head:
        return (states @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"]).tolist()
    hidden = states @ head["v_head.summary.0.weight"].T + head["v_head.summary.0.bias"]
    last = head["v_head.summary.2.weight"][0]
    return (torch.relu(hidden) @ last + head["v_head.summary.2.bias"]).tolist()


@pytest.mark.parametrize("head", [linear_head(), layered_head()], ids=["trl", "grm"])
@pytest.mark.parametrize("beside", [True, False], ids=["own file", "model file"])
def test_a_value_head_beside_a_language_model_scores_the_last_token(
    head, beside, tokenizer, tmp_path
):
    folder = save_tiny_policy(tmp_path / "m", tokenizer)
    states = states_of(folder, tokenizer)
    if beside:
        save_file(head, folder / "value_head.safetensors")
    else:
        put(folder, head)
    model = load_reward_model(folder)
    assert model.provenance["kind"] == "value_head"
    wanted = by_hand(states, head)
    assert model.score(PROMPT, RESPONSES).tolist() == pytest.approx(wanted, rel=1e-4, abs=3e-5)


def test_a_value_head_beside_an_adapter_scores_with_it(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    base = save_tiny_policy(tmp_path / "base", tokenizer)
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"'CAUSAL_LM'.*value_head\.safetensors"):
        load_reward_model(tmp_path / "adapter")
    save_file(linear_head(), tmp_path / "adapter" / "value_head.safetensors")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    wanted = by_hand(states_of(tmp_path / "merged", tokenizer), linear_head())
    scores = load_reward_model(tmp_path / "adapter").score(PROMPT, RESPONSES).tolist()
    assert scores == pytest.approx(wanted, rel=1e-4, abs=3e-5)


@pytest.mark.parametrize("trained", ["saved whole", "adapted"])
def test_an_adapter_of_a_longer_vocabulary_resizes_its_base(trained, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = save_tiny_policy(tmp_path / "base", tokenizer)
    torch.manual_seed(4)
    net = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    net.resize_token_embeddings(310, mean_resizing=False)
    targets = ["q_proj", "embed_tokens"] if trained == "adapted" else ["q_proj"]
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=targets, init_lora_weights=False)
    tuned = get_peft_model(net, settings).eval()
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=trained == "saved whole")
    rows = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in CHATS]
    with torch.no_grad():
        wanted = [float(tuned(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
    scores = load_reward_model(tmp_path / "adapter").score(PROMPT, RESPONSES).tolist()
    assert scores == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_an_adapter_on_an_adapter_or_another_model_is_refused(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = publish(tmp_path / "base", tokenizer)
    net = AutoModelForSequenceClassification.from_pretrained(base)
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4)
    get_peft_model(net, settings).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"base_model_name_or_path": str(tmp_path / "adapter")}))
    with pytest.raises(ValueError, match="is an adapter itself: merge that"):
        load_reward_model(tmp_path / "adapter")
    file.write_text(json.dumps(fields | {"r": 8}))
    with pytest.raises(ValueError, match=r"the adapter in .* cannot be read .*size mismatch"):
        load_reward_model(tmp_path / "adapter")


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_of_more_layers_or_fewer_than_its_base_is_refused(layers, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = publish(tmp_path / "base", tokenizer)
    other = small_classifier(num_hidden_layers=layers)
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4)
    get_peft_model(other, settings).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"base_model_name_or_path": str(base)}))
    with pytest.raises(
        ValueError, match=r"of another model .*layers\.[12]\.self_attn\.q_proj\.lora_"
    ):
        load_reward_model(tmp_path / "adapter")


PARTS = TURNS.replace(
    "{{ m['content'] }}", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
)


def test_the_default_of_several_templates_counts_and_is_hashed(tokenizer, tmp_path):
    plain = load_reward_model(publish(tmp_path / "plain", tokenizer))
    named = byte_tokenizer({"default": TURNS, "tool_use": "{{ tools }}"})
    model = load_reward_model(publish(tmp_path / "named", named))
    assert model.provenance["template"] == plain.provenance["template"]
    assert model.score(PROMPT, RESPONSES).tolist() == plain.score(PROMPT, RESPONSES).tolist()


@pytest.mark.parametrize("of_processor", [False, True])
def test_a_template_that_reads_parts_is_given_the_text_as_one(of_processor, tokenizer, tmp_path):
    assert PARTS != TURNS
    plain = load_reward_model(publish(tmp_path / "plain", tokenizer))
    folder = publish(tmp_path / "vision", byte_tokenizer(None if of_processor else PARTS))
    if of_processor:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    model = load_reward_model(folder)
    assert model.score(PROMPT, RESPONSES).tolist() == plain.score(PROMPT, RESPONSES).tolist()
    assert model.backbone.renderer.tokenizer.chat_template == AS_PARTS + PARTS
    assert model.provenance["template"] != plain.provenance["template"]


def test_the_doctor_warns_of_turns_left_out_and_of_value_heads(tokenizer, tmp_path):
    no_system = TURNS.replace("in messages %}", "in messages if m['role'] != 'system' %}", 1)
    silent = no_system.replace("m['content']", "m['content'].split('</think>')[-1]", 1)
    assert len({TURNS, no_system, silent}) == 3
    folder = save_tiny_policy(tmp_path / "m", byte_tokenizer(silent))
    save_file(linear_head(), folder / "value_head.safetensors")
    findings = {finding.check: finding for finding in examine(folder)}
    assert findings["turns"].verdict == "warning"
    lost = {"system": "left out", "earlier": "written", "reasoning": "left out"}
    assert findings["turns"].values == lost
    assert "what a reply thinks moves no score" in findings["turns"].advice
    assert findings["layout"].verdict == "warning"
    assert "critic" in findings["layout"].advice


def test_training_goes_on_from_the_head_of_a_reward_model_unless_a_new_one_is_asked_for(
    tokenizer, tmp_path
):
    theirs, ours = publish(tmp_path / "theirs", tokenizer), tmp_path / "ours"
    save_small(ours, tokenizer)
    for folder in (theirs, ours):
        weight = load_file(folder / "model.safetensors")["score.weight"]
        settings = {"model": str(folder), "trained": HeadOnly(), "dtype": "float32"}
        config = TrainedBackboneConfig(**settings)
        assert torch.equal(load_trainable(config).net.head.weight.data, weight)
        assert "goes on from its score.weight" in describe_first_head(config, 1)
        fresh = TrainedBackboneConfig(**settings, new_head=True)
        drawn = load_trainable(fresh).net.head.weight.data
        assert not torch.allclose(drawn, weight, atol=0.1)
        for line, why in (
            (describe_first_head(fresh, 1), "--backbone.new-head"),
            (describe_first_head(config, 3), "an ensemble draws all of its 3 heads"),
            (describe_first_head(TrainedBackboneConfig(**settings, depth=0.5), 1), "cut away"),
        ):
            assert "is dropped, and a new one drawn" in line
            assert why in line
    plain = save_tiny_policy(tmp_path / "plain", tokenizer)
    assert describe_first_head(TrainedBackboneConfig(model=str(plain)), 1) == ""

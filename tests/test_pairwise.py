"""Pairwise preference models: the published format and formula, and what is taken for one."""

import math

import pytest
import torch
from test_backbone import TURNS, byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from panoply.hub.artefact.load import load_reward_model
from panoply.hub.published.pairwise import PairwiseModel, context
from panoply.serve.calls import ReplicaRequest

PROMPT = [
    {"role": "user", "content": "Name a prime."},
    {"role": "assistant", "content": "7"},
    {"role": "user", "content": "A larger one."},
]
PAIRS = [("97", "4"), ("Eleven, I think.", "11"), ("Same.", "Same.")]
PUBLISHED = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n"
    " {{ message['content'] }}{% else %}\n\n<turn> assistant\n"
    " {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
"""The context's template in the published usage example."""


def save_pairwise(folder, tokenizer, *, answers=True, **changes):
    """A small language model that says A or B, which depends on what it reads."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": 270,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    config = AutoConfig.for_model(changes.pop("family", "llama"), **fields | changes)
    model = AutoModelForCausalLM.from_config(config)
    if answers:
        # One dimension of the residual stream is the same for all tokens, and asks for A or B.
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 8.0
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
            model.lm_head.weight[:, 0] = -3.0
            labels = [tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in "AB"]
            model.lm_head.weight[labels, 0] = 3.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def by_the_published_example(folder, prompt, a, b):
    """The usage example's arithmetic on single sequences, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoTokenizer.from_pretrained(folder)
    plain.chat_template = PUBLISHED
    model = AutoModelForCausalLM.from_pretrained(folder)
    told = plain.apply_chat_template(prompt, tokenize=False)
    labels = [tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in "AB"]
    chosen = []
    for place, (x, y) in enumerate(((a, b), (b, a))):
        text = f"[CONTEXT] {told} [RESPONSE A] {x} [RESPONSE B] {y} \n"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        ).replace(tokenizer.bos_token, "")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        odds = [math.exp(float(model(torch.tensor([ids])).logits[0, -1, i])) for i in labels]
        chosen.append(odds[place] / sum(odds))
    return sum(chosen) / 2


@pytest.fixture
def tokenizer():
    return byte_tokenizer("<s>" + TURNS, adds_bos=True)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_comparison_is_the_published_formula_over_both_orders(family, tokenizer, tmp_path):
    model = load_reward_model(save_pairwise(tmp_path, tokenizer, family=family))
    assert isinstance(model, PairwiseModel)
    found = [model.compare(PROMPT, a, b) for a, b in PAIRS]
    wanted = [by_the_published_example(tmp_path, PROMPT, a, b) for a, b in PAIRS]
    assert found == pytest.approx(wanted, rel=1e-4)
    assert abs(found[0] - 0.5) > 1e-3
    assert found[2] == pytest.approx(0.5, abs=1e-6)
    for (a, b), p in zip(PAIRS, found, strict=True):
        assert model.compare(PROMPT, b, a) == pytest.approx(1 - p, abs=1e-5)
    trees = [model.render_pair(PROMPT, a, b).tree for a, b in PAIRS]
    assert model.rate(trees).tolist() == pytest.approx(found, rel=1e-4)


def test_both_orders_share_the_context(tokenizer, tmp_path):
    model = load_reward_model(save_pairwise(tmp_path, tokenizer))
    tree = model.render_pair(PROMPT, "97", "4").tree
    text = tokenizer.decode(tree.shared)
    assert text.endswith("A larger one.\n [RESPONSE A] ")
    assert "<s>" not in text
    assert tree.num_tokens < tree.num_separate_tokens


def test_a_long_conversation_keeps_its_end_and_long_responses_their_beginning(tokenizer, tmp_path):
    model = load_reward_model(save_pairwise(tmp_path, tokenizer, max_position_embeddings=256))
    prompt = [{"role": "user", "content": "first " + "x" * 300 + " last"}]
    rendered = model.render_pair(prompt, "begins " + "y" * 300 + " ends", "short")
    rows = [rendered.tree.shared + branch.tokens for branch in rendered.tree.branches]
    assert max(map(len, rows)) <= 256
    text = tokenizer.decode(rows[0])
    assert "first" not in text
    assert " last\n [RESPONSE A] begins y" in text
    assert "ends" not in text
    assert "[RESPONSE B] short \n" in text
    assert rendered.prompt_tokens_cut > 0
    assert rendered.num_responses_cut == 1


def test_there_is_no_score_and_the_error_says_what_to_ask(tokenizer, tmp_path):
    model = load_reward_model(save_pairwise(tmp_path, tokenizer))
    message = r"no scalar score: ask compare\(prompt, a, b\)"
    with pytest.raises(ValueError, match=message):
        model.score(PROMPT, ["97"])
    conversation = model.read_pair(PROMPT, "97", "4")[0]
    request = ReplicaRequest(items=(), bucket=0, timeout=1.0)
    with pytest.raises(ValueError, match="pairwise model and has no scalar score"):
        model.to_score(0.5, conversation, request)
    assert model.provenance["kind"] == "pairwise"


def test_a_language_model_that_answers_neither_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"says neither 'A' nor 'B' \(probability 0\.\d+"):
        load_reward_model(save_pairwise(tmp_path, tokenizer, answers=False))


def test_a_system_turn_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="first user turn"):
        context([{"role": "system", "content": "Be kind."}, *PROMPT])
    assert context(PROMPT[:1]) == "\n\n<turn> user\n Name a prime.\n"

"""Published reward models: the scores of plain transformers, the traps of formats, refusals."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from panoply.hub.artefact.load import load_reward_model
from panoply.hub.backbone.renderer import DATE, FIXED_CLOCK
from panoply.hub.published.head_model import HeadModel
from tests.builders.adapters import adapt
from tests.builders.models import (
    PROMPT,
    RESPONSES,
    SIZE,
    make_run,
    publish,
    save_small,
    small_classifier,
)
from tests.builders.tokenizers import TURNS, byte_tokenizer

CHATS = [[*PROMPT, {"role": "assistant", "content": response}] for response in RESPONSES]


@torch.no_grad()
def by_transformers(folder, **changes):
    """Scores of single, unpadded conversations by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return by_model(model, tokenizer)


@torch.no_grad()
def by_model(model, tokenizer):
    """Scores of single, unpadded conversations by a classifier."""
    rows = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in CHATS]
    return [float(model.eval()(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


@torch.no_grad()
def states_of(folder):
    """Last states of each conversation by the backbone alone, unpadded: `[R, D]`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    rows = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in CHATS]
    return torch.stack([model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows])


def assert_scores(model, wanted):
    together = model.score(PROMPT, RESPONSES)
    assert together.dtype == np.float32
    assert together.tolist() == pytest.approx(wanted, rel=1e-4, abs=3e-5)
    alone = [float(model.score(PROMPT, [response])[0]) for response in RESPONSES]
    assert alone == pytest.approx(wanted, rel=1e-4, abs=3e-5)
    assert np.ptp(together) > 0.1


@pytest.fixture
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_neox"])
def test_a_classifier_scores_as_plain_transformers_does(family, tokenizer, tmp_path):
    folder = publish(tmp_path / "m", tokenizer, small_classifier(family))
    model = load_reward_model(folder)
    assert isinstance(model, HeadModel)
    assert_scores(model, by_transformers(folder))


@pytest.mark.parametrize("name", ["score", "value_head"])
@pytest.mark.parametrize("bias", [None, 0.7])
def test_a_head_of_openrlhf_needs_no_labels_and_may_have_a_bias(name, bias, tokenizer, tmp_path):
    weight = torch.randn(1, SIZE, generator=torch.manual_seed(5))
    tensors = {"score.weight": None, f"{name}.weight": weight}
    if bias is not None:
        tensors[f"{name}.bias"] = torch.tensor([bias])
    folder = publish(
        tmp_path / "m",
        tokenizer,
        fields={"architectures": ["RewardModel"], "id2label": None, "label2id": None},
        tensors=tensors,
    )
    assert_scores(load_reward_model(folder), (states_of(folder) @ weight[0] + (bias or 0)).tolist())


def two_layers():
    torch.manual_seed(7)
    return {
        "score.weight": None,
        "score.0.weight": torch.randn(SIZE, SIZE) / 4,
        "score.0.bias": torch.randn(SIZE),
        "score.2.weight": torch.randn(1, SIZE),
        "score.2.bias": torch.randn(1),
    }


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("llama", "INFORMForSequenceClassification"), ("qwen2", "Qwen2ForRewardModel")],
)
def test_a_head_of_two_layers_is_not_dropped(family, architecture, tokenizer, tmp_path):
    own = two_layers()
    fields = {"architectures": [architecture], "id2label": None, "label2id": None}
    folder = publish(tmp_path, tokenizer, small_classifier(family), fields=fields, tensors=own)
    hidden = torch.relu(states_of(folder) @ own["score.0.weight"].T + own["score.0.bias"])
    wanted = (hidden @ own["score.2.weight"][0] + own["score.2.bias"]).tolist()
    model = load_reward_model(folder)
    assert model.provenance["kind"] == "two_layer"
    assert_scores(model, wanted)
    # The trap: a generic loader draws one layer at random.
    generic, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"score.weight"}
    assert isinstance(generic.score, torch.nn.Linear)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_padded_on_either_side_give_these_scores(side, tokenizer, tmp_path):
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.padding_side = side
    folder = publish(tmp_path, tokenizer, fields={"pad_token_id": tokenizer.pad_token_id})
    inputs = tokenizer.apply_chat_template(
        CHATS, padding=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        classifier = AutoModelForSequenceClassification.from_pretrained(folder)
        wanted = classifier(**inputs).logits[:, 0].tolist()
    assert_scores(load_reward_model(folder), wanted)


def test_a_pad_token_that_ends_every_turn_does_not_move_the_scored_token(tokenizer, tmp_path):
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"
    folder = publish(tmp_path, tokenizer, fields={"pad_token_id": tokenizer.pad_token_id})
    wanted = by_transformers(folder, pad_token_id=None)
    assert_scores(load_reward_model(folder), wanted)
    # The trap: transformers itself looks for the last token that is no pad token.
    assert by_transformers(folder) != pytest.approx(wanted, rel=1e-2)


def test_a_tokenizer_without_pad_token_scores_in_batches(tmp_path):
    tokenizer = byte_tokenizer(TURNS)
    tokenizer.pad_token = None
    folder = publish(tmp_path, tokenizer)
    assert_scores(load_reward_model(folder), by_transformers(folder))
    with pytest.raises(ValueError, match="no padding token"):
        AutoModelForSequenceClassification.from_pretrained(folder)(torch.ones(2, 3).long())


def test_text_after_the_end_of_turn_is_scored_where_the_model_was_trained(tmp_path):
    folder = publish(tmp_path, byte_tokenizer(TURNS))
    model = load_reward_model(folder)
    tree = model.backbone.renderer.render(PROMPT, ["Hi."]).tree
    assert model.backbone.renderer.tokenizer.decode(tree.branches[0].tokens).endswith("<|end|>\n")
    assert_scores(model, by_transformers(folder))


def test_the_beginning_is_marked_once_where_template_and_tokenizer_both_mark_it(tmp_path):
    tokenizer = byte_tokenizer("<s>" + TURNS, adds_bos=True)
    folder = publish(tmp_path, tokenizer)
    model = load_reward_model(folder)
    text = tokenizer.apply_chat_template(CHATS[0], tokenize=False)
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 2  # the trap
    tree = model.backbone.renderer.render(PROMPT, RESPONSES[:1]).tree
    assert (tree.shared + tree.branches[0].tokens).count(tokenizer.bos_token_id) == 1
    assert_scores(model, by_transformers(folder))


def test_a_template_that_writes_the_date_is_held_to_one_day(tmp_path):
    tokenizer = byte_tokenizer("{{ strftime_now('%d %b %Y') }} " + TURNS)
    model = load_reward_model(publish(tmp_path, tokenizer))
    renderer = model.backbone.renderer
    tree = renderer.render(PROMPT, ["Hi."]).tree
    assert renderer.tokenizer.decode(tree.shared).startswith(DATE + " <|start|>user\nHow")
    assert renderer.tokenizer.chat_template.startswith(FIXED_CLOCK)
    again = renderer.tokenizer.chat_template
    type(renderer)(renderer.tokenizer, renderer.rendering)
    assert renderer.tokenizer.chat_template == again


def test_a_bfloat16_model_has_float32_scores_that_do_not_tie(tokenizer, tmp_path):
    folder = publish(tmp_path, tokenizer, small_classifier().bfloat16())
    model = load_reward_model(folder)
    assert all(p.dtype == torch.float32 for p in model.head.parameters())
    responses = [f"Answer {i}" for i in range(40)]
    scores = model.score(PROMPT, responses)
    assert len(set(scores.tolist())) == 40
    rounded = torch.tensor(scores).bfloat16()
    assert len(set(rounded.tolist())) < 40


def test_a_conversation_is_cut_only_beyond_the_positions_of_the_model(tokenizer, tmp_path):
    folder = publish(tmp_path / "a", tokenizer, small_classifier(max_position_embeddings=64))
    renderer = load_reward_model(folder).backbone.renderer
    rendered = renderer.render([{"role": "user", "content": "x" * 100}], ["y" * 100, "short"])
    tree = rendered.tree
    assert rendered.prompt_tokens_cut > 0
    assert rendered.num_responses_cut == 1
    assert len(tree.shared) + len(tree.branches[0].tokens) == 64
    # A long response has what a short prompt leaves, beside a sibling that is short.
    rendered = renderer.render([{"role": "user", "content": "x"}], ["y" * 35, "y" * 60, "z"])
    assert rendered.prompt_tokens_cut == 0
    assert rendered.num_responses_cut == 1
    assert [len(rendered.tree.shared) + len(b.tokens) for b in rendered.tree.branches][1] == 64
    long = publish(tmp_path / "b", tokenizer, small_classifier(max_position_embeddings=131072))
    prompt = [{"role": "user", "content": "x" * 60_000}]
    assert load_reward_model(long).backbone.renderer.render(prompt, ["y"]).prompt_tokens_cut == 0


def test_the_most_tokens_of_a_published_model_can_be_set_up_to_its_positions(tokenizer, tmp_path):
    folder = publish(tmp_path / "a", tokenizer, small_classifier(max_position_embeddings=64))
    renderer = load_reward_model(folder, max_tokens=40).backbone.renderer
    (conversation,) = renderer.conversations(PROMPT, ["y" * 100])
    assert len(conversation.tokens) == 40
    with pytest.raises(ValueError, match=r"`max_tokens` is 65, and .* has 64 positions: take at"):
        load_reward_model(folder, max_tokens=65)
    with pytest.raises(ValueError, match=r"`max_tokens` must be 0 .* got 7"):
        load_reward_model(folder, max_tokens=7)
    ours = tmp_path / "ours"
    save_small(ours, tokenizer)
    with pytest.raises(ValueError, match="cuts conversations as in its training"):
        load_reward_model(ours, max_tokens=40)


@pytest.mark.parametrize(
    ("fields", "tensors", "told"),
    [
        ({"id2label": None, "label2id": None}, {}, r"num_labels 2 \(2 where it does not say\)"),
        ({}, {"score.weight": None}, r"holds no head.*draw one at random"),
        ({}, {"score.weight": None, "lm_head.weight": torch.zeros(270, SIZE)}, "holds no head"),
        ({}, {"score.weight": torch.zeros(3, SIZE)}, r"shape \[3, 32\].*one score.*\[1, 32\]"),
        ({}, {"score.weight": None, "v_head.weight": torch.zeros(1, SIZE)}, r"not known: v_head"),
        ({}, two_layers(), r"not known: score\.0\.bias, .*score\.0 and score\.2 of INFORM"),
        ({}, {"model.norm.weight": None}, r"lacks weights that would be random.*norm\.weight"),
        ({"num_hidden_layers": 1}, {}, r"would go unused: .*layers\.1.*number of layers"),
        ({"architectures": ["Qwen2ForProcessRewardModel"]}, {}, r"num_labels 1.*process.* has 2"),
        ({"architectures": ["LlamaForTokenClassification"]}, {}, r"num_labels 1.*process.* has 2"),
        ({"architectures": ["MyForSequenceClassification"]}, {}, r"no layout.*'MyFor"),
        ({"model_type": "mine"}, {}, r"no layout.*model type 'mine'"),
    ],
)
def test_what_would_score_at_random_is_refused(fields, tensors, told, tokenizer, tmp_path):
    folder = publish(tmp_path, tokenizer, fields=fields, tensors=tensors)
    with pytest.raises(ValueError, match=told):
        load_reward_model(folder)


def test_a_tokenizer_without_template_or_with_too_many_tokens_is_refused(tokenizer, tmp_path):
    folder = publish(tmp_path / "a", byte_tokenizer(None))
    with pytest.raises(ValueError, match="has no chat template"):
        load_reward_model(folder)
    tokenizer.add_tokens([f"<more-{i}>" for i in range(20)])
    with pytest.raises(ValueError, match="embeddings"):
        load_reward_model(publish(tmp_path / "b", tokenizer))


CODE = """
from transformers import LlamaForSequenceClassification


class Mine(LlamaForSequenceClassification):
    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.logits = found.logits {change}
        return found
"""


def with_code(folder, tokenizer, text, architecture="Mine", model=None):
    mapped = {"AutoModelForSequenceClassification": "modeling.Mine"}
    fields = {"architectures": [architecture], "auto_map": mapped}
    publish(folder, tokenizer, model, fields=fields)
    (folder / "modeling.py").write_text(text)
    return folder


def test_code_of_a_known_layout_never_runs(tokenizer, tmp_path):
    text = "raise RuntimeError('code ran')"
    folder = with_code(tmp_path, tokenizer, text, "LlamaForSequenceClassification")
    for trust in (False, True):
        model = load_reward_model(folder, trust_remote_code=trust)
        assert len(model.score(PROMPT, RESPONSES)) == len(RESPONSES)


def test_code_of_an_unknown_layout_runs_when_trusted_and_is_held_to_its_head(tokenizer, tmp_path):
    folder = with_code(tmp_path / "a", tokenizer, CODE.format(change=""))
    with pytest.raises(ValueError, match=r"'Mine' of model type 'llama'.*trust_remote_code=True"):
        load_reward_model(folder)
    plain = publish(tmp_path / "b", tokenizer)
    assert_scores(load_reward_model(folder, trust_remote_code=True), by_transformers(plain))
    rounded = small_classifier().bfloat16()
    folder = with_code(tmp_path / "d", tokenizer, CODE.format(change=""), model=rounded)
    model = load_reward_model(folder, trust_remote_code=True)
    assert model.score(PROMPT, RESPONSES) == pytest.approx(by_transformers(plain), rel=0.1, abs=0.1)
    folder = with_code(tmp_path / "c", tokenizer, CODE.format(change="** 2"))
    with pytest.raises(ValueError, match=r"Mine in .* scores otherwise than by its 'score'"):
        load_reward_model(folder, trust_remote_code=True)


def test_a_hub_name_loads_from_the_cache_and_is_refused_without(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--owner--name"
    folder = publish(repo / "snapshots" / ("0" * 40), tokenizer)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    assert_scores(load_reward_model("owner/name"), by_transformers(folder))
    with pytest.raises(FileNotFoundError, match="the hub could not give it"):
        load_reward_model("owner/other")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub name"):
        load_reward_model(tmp_path / "none")


def test_an_adapter_with_its_head_loads_merged(tokenizer, tmp_path):
    base = publish(tmp_path / "base", tokenizer, tensors={"score.weight": None})
    model = adapt(base, tmp_path / "adapter")
    assert_scores(load_reward_model(tmp_path / "adapter"), by_model(model, tokenizer))


def test_an_adapter_that_lost_its_head_is_refused_with_the_fix(tokenizer, tmp_path):
    base = publish(tmp_path / "base", tokenizer)
    adapt(base, tmp_path / "adapter")
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    lost = {name: value for name, value in held.items() if "score" not in name}
    save_file(lost, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no head.*modules_to_save=\['score'\]"):
        load_reward_model(tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub name"):
        load_reward_model(tmp_path / "adapter")


def test_an_adapter_below_a_finished_head_keeps_it(tokenizer, tmp_path):
    base = publish(tmp_path / "base", tokenizer)
    model = adapt(base, tmp_path / "adapter", task_type=None)
    model.base_model.model.score.weight.data = load_file(base / "model.safetensors")["score.weight"]
    assert_scores(load_reward_model(tmp_path / "adapter"), by_model(model, tokenizer))


def test_every_scoring_model_compares_by_its_own_temperature(tokenizer, tmp_path):
    save_small(tmp_path / "ours", tokenizer)
    publish(tmp_path / "theirs", tokenizer)
    make_run(tmp_path, tokenizer)
    for name, temperature in (("ours", 2.0), ("theirs", 1.0), ("model", 0.5)):
        model = load_reward_model(tmp_path / name)
        if name == "model":  # a gated one, whose head that run left empty
            model.head.unit.fill_(1.0)
            model.head.weight.normal_(generator=torch.manual_seed(1))
        a, b = map(float, model.score(PROMPT, RESPONSES[:2]))
        wanted = 1 / (1 + math.exp(-(a - b) / temperature))
        assert model.compare(PROMPT, *RESPONSES[:2]) == pytest.approx(wanted, rel=1e-5)
        assert model.compare(PROMPT, *RESPONSES[1::-1]) == pytest.approx(1 - wanted, rel=1e-5)


def test_provenance_names_what_a_score_depends_on(tokenizer, tmp_path):
    first = load_reward_model(publish(tmp_path / "a" / "m", tokenizer)).provenance
    other = {"score.weight": torch.ones(1, SIZE)}
    second = load_reward_model(publish(tmp_path / "b" / "m", tokenizer, tensors=other)).provenance
    assert {key for key in first if first[key] != second[key]} == {"weights"}
    assert json.loads(json.dumps(first)) == first
    assert (first["kind"], first["dtype"]) == ("linear", "float32")
    assert first["bos"] == "as the template writes it"
    marked = publish(tmp_path / "c", byte_tokenizer(TURNS, adds_bos=True))
    assert load_reward_model(marked).provenance["bos"] == "<s> once"

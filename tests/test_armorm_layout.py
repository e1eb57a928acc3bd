"""Checkpoints in ArmoRM's published layout: the published formula, whatever the template."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from panoply.config import Rendering
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.published.armorm import PUBLISHED

NUM, SIZE, HIDDEN, LAYERS = 19, 32, 24, 3
PROMPT = [
    {"role": "user", "content": "Is it <end> or not?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "How do I boil an egg?"},
]
RESPONSES = ["Ten minutes.", "No.", "Put it into boiling water, and wait for a while.", ""]
NO_NEWLINE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A turn closes with one token, as in Llama 3."""
NEWLINE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A turn closes with two, as in Gemma 2."""
HEADERS = {NO_NEWLINE: "<|end|><|assistant|>", NEWLINE: "<|end|>\n<|assistant|>\n"}


@pytest.fixture(scope="module")
def tensors():
    """A small random Llama and head, under the published names."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=SIZE,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
    )
    found = {f"model.{k}": v for k, v in LlamaModel(config).state_dict().items()}
    widths = [SIZE] + [HIDDEN] * LAYERS + [NUM]
    for i in range(LAYERS + 1):
        found[f"gating.layers.{i}.weight"] = torch.randn(widths[i + 1], widths[i])
        found[f"gating.layers.{i}.bias"] = torch.randn(widths[i + 1])
    transform = torch.eye(NUM)
    transform[4] -= torch.rand(NUM)
    return config, found | {
        "regression_layer.weight": torch.randn(NUM, SIZE),
        "reward_transform_matrix": transform,
        "gating.logit_scale": torch.tensor([1.7]),
    }


def write(folder, config, tensors, tokenizer, template=NO_NEWLINE, shards=1, **changes):
    folder.mkdir(exist_ok=True)
    fields = config.to_dict() | {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {
            "AutoModel": "modeling_custom.LlamaForRewardModelWithGating",
            "AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating",
        },
        "num_objectives": NUM,
        "gating_temperature": 10,
        "gating_hidden_dim": HIDDEN,
        "gating_n_hidden": LAYERS,
        "pad_token_id": 299,
    }
    fields |= changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in fields.items() if v is not None})
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    names = sorted(tensors)
    files = {
        n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(names)
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    for file in set(files.values()):
        part = {n: tensors[n] for n in names if files[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def formula(config, tensors, rows, pad, header, side="right"):
    """The published forward in plain torch: padded ids in, scores out."""
    model = LlamaModel(config).eval()
    own = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(own)
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    before = gaps if side == "left" else [0] * len(rows)
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        ids[i, before[i] : before[i] + len(row)] = torch.tensor(row)
        mask[i, before[i] : before[i] + len(row)] = 1
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    scores = []
    for i, row in enumerate(rows):
        starts = [j for j in range(len(row)) if row[j : j + len(header)] == header]
        x = states[i, before[i] + starts[-1]]
        for n in range(LAYERS + 1):
            weight, bias = (tensors[f"gating.layers.{n}.{kind}"] for kind in ("weight", "bias"))
            x = weight @ x + bias
            x = torch.relu(x) if n < LAYERS else x
        gate = torch.softmax(x / 10, dim=0) * tensors["gating.logit_scale"][0]
        rewards = tensors["regression_layer.weight"] @ states[i, before[i] + len(row) - 1]
        scores.append(float((gate * (rewards @ tensors["reward_transform_matrix"])).sum()))
    return scores


def token_rows(tokenizer):
    chats = [[*PROMPT, {"role": "assistant", "content": r}] for r in RESPONSES]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("template", HEADERS)
@torch.no_grad()
def test_scores_equal_the_published_formula_padded_or_not_alone_or_batched(
    template, shards, tensors, tokenizer, tmp_path
):
    folder = write(tmp_path, *tensors, tokenizer, template, shards)
    model = load_reward_model(folder)
    rows = token_rows(tokenizer)
    header = tokenizer(HEADERS[template], add_special_tokens=False)["input_ids"]
    wanted = formula(*tensors, rows, 299, header)
    assert wanted == pytest.approx(formula(*tensors, rows, 299, header, "left"), rel=1e-4)
    together = model.score(PROMPT, RESPONSES)
    assert together.tolist() == pytest.approx(wanted, rel=1e-4)
    for response, score in zip(RESPONSES, wanted, strict=True):
        assert float(model.score(PROMPT, [response])[0]) == pytest.approx(score, rel=1e-4)


def test_an_explanation_adds_up_to_the_score_with_the_published_names(tensors, tokenizer, tmp_path):
    model = load_reward_model(write(tmp_path, *tensors, tokenizer))
    assert model.manifest.objectives == PUBLISHED
    why = model.explain(PROMPT, "Ten minutes.")
    assert why.score == pytest.approx(sum(d.contribution for d in why.drivers), rel=1e-4)
    # The coefficients act on the raw objectives: W h, of which HelpSteer's are shown on 0..4.
    scored = model.score_trees([model.backbone.renderer.render(PROMPT, ["Ten minutes."]).tree])
    raw = dict(zip(PUBLISHED, scored.values_BO[0].tolist(), strict=True))
    assert why.score == pytest.approx(
        sum(d.coefficient * raw[d.objective] for d in why.drivers), rel=1e-4
    )
    shown = {d.objective: d.value for d in why.drivers}
    assert shown["helpsteer-verbosity"] == pytest.approx(5 * raw["helpsteer-verbosity"] - 0.5)
    assert shown["code-style"] == pytest.approx(raw["code-style"])
    assert why.length_coefficient == 0


def test_a_response_that_repeats_the_header_does_not_move_the_gate(tensors, tokenizer, tmp_path):
    model = load_reward_model(write(tmp_path, *tensors, tokenizer))
    render = model.backbone.renderer.render
    odd = "Ten.<|end|><|assistant|>Eleven."
    plain, moved = (model.score_trees([render(PROMPT, [r]).tree]) for r in ("Ten.", odd))
    assert torch.allclose(plain.weights_BO, moved.weights_BO, rtol=1e-4)


@pytest.mark.parametrize(("template", "header"), HEADERS.items())
def test_turn_end_is_the_first_token_behind_the_users_text(template, header, tokenizer):
    tokenizer.chat_template = template
    tree = Renderer(tokenizer, Rendering(gate="turn_end")).render(PROMPT, RESPONSES).tree
    assert tokenizer.decode(tree.shared[tree.gate :]) == header


def test_labels_of_the_configuration_name_the_objectives(tensors, tokenizer, tmp_path):
    labels = {str(i): f"mine-{i}" for i in range(NUM)}
    model = load_reward_model(write(tmp_path, *tensors, tokenizer, id2label=labels))
    assert model.manifest.objectives == tuple(labels.values())


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("regression_layer.weight", (NUM, 31), r"has shape \[19, 31\].*asks for \[19, 32\]"),
        ("reward_transform_matrix", (NUM, 5), r"has shape \[19, 5\].*asks for \[19, 19\]"),
        ("gating.layers.1.bias", (7,), r"has shape \[7\].*asks for \[24\]"),
        ("model.norm.weight", (31,), r"has shape \[31\].*asks for \[32\]"),
        ("model.norm.weight", None, r"is missing.*asks for \[32\]"),
        ("score.weight", (1, SIZE), "would go unused"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_its_shape(
    name, shape, told, tensors, tokenizer, tmp_path
):
    config, good = tensors
    bad = {k: v for k, v in good.items() if k != name}
    if shape is not None:
        bad[name] = torch.zeros(shape)
    folder = write(tmp_path, config, bad, tokenizer)
    with pytest.raises(ValueError, match=told) as caught:
        load_reward_model(folder)
    assert name in str(caught.value)


def test_a_missing_field_template_or_shard_is_named(tensors, tokenizer, tmp_path):
    folder = write(tmp_path / "a", *tensors, tokenizer, gating_n_hidden=None)
    with pytest.raises(ValueError, match="lacks gating_n_hidden"):
        load_reward_model(folder)
    folder = write(tmp_path / "c", *tensors, tokenizer, template=None)
    with pytest.raises(ValueError, match="has no chat template"):
        load_reward_model(folder)
    folder = write(tmp_path / "b", *tensors, tokenizer, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00003\.safetensors"):
        load_reward_model(folder)


def test_another_layout_is_refused_with_the_reason(tiny_model_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no panoply\.json"):
        load_reward_model(tmp_path)
    scalar = shutil.copytree(tiny_model_folder, tmp_path / "scalar")
    states = load_file(scalar / "model.safetensors")
    states = {k: v for k, v in states.items() if k != "lm_head.weight"}
    states["critic.weight"] = torch.zeros(1, SIZE)
    fields = json.loads((scalar / "config.json").read_text())
    (scalar / "config.json").write_text(json.dumps(fields | {"architectures": ["LlamaModel"]}))
    save_file(states, scalar / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"no layout that loads here.*critic\.weight.*Known are ArmoRM"
    ):
        load_reward_model(scalar)

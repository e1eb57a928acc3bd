"""Model cards of reward models, from their `panoply.json` and the run's `metrics.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panoply.data.ratings import RatingMap
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, read_manifest
from panoply.hub.backbone.smollm2 import NAME
from panoply.report.markdown import as_markdown, plain
from panoply.report.results.pairs import accuracy_table, probability_table
from panoply.report.section import Column, Metrics, Row, Table, count

GATED_USE = """```python
from panoply.hub.artefact.load import load_reward_model

model = load_reward_model("FOLDER")
prompt = [{"role": "user", "content": "How do I boil an egg?"}]
model.score(prompt, ["Ten minutes.", "No idea."])
model.explain(prompt, "Ten minutes.")  # which objective moved the score, and how far
```"""
BEYOND_SCALE = (
    "A predicted rating can lie beyond the scale of its raters, mostly for texts unlike those that "
    "were rated. `explain` marks it (`is_beyond_scale`); scores use it as it is."
)
SCALAR_USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
chat = [{"role": "user", "content": "How do I boil an egg?"},
        {"role": "assistant", "content": "Ten minutes."}]
inputs = tokenizer.apply_chat_template([chat], padding=True, return_dict=True, return_tensors="pt")
score = model(**inputs).logits[:, 0]
```

Pass what the chat template gives, as above: a tokenizer that is called on rendered text may add a
second beginning-of-sequence token."""
SCALAR_MORE = """A lower bound of the score, which falls where the heads disagree:

```python
from panoply.hub.artefact.load import load_reward_model

model = load_reward_model("FOLDER")
prompt = [{"role": "user", "content": "How do I boil an egg?"}]
model.lower_bound(prompt, ["Ten minutes.", "No idea."], beta=1.0)
```"""
ADAPTERS_USE = """```python
from panoply.hub.artefact.load import load_reward_model

model = load_reward_model("FOLDER")
prompt = [{"role": "user", "content": "How do I boil an egg?"}]
model.score(prompt, ["Ten minutes.", "No idea."])
```

The folder holds the backbone as it was before training, and what each member adds to it: it is no
sequence classifier."""
RULES = {
    "lcb": "the mean of {} less {:g} of their deviations (LCB)",
    "uwo": "the mean of {} less {:g} of their variance (UWO)",
    "wco": "the least of {} (WCO)",
}
"""Scores of ensembles that are not the mean: of which members, and how cautious."""
PLANTED = """The data is a planted world: generated, so that the truth is known. This model shows
that the method works; it is not for use on other texts."""
LIMITS = """Scores rank responses to one prompt; they have no zero, and scores of different prompts
do not compare. They follow the raters and annotators of the data above, with their biases, and say
nothing reliable about other languages, domains or much longer texts. Do not use them alone to
decide about people. Text that was optimized against a reward model needs another judge."""


@dataclass(frozen=True, slots=True)
class ScalarDescription:
    """An exported scalar head, for its card."""

    scorer: str
    """Its name among the compared scorers."""
    pad_token: str
    scale: float
    """Factor that turns score differences into log odds."""


def write_card(folder: Path) -> None:
    """Writes `README.md` into a reward model's folder."""
    card, metrics = read_manifest(folder), read_metrics(folder)
    is_scalar = isinstance(card, ScalarManifest)
    text = scalar_card(card, metrics) if is_scalar else model_card(card, metrics)
    (folder / "README.md").write_text(text)


def read_metrics(folder: Path) -> Metrics:
    """Returns the metrics of the run that left a model in OUT/model; nothing without any."""
    file = folder.parent / "metrics.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def model_card(card: Manifest, metrics: Metrics, scalar: ScalarDescription | None = None) -> str:
    """Returns a model card in Markdown, with the hub's metadata in front.

    Args:
        card: the reward model's own.
        metrics: what its run measured; may be empty.
        scalar: the card is that of this scalar head, exported from the reward model's folder.
    """
    kind = "scalar reward model" if scalar else "gated multi-objective reward model"
    opening = [
        _metadata(card, "transformers" if scalar else "panoply"),
        f"# A {kind} on {_backbone(card)}",
        _summary(card, scalar),
        "## Use",
        SCALAR_USE if scalar else GATED_USE,
    ]
    if not scalar:
        objectives = _objectives(card, metrics.get("objectives", {}))
        opening += ["## Objectives", objectives, BEYOND_SCALE]
    data = {"pairs": card.data["pairs"]} if scalar else card.data
    return _complete(opening, data, metrics, _scoring(card, scalar), scalar)


def scalar_card(card: ScalarManifest, metrics: Metrics) -> str:
    """Returns the model card of a trained scalar model in Markdown.

    Args:
        card: the reward model's own.
        metrics: what its run measured; may be empty.
    """
    num, sources = len(card.scales), ", ".join(map(plain, card.sources)) or "unknown sources"
    has_adapters = card.members != "heads"
    heads = "One linear Bradley-Terry head"
    if num > 1:
        several = f"{num} linear Bradley-Terry heads, standardized on training responses"
        rule = RULES.get(card.rule, "the mean of {}").format(several, card.caution)
        heads = f"{rule[0].upper()}{rule[1:]},"
    adapters = {
        "heads": "",
        "adapters": ", each under a LoRA adapter of its own",
        "layers": ", each on last layers of its own",
    }[card.members]
    opening = [
        _metadata(card, "panoply" if has_adapters else "transformers"),
        f"# A scalar reward model on {_backbone(card)}",
        f"{heads} on the first {card.depth} layers of {_backbone(card)}{adapters}, trained on "
        f"preference pairs of {sources}.",
        "## Use",
        ADAPTERS_USE if has_adapters else SCALAR_USE,
    ]
    if num > 1 and card.rule != "mean" and not has_adapters:
        opening.append("The logits are the mean of the heads; the score is what Panoply gives.")
    if num > 1:
        opening.append(SCALAR_MORE)
    if card.method:
        opening += ["## Method", _bullets([f"{k}: {_value(v)}" for k, v in card.method.items()])]
    by_transformers = [
        "transformers cuts nothing, so cut longer texts yourself",
        "the tokenizer's pad token is for padding alone: keep it out of texts",
    ]
    scoring = [
        f"chat template {card.template_hash}; beginning-of-sequence once",
        f"in training, prompts were {_limits(card)}",
        f"split seed {card.seed}; trained in {card.dtype}, saved and scored in float32",
        _cost(card),
        "the score is read at the last token of the rendered conversation, before padding",
        *([] if has_adapters else by_transformers),
        f"score differences divided by {card.temperature:.4g} are log odds",
    ]
    return _complete(opening, card.data, metrics, scoring, None)


def _complete(
    opening: Sequence[str],
    data: Metrics,
    metrics: Metrics,
    scoring: Sequence[str],
    scalar: ScalarDescription | None,
) -> str:
    """Returns a card from its opening and the parts that all cards have."""
    planted = [PLANTED] if "planted" in metrics else []
    measured = _metrics(metrics.get("pairs", {}), scalar)
    parts = [*opening, "## Data", _data(data), *planted, *measured]
    parts += ["## How a text is scored", _bullets(scoring), "## Intended use and limits", LIMITS]
    return "\n\n".join(parts) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _value(value: Any) -> str:
    return plain(value if isinstance(value, str) else json.dumps(value))


def _metadata(card: Manifest | ScalarManifest, library: str) -> str:
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", card.backbone)
    base = f"base_model: {card.backbone}\n" if on_hub else ""
    tags = "tags: [reward-model, panoply]"
    return f"---\nlibrary_name: {library}\npipeline_tag: text-classification\n{base}{tags}\n---"


def _backbone(card: Manifest | ScalarManifest) -> str:
    return "SmolLM2-135M-Instruct" if card.backbone == NAME else plain(card.backbone)


def _summary(card: Manifest, scalar: ScalarDescription | None) -> str:
    depth = f"the first {card.depth} layers of {_backbone(card)}, frozen"
    if scalar:
        return (
            f"One linear Bradley-Terry head (`{scalar.scorer}`) on {depth}. It was fitted on the "
            "preference pairs alone, as a rival of a gated reward model over "
            f"{len(card.objectives)} objectives, which is not part of this folder."
        )
    return (
        f"A linear head per objective on {depth}, and a gate that weighs the objectives by the "
        "prompt (ArmoRM, arXiv 2406.12845): score = sum of gate weight times objective, with "
        "length taken out of every objective."
    )


def _objectives(card: Manifest, measured: Metrics) -> str:
    rows: list[Row] = []
    for name in card.objectives:
        entry, scale = measured.get(name, {}), "learned from preferences"
        if name in card.maps:
            rating = RatingMap.from_dict(card.maps[name])
            scale = f"{rating.low:g} to {rating.high:g}"
        rows.append(Row(name, [scale, entry.get("spearman"), entry.get("n")]))
    columns = [
        Column("scale of its raters", str),
        Column("Spearman on held-out ratings"),
        Column("n", count),
    ]
    return as_markdown(Table("Objectives", "objective", columns, rows))


def _data(data: Metrics) -> str:
    if not data:
        return "Not recorded."
    rows: list[Row] = []
    for kind, entry in data.items():
        for source, num in entry["by_source"].items():
            rows.append(Row(kind, [source, num, str(entry["id"])]))
    columns = [
        Column("source", str),
        Column("rows", count),
        Column("id of all rows of the kind", str),
    ]
    return as_markdown(Table("Data", "kind", columns, rows))


def _metrics(pairs: Metrics, scalar: ScalarDescription | None) -> list[str]:
    shown = {n: entry for n, entry in pairs.items() if not scalar or n == scalar.scorer}
    if not shown:
        return []
    note = (
        "On held-out pairs. Accuracies are means over sources; length-balanced is the mean of the "
        "pairs whose chosen response is longer and of those where it is shorter."
    )
    tables = [as_markdown(accuracy_table(shown)), as_markdown(probability_table(shown))]
    return ["## Metrics", *tables, note]


def _scoring(card: Manifest, scalar: ScalarDescription | None) -> list[str]:
    cut = _limits(card)
    lines = [
        f"chat template {card.template_hash}; beginning-of-sequence once",
        f"in training, prompts were {cut}; this folder cuts nothing, so cut longer texts yourself"
        if scalar
        else f"prompts are {cut}",
        _cost(card),
        f"split seed {card.seed}; backbone weights {card.weights_hash}",
    ]
    if scalar:
        lines += [
            "the score is read at the last token of the rendered conversation, before padding",
            f"the pad token `{scalar.pad_token}` is for padding alone: keep it out of texts",
            f"score differences times {scalar.scale:.4g} are log odds",
            "weights are float32: a bfloat16 head would round scores into ties",
        ]
    else:
        lines += [
            f"features: {card.pooling} in {card.dtype}; the gate reads `{card.rendering.gate}`",
            f"score differences divided by {card.temperature:.4g} are log odds",
        ]
    return lines


def _cost(card: Manifest | ScalarManifest) -> str:
    return (
        f"cost: one forward of {card.depth} layers over prompt and response; Panoply computes a "
        "prompt once for all of its responses"
    )


def _limits(card: Manifest | ScalarManifest) -> str:
    return (
        f"cut to their last {card.rendering.max_prompt_tokens} tokens, and responses to their "
        f"first {card.rendering.max_response_tokens}"
    )

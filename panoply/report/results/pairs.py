"""Sections about scorers on held-out pairs: accuracy, differences, calibration."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from itertools import chain

from panoply.measure.calibration import FEWEST_IN_BIN
from panoply.measure.intervals import FEWEST_GROUPS
from panoply.report.section import (
    Block,
    Column,
    Curve,
    Curves,
    Fold,
    KeyFigure,
    Metrics,
    Row,
    Section,
    Table,
    count,
    differences,
    falling,
    interval,
    is_defined,
    number,
    rising,
    rows_of,
    side,
    signed,
    signed_interval,
    words,
)

BALANCED = "accuracy_length_balanced"
INTERVAL = "ci95_length_balanced"
RAW = "_raw"
"""Ends the name of a scorer whose margins stand without a temperature."""
LEADS = ("gate", "score")
"""The scorer that a run is about: of a gated model, or of a scalar one."""
BY_SOURCE = (
    "oracle",
    "gate",
    "gate_source_mean",
    "best_fixed_per_source",
    "best_fixed",
    "mlp",
    "linear_bt",
    "score",
    "mixed",
    "lower_bound",
    "untrained",
    "log_probability",
    "log_probability_per_token",
)
"""Scorers that are shown source by source; `metrics.json` has all of them."""
SCORERS = {
    "oracle": "the planted weights themselves: the best that any gate can do",
    "gate": "objectives weighed by what the prompt asks for",
    "gate_mean": "the gate's mean weights, the same for every prompt",
    "gate_source_mean": "the gate's mean weights within each source",
    "uniform": "every objective counts the same",
    "best_single": "the best single objective, chosen on the select part",
    "best_fixed": "the best weights that do not depend on the prompt",
    "best_fixed_per_source": "the best fixed weights of each source, whose name is given",
    "linear": "signed weights on the objectives",
    "linear_bt": "a linear Bradley-Terry head on the features, without objectives",
    "mlp": "a Bradley-Terry network on the features, without objectives",
    "score": "the scalar model's score; of an ensemble, the mean of its standardized members",
    "score_raw": "the score with its margins as trained, without the temperature",
    "mixed": "plain mixing of the sources: same pairs, steps and rates, without MORE's weights",
    "mixed_raw": "plain mixing with its margins as trained, without the temperature",
    "lower_bound": "the score less the deviation between the members of the ensemble",
    "untrained": "the model before its first step: a new head on the backbone as it came, or the "
    "head that training went on from",
    "log_probability": "log-probability of the response by the language model below the head, "
    "before training, summed over the tokens",
    "log_probability_per_token": "the same, divided by the number of the response's tokens",
    "length": "the longer response wins",
}
"""Meanings of the names, for a reader who meets them for the first time."""
HEADS = Table(
    "Columns",
    "column",
    [Column("meaning", str)],
    [
        Row(
            "length-balanced",
            ["mean of the accuracy where the chosen response is longer, and where it is shorter"],
        ),
        Row("one source", ["the same for each source by itself"]),
        Row(
            "log loss",
            ["-log of the probability given to the chosen response, in nats; a coin has .693"],
        ),
        Row(
            "ECE",
            ["expected calibration error: how far stated confidence is from the share that won"],
        ),
        Row("ECE by chance", ["ECE of a perfectly calibrated scorer on as many pairs"]),
        Row(
            "temperature",
            ["what margins are divided by to be log odds; fitted on calibration pairs"],
        ),
        Row("ties", ["share of pairs with equal scores, which count half"]),
    ],
)
"""Meanings of the columns."""


def lead(scorers: Container[str]) -> str:
    """Returns which of LEADS is among some scorers."""
    return next(name for name in LEADS if name in scorers)


def sources_of(entry: Metrics) -> set[str]:
    """Returns the sources in which a scorer has a length-balanced accuracy."""
    per_source: Mapping[str, Metrics] = entry.get("per_source", {})
    return {name for name, numbers in per_source.items() if is_defined(numbers.get(BALANCED))}


def ranked(pairs: Mapping[str, Metrics]) -> list[str]:
    """Returns the scorers by their length-balanced accuracy, best first.

    Means over different sources cannot be compared, so a scorer that lacks a source comes last.
    """

    def key(name: str) -> tuple[int, float]:
        entry = pairs[name]
        return -len(sources_of(entry)), falling(entry.get("macro", {}).get(BALANCED))

    return sorted(pairs, key=key)


def label_of(pairs: Container[str]) -> Callable[[str], str]:
    """Returns the function that puts the names of scorers in words.

    Where plain mixing stands beside it, the score is that of MORE.
    """
    lead_label = "MORE" if "mixed" in pairs else "score"

    def label(name: str) -> str:
        plain, raw = name.removesuffix(RAW), " raw" if name.endswith(RAW) else ""
        if " - " in name:
            return " - ".join(label(part) for part in name.split(" - "))
        return {"score": lead_label, "mixed": "plain mixing"}.get(plain, words(plain)) + raw

    return label


def has_no_signal(entry: Metrics) -> bool:
    """Returns whether a scorer's margins carry no probability: its scale to log odds is 0."""
    return "temperature" in entry and not is_defined(entry["temperature"])


def warnings(pairs: Mapping[str, Metrics]) -> list[str]:
    """Returns what a reader has to know before any number: no signal, too few prompts."""
    label, lines = label_of(pairs), list[str]()
    trained = [name for name in (*LEADS, "mixed") if name in pairs]
    silent = [label(name) for name in trained if has_no_signal(pairs[name])]
    if silent:
        lines.append(
            f"No signal: the probabilities of {', '.join(silent)} are all .5, since the margins on "
            "calibration pairs say nothing or point the wrong way."
        )
    sizes = [entry["num_prompts"] for entry in pairs.values() if "num_prompts" in entry]
    if sizes and max(sizes) < FEWEST_GROUPS:
        lines.append(
            f"Too few prompts ({count(max(sizes))}) for intervals, which take {FEWEST_GROUPS} or "
            "more: differences between the numbers here may be chance."
        )
    return lines


def verdict(metrics: Metrics) -> str:
    """Returns whether a model beats the strongest it is compared with; '' where none is known.

    A gate's own mean weights are no rivals.
    """
    pairs, comparisons = metrics.get("pairs", {}), metrics.get("comparisons", {})
    if not pairs.keys() & set(LEADS):
        return ""
    chief, label = lead(pairs), label_of(pairs)
    compared = [name for name in ranked(pairs) if f"{chief} - {name}" in comparisons]
    rivals = [name for name in compared if not name.startswith("gate_")]
    if not rivals:
        return ""
    difference = comparisons[f"{chief} - {rivals[0]}"]
    outcomes = {"above": "beats", "below": "loses to", "around": "cannot be told apart from"}
    outcome = outcomes[side(difference.get("ci95"))]
    value = f"{signed(difference.get('value'))} {signed_interval(difference.get('ci95'))}"
    return (
        f"On held-out pairs {_in_prose(label(chief))} {outcome} the strongest scorer it is "
        f"compared with, {label(rivals[0])}: {value} in length-balanced accuracy."
    )


def _in_prose(label: str) -> str:
    """Returns the name of a scorer as it stands in a sentence."""
    return label if label == "MORE" else f"the {label}"


def key_figures(pairs: Mapping[str, Metrics]) -> list[KeyFigure]:
    """Returns accuracy and calibration of the scorer that a run is about."""
    if not pairs.keys() & set(LEADS):
        return []
    chief = lead(pairs)
    macro, floor = pairs[chief].get("macro", {}), number(pairs[chief].get("ece_floor"))
    accuracy, error = number(macro.get(BALANCED)), number(pairs[chief].get("ece"))
    name = _in_prose(label_of(pairs)(chief))
    note = f"of {name}; 95 % {interval(macro.get(INTERVAL))}"
    chance = f"of {name}; {floor} is chance at this size"
    if has_no_signal(pairs[chief]):
        chance = "no signal: all probabilities are .5"
    return [
        KeyFigure("Length-balanced accuracy", accuracy, note),
        KeyFigure("Calibration error", error, chance),
    ]


def scorers(pairs: Mapping[str, Metrics], comparisons: Mapping[str, Metrics]) -> Section:
    """Returns scorers with their intervals, paired differences, and chief scorers by source."""
    note = (
        "Length-balanced accuracy is the mean over pairs whose chosen response is longer and those "
        "where it is shorter, so that preferring length wins nothing. The dashed line is chance."
    )
    title, label = "Differences on the same pairs, mean over sources", label_of(pairs)
    compared = differences(title, "length-balanced accuracy", comparisons, label)
    glossary = [Row(label(name), [what]) for name, what in SCORERS.items() if name in pairs]
    meanings = Table("Scorers", "scorer", [Column("meaning", str)], glossary)
    tables = [accuracy_table(pairs), probability_table(pairs), compared, by_source(pairs)]
    title = "Against the baselines" if pairs.keys() & {"gate", "untrained"} else "Accuracy"
    blocks: list[Block] = [
        *warnings(pairs),
        *tables,
        Fold("What the numbers are", [meanings, HEADS]),
    ]
    return Section("scorers", title, note, blocks)


def accuracy_table(pairs: Mapping[str, Metrics]) -> Table:
    """Returns accuracy of every scorer, best first: means over its sources.

    Where a scorer lacks some of the sources, a column tells how many each one has.
    """
    parts: dict[str, Metrics] = {}
    every = set[str]().union(*map(sources_of, pairs.values()))
    is_whole = True
    for name in ranked(pairs):
        if name.endswith(RAW):
            continue  # a temperature moves no accuracy
        sources = [entry.get(BALANCED) for entry in pairs[name].get("per_source", {}).values()]
        num_covered = len(sources_of(pairs[name]))
        coverage = f"{num_covered} of {len(every)}"
        macro = pairs[name].get("macro", {})
        parts[name] = {**macro, "sources": sources, "coverage": coverage}
        is_whole &= num_covered == len(every)
    columns = [
        Column("length-balanced", mark="dot", key=BALANCED),
        Column("95 %", interval, "interval", key=INTERVAL),
        Column("one source", None, "tick", key="sources"),
        Column("plain accuracy", key="accuracy"),
    ]
    if not is_whole:
        columns.append(Column("sources", str, key="coverage"))
    sizes = [entry for entry in pairs.values() if "num_prompts" in entry]
    size = f" ({count(sizes[0]['n'])} of {count(sizes[0]['num_prompts'])} prompts)" if sizes else ""
    return Table(
        f"Scorers on held-out pairs{size}, mean over sources",
        "scorer",
        columns,
        rows_of(parts, columns, LEADS, label_of(pairs)),
        measure="length-balanced accuracy",
        origin=0.5,
        file="baselines" if any("macro" in entry for entry in pairs.values()) else "",
    )


def probability_table(pairs: Mapping[str, Metrics]) -> Table:
    """Returns log loss, calibration error and ties of every scorer, over all pairs."""
    columns = [
        Column("log loss", key="log_loss"),
        Column("ECE", key="ece"),
        Column("ECE by chance", key="ece_floor"),
        Column("temperature"),
        Column("ties"),
    ]
    order = sorted(pairs, key=lambda name: rising(pairs[name].get("log_loss")))
    rows = rows_of({name: pairs[name] for name in order}, columns, LEADS, label_of(pairs))
    return Table("Probabilities on all held-out pairs", "scorer", columns, rows)


def by_source(pairs: Mapping[str, Metrics]) -> Table:
    """Returns length-balanced accuracy of the scorers in BY_SOURCE in each source."""
    names = [n for n in ranked(pairs) if n in BY_SOURCE and pairs[n].get("per_source")]
    rows: list[Row] = []
    sources = chain(*(pairs[name]["per_source"] for name in names))
    for source in dict.fromkeys(sources):
        each = [pairs[name]["per_source"].get(source, {}) for name in names]
        sizes = [entry["n"] for entry in each if entry.get("n") is not None]
        accuracies = [entry.get(BALANCED) for entry in each]
        rows.append(Row(source, [max(sizes, default=None), *accuracies]))
    label = label_of(pairs)
    columns = [Column("n", count), *(Column(label(name), heat=(0.5, 1.0)) for name in names)]
    return Table("Length-balanced accuracy by source", "source", columns, rows)


def reliability(curves: Mapping[str, Metrics], pairs: Mapping[str, Metrics]) -> Section:
    """Returns stated confidence against accuracy, and how many pairs each bin holds."""
    drawn: list[Curve] = []
    bins: list[Row] = []
    for name, curve in curves.items():
        points = zip(curve["count"], curve["confidence"], curve["accuracy"], strict=True)
        kept = [point for point in points if point[0] >= FEWEST_IN_BIN]
        entry = pairs.get(name, {})
        error, chance = number(entry.get("ece")), number(entry.get("ece_floor"))
        label = f"{label_of(pairs)(name)}: ECE {error} ({chance})"
        x, y, size = [p[1] for p in kept], [p[2] for p in kept], [p[0] for p in kept]
        drawn.append(Curve(label, x, y, size=size))
        bins += [Row(label_of(pairs)(name), point) for point in kept]
    note = (
        "A calibrated scorer wins as often as it says: its points lie on the dashed line. Each "
        "point is a tenth of the pairs, by confidence; in brackets stands the ECE that a perfectly "
        "calibrated scorer has by chance at this size."
    )
    plot = Curves(
        "Stated confidence and accuracy",
        "confidence in the predicted winner",
        "share that won",
        drawn,
        diagonal=True,
        with_numbers=False,
        file="reliability",
    )
    columns = [Column("pairs", count), Column("stated confidence"), Column("won")]
    numbers = Table("Stated confidence and accuracy by bin", "scorer", columns, bins)
    blocks = [plot, Fold("Numbers of the plot", [numbers])]
    return Section("reliability", "Reliability", note, blocks, on_terminal=False)

"""The section about a merged reward model: its models, the shares tried, and what was gained."""

from __future__ import annotations

from panoply.report.section import (
    Block,
    Column,
    Curve,
    Curves,
    Metrics,
    Row,
    Section,
    Table,
    count,
    number,
    short,
    side,
    signed,
    signed_interval,
)

NO_TEMPERATURE = (
    "No temperature was fitted, and it is 1: scores rank, and probabilities say nothing yet. Name "
    "`--pairs` to fit it."
)
ALL_SOURCES = "all sources"
PARTS = ("select", "test")


def merged(result: Metrics) -> Section:
    """Returns the models, the accuracy by share, and the gain by source.

    Args:
        result: `merged` of `metrics.json`.
    """
    blocks: list[Block] = [_models(result)]
    tokens = result["tokens"]
    if tokens["gained"] or tokens["left_out"]:
        blocks.append(
            f"The tokenizer is the reward model's and gained {count(tokens['gained'])} tokens; "
            f"{count(tokens['left_out'])} of other vocabularies are left out."
        )
    if "curve" not in result:
        return Section("merged", "Merge", "", [*blocks, NO_TEMPERATURE])
    blocks += [_verdict(result), _shares(result), _curve(result), _gains(result)]
    note = (
        "The share is the weight of the models behind the first; 0 is the reward model alone. It "
        "is chosen on *select*, and *test* is only reported."
    )
    return Section("merged", "Merge", note, blocks)


def _models(result: Metrics) -> Table:
    rows: list[Row] = []
    for each in result["models"]:
        cells = [each[key] for key in ("weight", "head", "distance")]
        rows.append(Row(each["model"], [*cells, ", ".join(each["sources"]), each["pairs"]]))
    columns = [
        Column("weight", short),
        Column("head", str),
        Column("distance", lambda value: number(value, 4)),
        Column("sources", str),
        Column("pairs", count),
    ]
    title = f"Models that were merged ({result['rule']}); distance is that from the first"
    return Table(title, "model", columns, rows)


def _verdict(result: Metrics) -> str:
    """Returns what the chosen share does on *test*, beside none and beside one at random."""
    gain = result["gains"][ALL_SOURCES]
    if not result["share"]:
        return (
            "No share orders more pairs of *select* right than the reward model alone, by more "
            "than a standard error: the result is that model."
        )
    outcome = {"above": "better than", "below": "worse than"}.get(
        side(gain["ci95"]), "not told apart from"
    )
    return (
        f"With a share of {short(result['share'])} the merged model is {outcome} the reward model "
        f"alone: {signed(gain['value'])} {signed_interval(gain['ci95'])}. A share at random of "
        f"those tried has an accuracy of {number(result['at_random'])}, the chosen one "
        f"{number(gain['merged'])}."
    )


def _shares(result: Metrics) -> Table:
    rows: list[Row] = []
    for share, entry in result["curve"].items():
        is_chosen = float(share) == result["share"]
        name = "0, the reward model alone" if share == "0" else share
        rows.append(Row(name, [entry[part] for part in PARTS], "strong" if is_chosen else ""))
    columns = [Column(part) for part in PARTS]
    title = "Pairs ordered right by share, mean over sources; the chosen share stands out"
    return Table(title, "share", columns, rows)


def _curve(result: Metrics) -> Curves:
    shares = {float(share): entry for share, entry in result["curve"].items()}
    curves = [
        Curve(part, list(shares), [entry[part] for entry in shares.values()]) for part in PARTS
    ]
    origin, title = shares[0.0]["test"], "Pairs ordered right by share"
    return Curves(title, "share", "accuracy", curves, origin=origin, with_numbers=False)


def _gains(result: Metrics) -> Table:
    rows: list[Row] = []
    for source, gain in result["gains"].items():
        cells = [gain[key] for key in ("pairs", "alone", "merged", "value", "ci95")]
        rows.append(Row(source, cells, "strong" if source == ALL_SOURCES else ""))
    columns = [
        Column("pairs", count),
        Column("alone"),
        Column("merged"),
        Column("difference", signed, "dot"),
        Column("95 %", signed_interval, "interval"),
    ]
    title = "Test pairs ordered right; the difference is length-balanced"
    return Table(title, "source", columns, rows, measure="difference")

"""Sections about scorers on a board: its own numbers, coverage, differences and pairs."""

from __future__ import annotations

from panoply.report.section import (
    Block,
    Column,
    Fold,
    Metrics,
    Row,
    Section,
    Table,
    count,
    differences,
    falling,
    interval,
    number,
    short,
)

CONTROL_NOTE = "control"
PAIRS_NOTE = (
    "Among the pairs, longer and shorter are those whose right response is; log loss and ECE are "
    "at a temperature that is fitted on the other half of the prompts."
)


def verdict(metrics: Metrics) -> str:
    """Returns which scorer leads a board, and by what its length control comes; '' without one."""
    result: Metrics = metrics.get("board", {})
    if not result:
        return ""
    headline = result["headline"]
    best = _ranked(result["scorers"], headline)[0]
    entry = result["scorers"][best]
    control = result["controls"]["length"]["values"][headline]
    value = f"{number(entry['values'][headline])} {interval(entry['ci95'][headline])}"
    return (
        f"Of the scorers {best} has the highest number of {result['title']}, {value}; preferring "
        f"length has {number(control)}."
    )


def board(result: Metrics) -> list[Section]:
    """Returns the sections of a board.

    Args:
        result: `board` of `metrics.json`.
    """
    blocks: list[Block] = [*_warnings(result), leaderboard(result), _sections(result)]
    blocks += [
        _left_out(result, "unseen", "On prompts that the scorer was not trained on"),
        _left_out(result, "clean", "On prompts that do not stand in the training files"),
        _coverage(result),
    ]
    headline = result["headline"]
    title = f"Differences of {headline} on the same items"
    blocks += [differences(title, headline, result["paired"]), _pairs(result)]
    blocks.append(Fold("Every cell", [_cells(result)]))
    return [Section("board", result["title"], f"{result['note']} {PAIRS_NOTE}".strip(), blocks)]


def leaderboard(result: Metrics) -> Table:
    """Returns the headline of every scorer with its interval, controls and published ones too."""
    headline = result["headline"]
    rows: list[Row] = []
    for name in _ranked(result["scorers"], headline):
        entry = result["scorers"][name]
        cells = [entry["values"][headline], entry["ci95"][headline], entry["n"], entry["missing"]]
        rows.append(Row(name, cells, "strong"))
    for name, entry in result["controls"].items():
        cells = [entry["values"][headline], entry["ci95"][headline], None, None]
        rows.append(Row(name, cells, "dim", CONTROL_NOTE))
    for published in result["published"]:
        if headline in published["numbers"]:
            cells = [published["numbers"][headline], None, None, None]
            rows.append(Row(published["scorer"], cells, "dim", published["source"]))
    columns = [
        Column(headline, mark="dot"),
        Column("95 %", interval, "interval"),
        Column("items", count),
        Column("missing", count),
    ]
    return Table(_title(result), "scorer", columns, rows, measure=headline, file="board")


def _title(result: Metrics) -> str:
    official = f" of {count(result['official'])}" if result["official"] is not None else ""
    return f"{result['title']}: {count(result['n'])}{official} items"


def _warnings(result: Metrics) -> list[str]:
    """Returns what a reader has to know before any number."""
    lines: list[str] = []
    if result["lacking"]:
        parts = [
            f"{name or 'items'} {count(num)} of {count(size)}"
            for name, (num, size) in result["lacking"].items()
        ]
        lines.append(
            f"Incomplete: {', '.join(parts)}. The numbers are over what there is, and published "
            "ones over all."
        )
    if num := result["overlapping"]:
        lines.append(f"The prompts of {count(num)} items stand in the training files.")
    if bad := sum(result.get("quarantined", {}).values()):
        lines.append(f"{count(bad)} bad rows were left out.")
    return lines


def _sections(result: Metrics) -> Table:
    """Returns every number of the board of every scorer."""
    names = result["numbers"]
    rows: list[Row] = []
    for name in _ranked(result["scorers"], result["headline"]):
        values = result["scorers"][name]["values"]
        rows.append(Row(name, [values[key] for key in names], "strong"))
    for name, entry in result["controls"].items():
        cells = [entry["values"][key] for key in names]
        rows.append(Row(name, cells, "dim", CONTROL_NOTE))
    for published in result["published"]:
        cells = [published["numbers"].get(key) for key in names]
        rows.append(Row(published["scorer"], cells, "dim", published["source"]))
    columns = [Column(name, heat=(0.0, 1.0)) for name in names]
    return Table("The board's numbers", "scorer", columns, rows)


def _left_out(result: Metrics, part: str, title: str) -> Table:
    """Returns the numbers of the scorers that have some on a part of the items."""
    names = result["numbers"]
    rows: list[Row] = []
    for name, entry in result["scorers"].items():
        if part in entry:
            rows.append(Row(name, [entry[part]["values"][key] for key in names]))
    columns = [Column(name, heat=(0.0, 1.0)) for name in names]
    return Table(title, "scorer", columns, rows)


def _coverage(result: Metrics) -> Table:
    rows: list[Row] = []
    for name, entry in result["scorers"].items():
        keys = ("missing_scores", "ties", "cut", "seen", "cost", "cost_per_1000")
        rows.append(Row(name, [*(entry.get(key) for key in keys), entry.get("reason", "")]))
    columns = [
        Column("missing", count),
        Column("ties", short),
        Column("cut", count),
        Column("seen", count),
        Column("cost", _cost),
        Column("per 1,000", _cost),
        Column("most frequent reason", str),
    ]
    title = "Responses without a score or cut, items tied at the top or seen in training"
    return Table(title, "scorer", columns, rows)


def _pairs(result: Metrics) -> Table:
    """Returns the house's numbers on pairs of a right and a wrong response."""
    rows: list[Row] = []
    keys = (
        "accuracy",
        "accuracy_length_balanced",
        "accuracy_chosen_longer",
        "accuracy_chosen_shorter",
        "log_loss",
        "ece",
        "ece_floor",
    )
    for name, entry in {**result["scorers"], **result["controls"]}.items():
        style = "dim" if name in result["controls"] else ""
        rows.append(Row(name, [entry["pairs"][key] for key in keys], style))
    names = ("accuracy", "balanced", "longer", "shorter", "log loss", "ECE", "by chance")
    title = "Pairs of a right and a wrong response, a tie as half"
    return Table(title, "scorer", [Column(name) for name in names], rows)


def _cells(result: Metrics) -> Table:
    """Returns the mean credit of each cell, such as a subset, by scorer."""
    scorers = result["scorers"]
    cells = next(iter(scorers.values()))["cells"]
    rows: list[Row] = []
    for cell, entry in cells.items():
        values = [scorer["cells"][cell]["value"] for scorer in scorers.values()]
        rows.append(Row(cell, [entry["n"], *values]))
    columns = [Column("n", count), *(Column(name, heat=(0.0, 1.0)) for name in scorers)]
    return Table("Mean credit by cell", "cell", columns, rows)


def _ranked(scorers: Metrics, headline: str) -> list[str]:
    return sorted(scorers, key=lambda name: falling(scorers[name]["values"][headline]))


def _cost(value: float | None) -> str:
    return number(value, 4)

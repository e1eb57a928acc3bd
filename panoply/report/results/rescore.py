"""Sections about rollouts that were scored again: ranking, choices and advantages by scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from panoply.report.section import (
    Block,
    Column,
    Metrics,
    Row,
    Section,
    Table,
    count,
    falling,
    number,
    short,
    signed,
    signed_interval,
)

NOTE = (
    "Scores of different scorers have no common unit: everything here compares responses to the "
    "same prompt. A missing score enters nothing."
)


def verdict(metrics: Metrics) -> str:
    """Returns which scorer's choices had the highest reward; '' where none was recorded."""
    result: Metrics = metrics.get("rescored", {})
    truth = result.get("truth")
    if not truth:
        return ""
    above = {name: result["choices"][name]["above_random"] for name in result["scorers"]}
    names = [name for name in above if name != truth]
    best = min(names, key=lambda name: falling(above[name]["value"]))
    margin = f"{signed(above[best]['value'])} {signed_interval(above[best]['ci95'])}"
    return (
        f"Of the scorers {best} chooses the responses of the highest recorded reward: {margin} "
        "above a random choice."
    )


def rescored(result: Metrics) -> list[Section]:
    """Returns coverage, ranking, choices and advantages.

    Args:
        result: `rescored` of `metrics.json`.
    """
    return [_ranking(result), _choices(result), _advantages(result)]


def _ranking(result: Metrics) -> Section:
    sizes = (
        f"{count(result['num_responses'])} responses in {count(result['num_groups'])} groups (one "
        "prompt, one step)"
    )
    rows: list[Row] = []
    for name, entry in result["scorers"].items():
        keys = ("scored", "missing", "cut", "cost", "flat_groups", "flat_share")
        cells = [*(entry.get(key) for key in keys), entry.get("reason", "")]
        rows.append(Row(name, cells))
    columns = [
        *(Column(name, count) for name in ("scored", "missing", "cut")),
        Column("cost", lambda value: number(value, 4)),
        Column("groups without spread", count),
        Column("share", short),
        Column("most frequent reason", str),
    ]
    blocks: list[Block] = [
        Table(f"{sizes}; in a group without spread no response is moved", "scorer", columns, rows)
    ]
    if len(result["scorers"]) > 1:
        tau = _matrix(
            "Kendall's tau within prompts, mean over groups",
            result["tau"],
            lambda entry: entry["value"],
            signed,
            (-1.0, 1.0),
        )
        alike = _matrix(
            "Pairs of responses ordered alike, of those that both order",
            result["alike"],
            lambda entry: entry["value"],
            short,
            (0.5, 1.0),
        )
        blocks += [tau, alike]
    return Section("ranking", "Who ranks whom", NOTE, blocks)


def _choices(result: Metrics) -> Section:
    rows: list[Row] = []
    for name, entry in result["choices"].items():
        above: Metrics = entry["above_random"]
        style = "dim" if name not in result["scorers"] else ""
        cells = [entry["reward"], above["value"], above["ci95"], above["groups"], entry["length"]]
        rows.append(Row(name, cells, style))
    columns = [
        Column("reward"),
        Column("above random", signed, "dot"),
        Column("95 %", signed_interval, "interval"),
        Column("groups", count),
        Column("characters", count),
    ]
    truth = result["truth"]
    judged = f"by the reward that was {truth}" if truth else "no reward was recorded"
    blocks: list[Block] = [
        Table(
            f"The response that each would choose of a group, {judged}",
            "chosen by",
            columns,
            rows,
            measure="reward above random",
        )
    ]
    if len(result["scorers"]) > 1:
        title = "Groups in which two choose the same response"
        blocks.append(_matrix(title, result["same_choice"], lambda value: value, short, (0.0, 1.0)))
    return Section("choices", "What each would choose", "", blocks)


def _advantages(result: Metrics) -> Section:
    blocks: list[Block] = []
    if len(result["scorers"]) > 1:
        for title, key, shown, heat in (
            ("Correlation of GRPO advantages", "advantages", signed, (-1.0, 1.0)),
            ("Responses that one raises and the other lowers", "opposite", short, (0.0, 0.5)),
        ):
            blocks.append(_matrix(title, result[key], lambda value: value, shown, heat))
    rows: list[Row] = []
    for name, entry in result["gdpo"].items():
        keys = ("parts", "correlation", "opposite", "revived_groups")
        rows.append(Row(name, [entry[key] for key in keys]))
    columns = [
        Column("parts", count),
        Column("correlation with GRPO", signed),
        Column("opposite sign", short),
        Column("groups that only parts move", count),
    ]
    title = "GDPO: each part normalized by itself, with equal weights"
    blocks.append(Table(title, "scorer", columns, rows))
    return Section("advantages", "What each would reward", "", blocks)


def _matrix(
    title: str,
    by_name: Mapping[str, Mapping[str, Any]],
    value: Callable[[Any], float | None],
    shown: Callable[[Any], str],
    heat: tuple[float, float],
) -> Table:
    """Returns a table of two scorers each; the diagonal is empty."""
    rows: list[Row] = []
    for name, others in by_name.items():
        cells = [None if other == name else value(others[other]) for other in by_name]
        rows.append(Row(name, cells))
    return Table(title, "scorer", [Column(name, shown, heat=heat) for name in by_name], rows)

"""Reports scored rollouts: scores by group, their cost, and a row a response.

Legend: `n` responses of a group, `P` parts of a scorer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.config.rescore import RECORDED
from panoply.data.rollouts import SampleGroup
from panoply.data.schema import PROMPT
from panoply.data.score_file import ScoreFolder
from panoply.files import whole_file
from panoply.measure.group_report import GroupResults, ScoredGroups
from panoply.types import Array


def scored_groups(
    groups: Sequence[SampleGroup], ids: Sequence[str], names: Sequence[str], scores: ScoreFolder
) -> ScoredGroups:
    """Returns the scores of all groups, with the rewards that they had as the first scorer's."""
    is_recorded = any(np.isfinite(group.reward_n).any() for group in groups)
    recorded = (RECORDED,) if is_recorded else ()
    ends = np.cumsum([len(group.chat.responses) for group in groups])
    by_scorer: list[list[Array]] = []
    parts: dict[str, list[Array]] = {}
    if is_recorded:
        by_scorer.append([np.array(group.reward_n, np.float64) for group in groups])
        parts[RECORDED] = _with_all_names([group.parts for group in groups], groups)
    for name in names:
        by_scorer.append(np.split(scores.values(name, ids, int(ends[-1])), ends[:-1]))
        parts_T = scores.table.rows(name, ids)["parts"].to_pylist()
        starts = [0, *ends[:-1].tolist()]
        by_item = [_parts(parts_T[a:b]) for a, b in zip(starts, ends.tolist(), strict=True)]
        parts[name] = _with_all_names(by_item, groups)
    rows = [np.stack(of_group) for of_group in zip(*by_scorer, strict=True)]
    return ScoredGroups(
        names=(*recorded, *names),
        scores=rows,
        parts={name: part for name, part in parts.items() if len(part[0]) > 1},
        lengths=[np.array(list(map(len, group.chat.responses)), float) for group in groups],
        batches=[group.step for group in groups],
        truth=RECORDED if is_recorded else "",
    )


def _parts(parts_n: Sequence[Iterable[tuple[str, float]] | None]) -> dict[str, list[float]]:
    """Returns the parts of an item's scores by name; of a composite's part, not its own parts."""
    by_row = [dict(parts or ()) for parts in parts_n]
    names = dict.fromkeys(chain.from_iterable(by_row))
    by_name: dict[str, list[float]] = {}
    for name in names:
        before_dots = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
        if names.keys().isdisjoint(before_dots):
            by_name[name] = [parts.get(name, float("nan")) for parts in by_row]
    return by_name


def _with_all_names(
    parts: Sequence[Mapping[str, Sequence[float]]], groups: Sequence[SampleGroup]
) -> list[Array]:
    """Returns the parts `[P, n]` of each group in one order of their names, NaN where missing."""
    names = sorted(set(chain.from_iterable(parts)))
    arrays: list[Array] = []
    for by_name, group in zip(parts, groups, strict=True):
        missing = [float("nan")] * len(group.samples)
        rows = [by_name.get(name, missing) for name in names]
        arrays.append(np.array(rows, np.float64).reshape(len(names), len(group.samples)))
    return arrays


def costs(name: str, items: Iterable[str], scores: ScoreFolder) -> dict[str, Any]:
    """Returns what a scorer's scores cost, how many texts its limits cut, and why most failed.

    Of a reason what stands behind a colon is left out, which may quote a text.
    """
    rows = scores.table.rows(name, list(items))
    paid = rows["cost"].drop_null().to_pylist()
    errors = rows["error"].drop_null().to_pylist()
    reasons = Counter(error.partition(": ")[0] for error in errors if error)
    return {
        "cut": int(np.count_nonzero(rows["cut"].fill_null(0))),
        "cost": sum(paid) if paid else None,
        "reason": reasons.most_common(1)[0][0] if reasons else "",
    }


def write_rows(
    out: Path,
    groups: Sequence[SampleGroup],
    ids: Sequence[str],
    table: ScoredGroups,
    results: GroupResults,
) -> None:
    """Writes `rollouts.parquet`, the texts, and `advantages.parquet`, what each scorer says."""
    texts: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for g, (group, item) in enumerate(zip(groups, ids, strict=True)):
        for i, sample in enumerate(group.samples):
            place = {"group": g, "item_id": item, "candidate": i}
            texts.append(
                {**place, "step": sample.step, "prompt": sample.prompt, "response": sample.response}
            )
            for k, name in enumerate(table.names):
                decoupled = results.gdpo.get(name)
                rows.append(
                    {
                        **place,
                        "scorer": name,
                        "score": _null(table.scores[g][k, i]),
                        "chosen": _null(results.choices[g][k, i]),
                        "grpo": _null(results.grpo[g][k, i]),
                        "gdpo": None if decoupled is None else _null(decoupled[g][i]),
                    }
                )
    keys = [("group", pa.int32()), ("item_id", pa.string()), ("candidate", pa.int32())]
    text_columns = [("step", pa.string()), ("prompt", PROMPT), ("response", pa.string())]
    numbers = [(name, pa.float64()) for name in ("score", "chosen", "grpo", "gdpo")]
    for file, content, columns in (
        ("rollouts.parquet", texts, text_columns),
        ("advantages.parquet", rows, [("scorer", pa.string()), *numbers]),
    ):
        with whole_file(out / file) as partial:
            schema = pa.schema([*keys, *columns])
            pq.write_table(pa.Table.from_pylist(content, schema), partial)


def _null(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

"""Samples that were scored and judged before, read from a table with a row for each.

Shapes: K scorers, n samples of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.config import require
from panoply.config.best_of_n import RecordedBestOfNConfig
from panoply.files import reading
from panoply.types import Array

SCORE = "score_"
"""Beginning of the names of columns that are scores."""


@dataclass(frozen=True, slots=True)
class RecordedSamples:
    """Scores and gold of the samples of each prompt."""

    names: tuple[str, ...]
    """Names of the scorers."""
    prompts: list[str]
    scores: list[Array]
    """Of each prompt `[K, n]`; NaN where one is missing."""
    golds: list[Array]
    """Of each prompt `[n]`; NaN where it is missing."""

    @property
    def num_samples(self) -> int:
        """Samples that every prompt has."""
        return min(map(len, self.golds))


def read_samples(config: RecordedBestOfNConfig) -> RecordedSamples:
    """Reads recorded scores, prompts in the order in which they come.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet file, a column is missing or holds no numbers, gold lies
            outside of [0, 1], or a prompt has a single sample.
    """
    path = Path(config.samples).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`samples` is {config.samples!r}, and there is no such file")
    with reading(path, "name another file"):
        columns = pq.read_schema(path).names
    names = config.scores or tuple(name for name in columns if name.startswith(SCORE))
    if not names:
        raise ValueError(
            f"{config.samples!r} has no column that begins with {SCORE!r} (it has "
            f"{', '.join(columns)}): name the columns of scores with `--scores`"
        )
    for field, name in (("prompt", config.prompt), ("gold", config.gold)):
        require(name in columns, field, name, f"a column of the samples: {', '.join(columns)}")
    absent = [name for name in names if name not in columns]
    require(not absent, "scores", absent, f"columns of the samples: {', '.join(columns)}")
    with reading(path, "name another file"):
        table = pq.read_table(path, columns=[*{config.prompt, config.gold, *names}])
    gold_N = _numbers(table, config.gold, config.samples)
    outside = gold_N[(gold_N < 0) | (gold_N > 1)]
    if len(outside):
        raise ValueError(
            f"column {config.gold!r} of {config.samples!r} holds {outside[0]:g}: gold is whether a "
            "sample is right, or a number in [0, 1]"
        )
    score_KN = np.stack([_numbers(table, name, config.samples) for name in names])
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(table[config.prompt].to_pylist()):
        rows_of.setdefault(str(prompt), []).append(row)
    samples = RecordedSamples(
        names=tuple(name.removeprefix(SCORE) for name in names),
        prompts=list(rows_of),
        scores=[score_KN[:, rows] for rows in rows_of.values()],
        golds=[gold_N[rows] for rows in rows_of.values()],
    )
    if not rows_of or samples.num_samples < 2:
        raise ValueError(
            f"{config.samples!r} has a prompt with fewer than two samples by its column "
            f"{config.prompt!r}: name the column that is the same for all samples of a prompt"
        )
    return samples


def _numbers(table: pa.Table, name: str, file: str) -> Array:
    """Returns a column as numbers, NaN where it is null or not finite.

    Raises:
        ValueError: it holds something else.
    """
    kind = table[name].type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"column {name!r} of {file!r} holds {kind}, which is no number")
    values = np.array(table[name].cast(pa.float64()).to_numpy(), np.float64)
    return np.where(np.isfinite(values), values, np.nan)

"""Held-out pairs that the gate is sure of and gets wrong, with what moved it.

Legend: `P` pairs, `O` objectives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from panoply.data.tables import PairTable
from panoply.types import Array, Ints

MOST = 8
"""Mistakes that are shown."""
LEAST_PER_SOURCE = 2
"""Mistakes that a source may bring however many sources there are."""


def confident_mistakes(weights_PO: Array, difference_PO: Array, pairs: PairTable) -> Ints:
    """Returns the *test* rows that the gate is surest of and gets wrong, the surest first.

    One pair a prompt, and an even share a source, so that neither fills the list.

    Args:
        weights_PO: g(x) times the factor to log odds.
        difference_PO: r'(chosen) - r'(rejected).
        pairs: the pairs.
    """
    odds_P = (weights_PO * difference_PO).sum(1)
    test = pairs.split.of("test")
    surest = test[np.argsort(odds_P[test], kind="stable")]
    share = max(LEAST_PER_SOURCE, math.ceil(MOST / max(1, len(set(pairs.source_P[test])))))
    taken: list[int] = []
    for row in surest[odds_P[surest] < 0]:
        is_new_prompt = pairs.prompt_P[row] not in pairs.prompt_P[taken]
        num_of_source = int((pairs.source_P[taken] == pairs.source_P[row]).sum())
        if is_new_prompt and num_of_source < share:
            taken.append(int(row))
        if len(taken) == MOST:
            break
    return np.array(taken, dtype=np.int64)


def report_mistakes(
    weights_PO: Array,
    difference_PO: Array,
    names: Sequence[str],
    pairs: PairTable,
    file: str | Path,
) -> dict[str, Any]:
    """Returns the confident mistakes with their texts and the contributions of all objectives.

        log odds of the chosen response = sum_i g_i(x) (r'_i(chosen) - r'_i(rejected))

    Args:
        weights_PO: g(x) times the factor to log odds.
        difference_PO: r'(chosen) - r'(rejected).
        names: the objectives.
        pairs: the pairs.
        file: Parquet that the pairs were loaded from, for their texts.
    """
    odds_PO = weights_PO * difference_PO
    test, rows = pairs.split.of("test"), confident_mistakes(weights_PO, difference_PO, pairs)
    columns = ["row_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected"]
    texts = pq.read_table(file, columns=columns).take(rows).to_pylist()
    for row, text in zip(rows, texts, strict=True):
        if (text["chosen_id"], text["rejected_id"]) != (pairs.chosen_P[row], pairs.rejected_P[row]):
            raise ValueError(f"{str(file)!r} is not the file that these pairs were loaded from")
    return {
        "num_test": len(test),
        "num_wrong": int((odds_PO[test].sum(1) < 0).sum()),
        "mistakes": [
            _mistake(int(row), text, pairs)
            | {"contributions": _contributions(weights_PO[row], odds_PO[row], names)}
            for row, text in zip(rows, texts, strict=True)
        ],
    }


def _mistake(row: int, text: Mapping[str, Any], pairs: PairTable) -> dict[str, Any]:
    return {
        "row_id": text["row_id"],
        "source": str(pairs.source_P[row]),
        "domain": str(pairs.domain_P[row]),
        "prompt": text["prompt"],
        "chosen": text["chosen"],
        "rejected": text["rejected"],
        "chosen_length": int(pairs.chosen_length_P[row]),
        "rejected_length": int(pairs.rejected_length_P[row]),
    }


def _contributions(weights_O: Array, odds_O: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns every objective's share of the gate and part of the log odds, largest part first."""
    share_O = weights_O / weights_O.sum()
    return [
        {"objective": names[i], "weight": float(share_O[i]), "log_odds": float(odds_O[i])}
        for i in np.argsort(-np.abs(odds_O), kind="stable")
    ]

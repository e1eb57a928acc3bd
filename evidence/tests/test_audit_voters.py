"""Audits by recorded voters: pairs and scores meet, and the ratio is that of plain counting."""

import numpy as np
import pyarrow as pa
import pytest

from evidence import audit_voters
from evidence.audit_voters import audit, largest_ratio, write_pairs, write_recorded


def made_up(num_items: int, noise: float) -> pa.Table:
    """Returns problems of ten solutions, of which a scorer likes the right one by 2."""
    draws = np.random.default_rng(0).normal(size=10 * num_items) * noise
    candidates = list(range(10)) * num_items
    scores = [2.0 * (place == 0) + x for place, x in zip(candidates, draws, strict=True)]
    items = [item for item in range(num_items) for _ in range(10)]
    return pa.table({"item": items, "candidate": candidates, "score_rm": scores})


def test_the_largest_ratio_is_that_of_counting(monkeypatch):
    monkeypatch.setattr(audit_voters, "FEWEST", 3)
    table = made_up(12, 1.5)
    rows = table.to_pylist()
    margins = []
    for row in rows:
        right = rows[10 * row["item"]]
        if row["candidate"]:
            margins.append(right["score_rm"] - row["score_rm"])
    ratios = []
    for threshold in margins:
        below = sum(margin <= threshold for margin in margins)
        if threshold < 0 and below >= 3:
            ratios.append(sum(-margin <= threshold for margin in margins) / below)
    assert largest_ratio(table, "rm") == pytest.approx(max(ratios))


def test_a_voter_that_knows_the_right_solutions_finds_what_was_swapped(tmp_path):
    table = made_up(60, 0.1)
    pairs, files = write_pairs(table, tmp_path), write_recorded(table, tmp_path)
    numbers = audit(pairs, files, 0.25, 0, tmp_path / "run")
    votes = numbers["planted"]["rows"]["votes"]
    assert votes["recall"] == 1.0
    assert votes["precision"] > 0.85

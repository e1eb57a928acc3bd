"""Recorded process reward models: a table by rule, with ties and missing steps as lost."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evidence.steps import Options, main

ITEMS = [
    # Right one first. By min it wins, by product the short wrong one does.
    [[0.8, 0.8, 0.8, 0.8], [0.5], [0.7, 0.2]],
    # Tied with a wrong one by min and last, ahead by mean.
    [[0.9, 0.6], [0.6], [0.1, 0.6]],
    # A step of the right one has no score: the item is lost by every rule.
    [[0.9, None], [0.1], [0.2]],
    # Behind both by min, ahead by last.
    [[0.1, 0.9], [0.5, 0.3], [0.6, 0.4]],
]


def test_the_table_is_that_computed_by_hand(tmp_path, capsys):
    rows = []
    for item, candidates in enumerate(ITEMS):
        for candidate, steps in enumerate(candidates):
            is_right = candidate == 0
            rows.append(
                {"item": item, "candidate": candidate, "is_correct": is_right, "steps_m": steps}
            )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    main(Options(scores=tmp_path / "scores.parquet", json=tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    by_min = figures["m min"]
    assert by_min["ratio"] == 1 / 4
    assert by_min["with_ties"] == 2 / 4
    assert by_min["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    assert figures["m product"]["ratio"] == 0  # .41 < .5, .54 < .6, missing, .09 < .24
    assert figures["m mean"]["ratio"] == 2 / 4  # .8, .75, missing, .5 tied with .5
    assert figures["m mean"]["with_ties"] == 3 / 4
    assert figures["m last"]["ratio"] == 2 / 4
    assert "| m | min | 25.00 | 50.00 | 54.17 |" in capsys.readouterr().out

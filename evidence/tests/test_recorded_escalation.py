"""Escalation on recorded tables: both orders of a verdict, and who is told from whom."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evidence.escalation import Options, main, read_recorded


@pytest.fixture
def tables(tmp_path):
    """120 items of 6 candidates; `score_telling` is right more often where its margin is large.

    The judge saw every pair in both orders, and prefers the first one shown in some.
    """
    rng = np.random.default_rng(0)
    scores, verdicts = [], []
    for item in range(120):
        quality = np.array([1.2, 0, 0, 0, 0, 0]) + 0.3 * rng.normal(size=6)
        telling = quality + rng.normal(size=6)
        for candidate in range(6):
            row = {"item": item, "candidate": candidate, "is_correct": candidate == 0}
            row |= {"score_telling": telling[candidate], "score_blind": rng.normal()}
            scores.append(row)
        for wrong in range(1, 6):
            is_sure = rng.random() < 0.7
            for order in "AB":
                won = True if is_sure else order == "A"
                row = {"item": item, "wrong_candidate": wrong, "right_shown_as": order}
                verdicts.append(row | {"won_judge": None if wrong == 5 and order == "B" else won})
    paths = tmp_path / "scores.parquet", tmp_path / "verdicts.parquet"
    for path, rows in zip(paths, (scores, verdicts), strict=True):
        pq.write_table(pa.Table.from_pylist(rows), path)
    return paths


def test_verdicts_in_two_orders_are_averaged_over_those_that_there_are(tables):
    pairs = read_recorded(*tables, "judge")["telling"]
    assert len(pairs.verdict_P) == 600
    assert set(pairs.verdict_P.tolist()) == {1.0, 0.0}
    scores = pq.read_table(tables[0]).to_pandas().set_index(["item", "candidate"]).score_telling
    assert pairs.margin_P[7] == pytest.approx(scores[1, 0] - scores[1, 3])


def test_a_telling_scorer_gains_more_than_by_random_calls_and_a_blind_one_is_said_to_be(
    tables, tmp_path, capsys
):
    scores, verdicts = tables
    out = tmp_path / "figures.json"
    main(Options(scores=scores, verdicts=verdicts, judge="judge", splits=4, json=out))
    assert out.is_file()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    told = {cells[0].strip(): cells[-1].strip() for cells in rows}
    assert told == {"telling": "4/4", "blind": "0/4"}
    at_some = {cells[0].strip(): cells for cells in rows if cells[3].strip() == "0.4"}
    random, fused = (float(at_some["telling"][i].split()[0]) for i in (4, 6))
    assert fused > random

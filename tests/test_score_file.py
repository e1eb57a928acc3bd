"""Files of scores: what is kept in columns is what a table of rows would have."""

import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from panoply.data.score_file import SCORES, ScoreFolder, read_scores, score_rows, scorers_of
from panoply.scorers.recorded import RecordedScorer
from panoply.wire.request import Details, Score


def some_scores(rng, size):
    """Scores of an item: some with parts and costs, some failed for now or for good."""
    scores = []
    for _ in range(size):
        kind = rng.randrange(4)
        if kind == 0:
            scores.append(Score(error="no verdict: it said something"))
        elif kind == 1:
            scores.append(Score(error="busy", transient=True))
        else:
            details = Details(objectives={"a": rng.random()}, usage={"cost": rng.random()})
            scores.append(Score(score=rng.random(), num_cut=kind, details=details))
    return scores


def as_table(rows):
    return pa.Table.from_pylist(rows, SCORES)


def parsed(rows):
    """Rows whose parts are a dictionary, as Arrow has lists of pairs."""
    return [{**row, "parts": dict(row["parts"] or ())} for row in rows]


@pytest.fixture
def random_folder(tmp_path):
    """A folder of 40 segments of three scorers, and the last rows of each of their items."""
    rng = random.Random(0)
    folder, expected = ScoreFolder(tmp_path), {}
    sizes = {f"item {i}": rng.randint(1, 4) for i in range(30)}
    for number in range(40):
        segment = []
        for item in rng.sample(sorted(sizes), 5):
            scorer = rng.choice("abc")
            rows = score_rows(scorer, item, some_scores(rng, sizes[item]))
            expected[scorer, item] = rows
            segment += rows
        if number % 3 == 0:  # an item's rows need not stand together
            rng.shuffle(segment)
        folder.append(as_table(segment))
        if number == 20:
            folder.seal()
    return folder, sizes, expected


def test_kept_scores_are_the_last_that_came_of_each_item(random_folder, tmp_path):
    folder, sizes, expected = random_folder
    assert len(expected) > 60
    folders = [folder, ScoreFolder(tmp_path)]  # the second reads the file and its segments
    folder.seal()
    folders.append(ScoreFolder(tmp_path))
    for kept in folders:
        for scorer in "abc":
            for item, size in sizes.items():
                rows = expected.get((scorer, item), [])
                assert parsed(kept.scores(scorer, item)) == parsed(rows)
                is_transient = any(row["transient"] for row in rows)
                assert kept.lacks(scorer, item, size) == (not rows or is_transient)
    assert folder.scores("nobody", "item 0") == []
    keys = pq.read_table(folder.file, columns=["scorer", "item_id", "candidate"]).to_pylist()
    assert [tuple(row.values()) for row in keys] == sorted(tuple(row.values()) for row in keys)


def test_values_are_in_the_order_of_the_items_and_a_lack_is_no_shift(random_folder):
    folder, sizes, expected = random_folder
    known = [item for scorer, item in expected if scorer == "a"][::-1]
    wanted = [row["score"] for item in known for row in expected["a", item]]
    num = sum(sizes[item] for item in known)
    values = folder.values("a", known, num).tolist()
    assert [None if value != value else value for value in values] == wanted
    with pytest.raises(KeyError, match="rows of"):
        folder.values("a", [*known, "item none"], num + 1)


def test_recorded_scores_are_those_of_the_scorer_of_that_name(random_folder):
    folder, _, expected = random_folder
    folder.seal()
    assert scorers_of(folder.file) == ["a", "b", "c"]
    replayed = RecordedScorer(str(folder.file), "b")
    items = sorted(item for scorer, item in expected if scorer == "b")
    rows = [row for item in items for row in expected["b", item]]
    assert parsed(replayed.rows(items).to_pylist()) == parsed(rows)
    assert len(list(replayed.recorded())) == len(rows)
    with pytest.raises(ValueError, match="has the scores of a, b, c: name the scorer"):
        RecordedScorer(str(folder.file), "d")
    alone = folder.file.with_name("alone.parquet")
    pq.write_table(read_scores(folder.file, "b").cast(SCORES), alone)
    renamed = RecordedScorer(str(alone), "d").rows(items).to_pylist()
    assert parsed(renamed) == [{**row, "scorer": "d"} for row in parsed(rows)]


def test_a_file_that_is_no_parquet_has_no_scores_by_item(tmp_path):
    (tmp_path / "scores.jsonl").write_text(
        '{"scorer": "a", "item_id": "x", "candidate": 0, "score": 1.0}\n'
    )
    with pytest.raises(ValueError, match="read from Parquet alone"):
        RecordedScorer(str(tmp_path / "scores.jsonl"), "a")


def test_a_row_takes_tens_of_bytes(tmp_path):
    names = [f"{i:032x}" for i in range(10_000)]
    table = pa.table(
        {
            "scorer": pa.repeat("a", 20_000),
            "item_id": [name for name in names for _ in range(2)],
            "candidate": pa.array([0, 1] * 10_000, pa.int32()),
            "score": [1.5] * 20_000,
            **{name: pa.nulls(20_000, SCORES.field(name).type) for name in SCORES.names[4:]},
        }
    ).cast(SCORES)
    folder = ScoreFolder(tmp_path)
    folder.append(table)
    others = [table.set_column(0, "scorer", pa.repeat(name, 20_000)) for name in "bcdef"]
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    for other in others:
        folder.append(other)
    assert folder.scores("b", names[0])
    grown = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert grown / 100_000 < 64

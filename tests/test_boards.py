"""RM-Bench: the board's arithmetic by hand, and its styles from files."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from panoply import boards
from panoply.boards import read_board, section_of
from panoply.boards.rmbench import by_level, levels, style_matrix
from panoply.data.ingest import ingest_pairs
from panoply.data.read import Input
from panoply.data.schema import text_id
from panoply.report.terminal import print_sections

NAN = float("nan")


def item(chosen, rejected):
    """Margins of one item's nine pairs, row by row, with both styles."""
    pairs = [(c - r, i, j) for i, c in enumerate(chosen) for j, r in enumerate(rejected)]
    return map(np.array, zip(*pairs, strict=True))


def test_the_style_matrix_is_the_board_s_by_hand():
    # Two items. Chosen concise 1, detailed 2, markdown 3 against rejected 0, 2, 2 wins
    #   1 > 0 yes, 1 > 2 no, 1 > 2 no;  2 > 0 yes, 2 > 2 a tie, lost, twice;  3 wins all.
    # Chosen 5, 0, 5 against rejected 4, 4, 6 wins
    #   5 > 4, 5 > 4, not 5 > 6;  none;  5 > 4, 5 > 4, not 5 > 6.
    one, two = item([1, 2, 3], [0, 2, 2]), item([5, 0, 5], [4, 4, 6])
    margins, chosen, rejected = (np.concatenate(both) for both in zip(one, two, strict=True))
    matrix = style_matrix(margins, chosen, rejected)
    assert matrix.tolist() == [[1.0, 0.5, 0.0], [0.5, 0.0, 0.0], [1.0, 1.0, 0.5]]
    # hard: (.5 + 0 + 0) / 3; normal: (1 + 0 + .5) / 3; easy: (.5 + 1 + 1) / 3
    found = levels(matrix)
    assert found == pytest.approx({"hard": 1 / 6, "normal": 1 / 2, "easy": 5 / 6, "average": 1 / 2})


def test_domains_count_alike_and_both_safety_files_are_one():
    margins, chosen, rejected = item([9, 9, 9], [0, 0, 0])  # wins all
    lost, subset = -margins, np.array(["chat"] * 9)
    columns = [np.tile(v, 4) for v in (chosen, rejected)]
    subsets = ["chat"] * 9 + ["safety-refuse"] * 9 + ["safety-response"] * 18
    found = by_level(np.concatenate([margins, margins, lost, lost]), *columns, subsets)
    assert list(found["by_domain"]) == ["chat", "safety"]
    assert found["by_domain"]["safety"]["hard"] == pytest.approx(1 / 3)
    assert found["hard"] == found["easy"] == found["average"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["n"] == 36
    assert by_level(margins, chosen, rejected, subset)["average"] == 1


def test_a_missing_margin_is_left_out_and_counted_and_a_tie_is_lost_and_told():
    margins, chosen, rejected = item([9, 9, 9], [0, 0, 9])
    margins = margins.astype(float)
    margins[0] = NAN
    found = by_level(
        np.concatenate([margins, np.ones(9)]),
        np.tile(chosen, 2),
        np.tile(rejected, 2),
        ["code"] * 18,
    )
    assert found["by_domain"]["code"]["matrix"] == [[1.0, 1.0, 0.5]] * 3
    assert (found["n"], found["missing"]) == (17, 1)
    assert found["ties"] == pytest.approx(3 / 17)
    alone = by_level(margins, chosen, rejected, ["code"] * 9)
    assert np.isnan(alone["by_domain"]["code"]["matrix"][0][0])
    assert np.isnan(alone["normal"])
    assert alone["easy"] == 1


def test_a_style_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"\[3\].*0 to 2"):
        style_matrix([1.0, 1.0], [0, 3], [0, 0])
    with pytest.raises(ValueError, match="lengths differ"):
        style_matrix([1.0], [0, 1], [0, 0])


def board_rows():
    prompt = [{"role": "user", "content": "Why?"}]
    return [
        {
            "prompt": prompt,
            "chosen": f"Because {i}.",
            "rejected": f"Not {j // 2}.",  # concise and detailed are the same text
            "source": "THU-KEG/RM-Bench",
            "subset": "safety-refuse",
            "group": "g",
            "meta": json.dumps({"id": 1, "ci": i, "rj": j}),
        }
        for i in range(3)
        for j in range(3)
    ]


def test_styles_come_with_the_ids_that_scores_hang_on(tmp_path):
    rows = board_rows()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rmbench.parquet")
    found = read_board("rmbench", [Input(tmp_path / "rmbench.parquet")])
    wanted = [text_id(row["prompt"], row["chosen"]) for row in rows]
    assert found.chosen_P.tolist() == wanted
    assert found.chosen_style_P.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.rejected_style_P.tolist() == [0, 1, 2] * 3
    assert len(set(found.rejected_P)) == 2
    assert set(found.subset_P) == {"safety-refuse"}


def test_the_published_layout_has_the_styles_of_its_lists(tmp_path):
    row = {
        "id": "1",
        "prompt": "Why?",
        "chosen": ["Because 0.", "Because 1.", "Because 2."],
        "rejected": ["Not 0.", "Not 0.", "Not 1."],
        "domain": "safety-refuse",
    }
    (tmp_path / "total_dataset.json").write_text(json.dumps([row, row | {"prompt": "How?"}]))
    pq.write_table(pa.Table.from_pylist(board_rows()), tmp_path / "rmbench.parquet")
    published = read_board("rmbench", [Input(tmp_path / "total_dataset.json")])
    by_pair = read_board("rmbench", [Input(tmp_path / "rmbench.parquet")])
    assert len(published.chosen_P) == 18
    for name in ("chosen_P", "rejected_P", "subset_P", "chosen_style_P", "rejected_style_P"):
        assert getattr(published, name)[:9].tolist() == getattr(by_pair, name).tolist()
    ingested = ingest_pairs([Input(tmp_path / "total_dataset.json")], tmp_path / "out")
    scored = set(pq.read_table(ingested.path)["chosen_id"].to_pylist())
    assert scored == set(published.chosen_P)
    short = json.dumps([row | {"chosen": ["a", "b"]}])
    (tmp_path / "total_dataset.json").write_text(short)
    with pytest.raises(ValueError, match=r"row 1 has chosen .*lists of 3 chosen and 3 rejected"):
        read_board("rmbench", [Input(tmp_path / "total_dataset.json")])


def test_a_pair_of_a_prompt_trained_on_or_without_a_score_does_not_count(tmp_path):
    pq.write_table(pa.Table.from_pylist(board_rows()), tmp_path / "rmbench.parquet")
    board = read_board("rmbench", [Input(tmp_path / "rmbench.parquet")])
    texts = [*dict.fromkeys(board.chosen_P), *dict.fromkeys(board.rejected_P)]
    row = {name: i for i, name in enumerate(texts[:-1])}  # the last is not scored
    scores = {"gate": np.arange(len(row))[::-1].astype(float)}
    measured = board.measure(row, scores, np.arange(9) < 2)
    assert (measured["num_pairs"], measured["num_seen"]) == (9, 2)
    gate = measured["scorers"]["gate"]
    assert (gate["n"], gate["missing"]) == (4, 3)
    assert board.measure(row, scores, np.ones(9, bool))["scorers"]["gate"]["n"] == 6
    assert read_board("none", []) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"meta": None}, "row 1 has meta None"),
        ({"meta": "{"}, "row 1 has meta '{'"),
        ({"meta": json.dumps({"ci": 3, "rj": 0})}, "ci and rj, 0 to 2"),
    ],
)
def test_rows_without_styles_are_refused_with_the_way_out(change, told, tmp_path):
    rows = board_rows()
    rows[0] |= change
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "board.parquet")
    with pytest.raises(ValueError, match=told):
        read_board("rmbench", [Input(tmp_path / "board.parquet")])
    bare = [{k: v for k, v in row.items() if k != "meta"} for row in rows]
    pq.write_table(pa.Table.from_pylist(bare), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"pairs\.parquet holds no RM-Bench pairs: it has columns"):
        read_board("rmbench", [Input(tmp_path / "pairs.parquet")])


COIN = """
from types import SimpleNamespace
from panoply.report.section import Section

def read(inputs):
    return SimpleNamespace(key_P=list(inputs), measure=lambda row, scores, seen_P: {"n": len(row)})

def section(measured):
    return Section("coin", "Coin", "", [f"{measured['n']} throws"])
"""


def test_a_board_from_outside_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "coin.py").write_text(COIN)
    monkeypatch.setattr(boards, "__path__", [*boards.__path__, str(tmp_path)])
    board = read_board("coin", ["a", "b"])
    assert board.key_P == ["a", "b"]
    assert section_of("coin", board.measure({"x": 0}, {}, [])).blocks == ["1 throws"]


def test_the_table_fits_a_terminal_and_has_the_gate_s_matrix():
    margins, chosen, rejected = item([9, 9, 9], [0, 0, 9])
    found = by_level(margins, chosen, rejected, ["chat"] * 9)
    scorers = {"gate": found, "linear_bt": by_level(-margins, chosen, rejected, ["chat"] * 9)}
    console = Console(file=io.StringIO(), width=80)
    measured = {"num_pairs": 9, "num_seen": 0, "scorers": scorers}
    print_sections([section_of("rmbench", measured)], console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    first = next(line.split() for line in text.splitlines() if line.startswith("gate"))
    assert first == ["gate", "0.333", "0.667", "1.000", "0.667", "0.667"]
    assert text.index("gate") < text.index("linear bt")
    last = next(line.split() for line in text.splitlines() if line.startswith("concise"))
    assert last == ["concise", "1.000", "1.000", "0.000"]

"""Ingestion from files to canonical Parquet: names, ids, draws, quarantine, and bad input."""

import gzip
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoply.data.ingest import Ingested, IngestLimits, ingest_pairs, ingest_ratings
from panoply.data.objectives import check_objectives, is_rating, read_maps
from panoply.data.ratings import RatingMap
from panoply.data.read import Input
from panoply.data.schema import PAIRS, PROMPT, Prompt, ratings_schema, text_id
from panoply.data.summary import summary_lines

Rows = list[dict[str, Any]]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def some_pairs(num: int = 12, **columns: Any) -> Rows:
    return [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad", **columns} for i in range(num)]


def some_ratings(num: int = 12, **columns: Any) -> Rows:
    base = {"response": "r", "quality": 1.0}
    return [{"prompt": f"q{i}", **base, "tone": float(i), **columns} for i in range(num)]


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(result: Ingested) -> Rows:
    return pq.read_table(result.path).to_pylist()


def read_quarantine(result: Ingested) -> Rows:
    return [json.loads(line) for line in result.quarantine.read_text().splitlines()]


# Layout, names, readers


def test_pairs_are_stored_in_the_canonical_columns(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "mine.jsonl", some_pairs(2, subset="x", margin=0.5))
    result = ingest_pairs([Input(file)], tmp_path / "out")
    assert pq.read_schema(result.path).equals(PAIRS)
    first = read(result)[0]
    assert first["prompt"] == user("q0")
    assert first["chosen_id"] == text_id(user("q0"), "good")
    assert (first["chosen_length"], first["rejected_length"]) == (4, 3)
    assert (first["source"], first["subset"], first["margin"]) == ("mine", "x", 0.5)
    assert first["weight"] is None
    assert read_quarantine(result) == []


def test_ratings_are_stored_raw_with_their_maps_beside_them(tmp_path: Path) -> None:
    rows = [{**row, "tone": 1 + i % 3, "is_ok": i % 2 == 0} for i, row in enumerate(some_ratings())]
    rows[0] |= {"tone": None, "is_ok": float("nan")}
    file = write_jsonl(tmp_path / "mine.jsonl", rows)
    scales = {"tone": RatingMap(0, 4, bin_centers=True)}
    result = ingest_ratings([Input(file, scales=scales)], tmp_path / "out")
    names = ["mine-quality", "mine-tone", "mine-is_ok"]
    assert pq.read_schema(result.path).equals(ratings_schema(names))
    stored = read(result)
    assert [stored[0][name] for name in names] == [1.0, None, None]
    assert [stored[1][name] for name in names] == [1.0, 2.0, 0.0]
    assert result.maps == {"mine-tone": scales["tone"], "mine-is_ok": RatingMap(0, 1)}
    assert read_maps(result.path) == result.maps
    assert result.objectives["mine-tone"].num_ratings == 11


def test_every_format_of_the_same_rows_gives_the_same_file(tmp_path: Path) -> None:
    rows = [{**row, "tone": i / 7} for i, row in enumerate(some_ratings(30))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "b.jsonl", rows)
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    float32 = pa.schema([(n, pa.string()) for n in ("prompt", "response")]
                        + [(n, pa.float32()) for n in ("quality", "tone")])  # fmt: skip
    tables = [tmp_path / name for name in ("a.parquet", "b.jsonl", "c.json", "d.jsonl.gz")]
    inputs = [Input(t, "s") for t in tables] + [
        Input(pa.Table.from_pylist(rows, schema=float32), "s")
    ]
    stored = [read(ingest_ratings([each], tmp_path / "out")) for each in inputs]
    assert len(stored[0]) == 30
    assert all(other == stored[0] for other in stored[1:])


def test_a_folder_names_each_file_by_its_stem_and_shards_by_what_they_share(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", some_pairs(3, source="some/repository"))
    for shard in range(2):
        write_parquet(tmp_path / f"a-0000{shard}-of-00002.parquet", some_pairs(2))
    write_jsonl(tmp_path / "pairs.quarantine.jsonl", [{"file": "x"}])
    assert ingest_pairs([Input(tmp_path)], tmp_path / "out").num_rows == {"a": 4, "b": 3}


def test_a_source_column_of_one_value_names_the_data_set_whatever_the_file_is_called(
    tmp_path: Path,
) -> None:
    file = write_jsonl(tmp_path / "xs.jsonl", some_ratings(3, source="xstest"))
    result = ingest_ratings([Input(file)], tmp_path / "out")
    assert result.num_rows == {"xstest": 3}
    assert list(result.objectives) == ["xstest-quality", "xstest-tone"]


def test_several_sources_in_one_file_keep_their_names_unless_one_is_given(tmp_path: Path) -> None:
    rows = some_pairs(2, source="one") + some_pairs(3, source="two")
    file = write_jsonl(tmp_path / "mix.jsonl", rows)
    assert ingest_pairs([Input(file)], tmp_path / "o").num_rows == {"one": 2, "two": 3}
    assert ingest_pairs([Input(file, "all")], tmp_path / "o").num_rows == {"all": 5}


def test_a_table_of_several_sources_keeps_sources_and_objectives(tmp_path: Path) -> None:
    columns: Mapping[str, Any] = {
        "prompt": pa.array([user(f"q{i}") for i in range(4)], PROMPT),
        "response": ["r"] * 4,
        "source": ["s1", "s1", "s2", "s2"],
        "s1-tone": pa.array([1, 2, None, None], pa.float32()),
        "s2-tone": pa.array([None, None, 0, 9], pa.float32()),
    }
    result = ingest_ratings([Input(pa.table(dict(columns)))], tmp_path)
    assert result.num_rows == {"s1": 2, "s2": 2}
    assert result.maps == {"s1-tone": RatingMap(1, 2), "s2-tone": RatingMap(0, 9)}


def test_a_plain_column_of_several_sources_becomes_an_objective_of_each(tmp_path: Path) -> None:
    rows = some_ratings(2, source="one") + some_ratings(3, source="two")
    result = ingest_ratings([Input(pa.Table.from_pylist(rows))], tmp_path)
    counts = {name: seen.num_ratings for name, seen in result.objectives.items()}
    assert counts == {"one-quality": 2, "one-tone": 2, "two-quality": 3, "two-tone": 3}


def test_a_rating_that_first_appears_late_is_found(tmp_path: Path) -> None:
    rows = [*some_ratings(2000), {"prompt": "q", "response": "r", "late": 3}]
    file = write_jsonl(tmp_path / "s.jsonl", rows)
    assert ingest_ratings([Input(file)], tmp_path).objectives["s-late"].num_ratings == 1


# Ids and draws


def test_repeated_rows_stay_and_have_their_own_ids_in_any_order(tmp_path: Path) -> None:
    rows = [*some_pairs(5), *some_pairs(5), *some_pairs(2, margin=1.0)]
    there = read(ingest_pairs([Input(write_jsonl(tmp_path / "a.jsonl", rows), "s")], tmp_path))
    reverse = write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    back = read(ingest_pairs([Input(reverse, "s")], tmp_path))
    ids = {row["row_id"] for row in there}
    assert len(there) == len(ids) == 12
    assert ids == {row["row_id"] for row in back}


def test_the_draw_is_spread_over_the_file_and_moved_by_the_seed(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(some_pairs(3000, source="big") + some_pairs(7, source="small"))

    def draw(seed: int, table: pa.Table) -> list[str]:
        result = ingest_pairs([Input(table)], tmp_path, IngestLimits(100, seed=seed))
        assert result.num_rows == {"big": 100, "small": 7}
        return [row["prompt"][0]["content"] for row in read(result) if row["source"] == "big"]

    drawn = draw(0, table)
    positions = [int(prompt[1:]) for prompt in drawn]
    assert positions == sorted(positions)
    # The mean of 100 uniform draws from 3,000 has a standard error of 87.
    assert abs(sum(positions) / 100 - 1500) < 350
    assert draw(0, table) == drawn
    assert draw(1, table) != drawn
    assert set(draw(0, pa.Table.from_batches(table.to_batches()[::-1]))) == set(drawn)


# Quarantine

BAD_PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "missing prompt"),
    ({"prompt": None}, "missing prompt"),
    ({"prompt": user("  ")}, "empty prompt"),
    (
        {"prompt": [*user("q"), {"role": "assistant", "content": "a"}]},
        "must end with a user or tool turn",
    ),
    ({"prompt": [{"role": "robot", "content": "q"}]}, "unknown role"),
    ({"prompt": [{"role": "user", "content": None}]}, "without text"),
    ({"prompt": ["q"]}, "no record of role"),
    ({"chosen": ""}, "empty response"),
    ({"rejected": None}, "missing response"),
    ({"rejected": "good "}, "identical responses"),
    ({"margin": float("nan")}, "margin is NaN"),
    ({"weight": float("inf")}, "not finite"),
    ({"margin": "large"}, "no number"),
]


@pytest.mark.parametrize(("defect", "reason"), BAD_PAIRS)
def test_a_bad_pair_goes_to_quarantine_with_its_place(
    tmp_path: Path, defect: dict[str, Any], reason: str
) -> None:
    rows = some_pairs(12)
    rows[4] |= defect
    file = write_jsonl(tmp_path / "s.jsonl", rows)
    result = ingest_pairs([Input(file)], tmp_path)
    (line,) = read_quarantine(result)
    assert (line["file"], line["row"]) == (str(file), 5)
    assert reason in line["reason"]
    assert line["excerpt"]
    assert result.num_rows == {"s": 11}
    assert result.num_quarantined == {line["reason"]: 1}


BAD_RATINGS: list[tuple[dict[str, Any], str]] = [
    ({"tone": float("inf")}, "not finite"),
    ({"tone": "high"}, "no number"),
    ({"tone": None, "quality": float("nan")}, "no rating"),
    ({"quality": 9}, "outside its scale"),
    ({"response": "\n"}, "empty response"),
]


@pytest.mark.parametrize(("defect", "reason"), BAD_RATINGS)
def test_a_bad_rating_goes_to_quarantine(
    tmp_path: Path, defect: dict[str, Any], reason: str
) -> None:
    rows = some_ratings(12)
    rows[4] |= defect
    file = write_jsonl(tmp_path / "s.jsonl", rows)
    result = ingest_ratings([Input(file, scales={"quality": RatingMap(1, 5)})], tmp_path)
    (line,) = read_quarantine(result)
    assert reason in line["reason"]
    assert result.num_rows == {"s": 11}


def test_a_bad_completion_does_not_take_its_siblings_along(tmp_path: Path) -> None:
    completions = [{"response": text, "annotations": {}, "overall_score": 5} for text in ("a", "")]
    file = write_jsonl(tmp_path / "s.jsonl", [{"instruction": "q", "completions": completions}])
    result = ingest_ratings([Input(file)], tmp_path, IngestLimits(max_quarantine_share=0.5))
    assert (result.num_rows, result.num_quarantined) == ({"s": 1}, {"empty response": 1})


def test_a_line_that_is_no_record_goes_to_quarantine(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "s.jsonl", some_pairs(10))
    file.write_bytes(file.read_bytes() + b"[1]\n" + b'{"prompt": "q10", "cho')
    result = ingest_pairs([Input(file)], tmp_path)
    assert [line["row"] for line in read_quarantine(result)] == [11, 12]


def test_too_many_bad_rows_stop_the_run_and_leave_only_the_explanation(tmp_path: Path) -> None:
    rows = [*some_pairs(7), *some_pairs(2, chosen=""), *some_pairs(1, rejected="good")]
    file = write_jsonl(tmp_path / "s.jsonl", rows)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"3 of 10 .*empty response \(2\), identical.* \(1\)"):
        ingest_pairs([Input(file)], out)
    assert [path.name for path in out.iterdir()] == ["pairs.quarantine.jsonl"]
    ingest_pairs([Input(file)], out, IngestLimits(max_quarantine_share=0.3))
    assert {p.name for p in out.iterdir()} == {"pairs.parquet", "pairs.quarantine.jsonl"}


def test_a_file_without_a_good_row_is_named(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", some_pairs(100))
    bad = write_jsonl(tmp_path / "bad.jsonl", some_pairs(2, chosen="bad"))
    with pytest.raises(ValueError, match=r"bad\.jsonl holds no good row: identical"):
        ingest_pairs([Input(good), Input(bad)], tmp_path)


def test_an_objective_with_three_ratings_and_a_constant_one_are_left_out(tmp_path: Path) -> None:
    rows = [{**row, "rare": float(i) if i < 3 else None} for i, row in enumerate(some_ratings(40))]
    result = ingest_ratings([Input(pa.Table.from_pylist(rows), "s")], tmp_path)
    objectives = check_objectives(result.objectives)
    assert objectives.kept == ("s-tone",)
    assert set(objectives.left_out) == {"s-rare", "s-quality"}
    assert "s-quality" not in result.maps


def test_no_input_and_impossible_limits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no input"):
        ingest_pairs([], tmp_path)
    with pytest.raises(ValueError, match="max_rows_per_source must be at least 1 or None, got 0"):
        IngestLimits(max_rows_per_source=0)
    with pytest.raises(ValueError, match=r"max_quarantine_share must lie in \[0, 1\], got 2"):
        IngestLimits(max_quarantine_share=2)


# What is told, and readers that are total


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        ({"weight": -1}, "weight is negative"),
        ({"weight": 1e6}, "weight is above 1000"),
        ({"weight": float("nan")}, "weight is NaN"),
        ({"margin": -0.5}, "margin is negative"),
        ({"margin": float("inf")}, "label is not finite"),
        ({"margin": "1e30"}, "margin is above 1000"),
        ({"margin": 10**400}, "label is no number"),
    ],
)
def test_weights_and_margins_beyond_reason_are_refused(
    tmp_path: Path, factor: dict[str, Any], reason: str
) -> None:
    file = write_jsonl(tmp_path / "s.jsonl", [*some_pairs(9), {**some_pairs(1)[0], **factor}])
    assert ingest_pairs([Input(file)], tmp_path).num_quarantined == {reason: 1}


@pytest.mark.parametrize(
    "column",
    [
        *("annotator_id", "timestamp", "createdAt", "seed", "num_tokens", "id", "idx", "rank"),
        *("response_length", "n_votes", "__index_level_0__", "worker", "created_utc"),
        *("Unnamed: 0", "level_0", "upvotes", "avg_logprob", "probability", "latency_ms"),
    ],
)
def test_numbers_whose_names_are_of_rows_and_raters_are_no_ratings_and_told(
    tmp_path: Path, column: str
) -> None:
    rows = [{**row, column: 1000 + i} for i, row in enumerate(some_ratings())]
    result = ingest_ratings([Input(write_jsonl(tmp_path / "s.jsonl", rows))], tmp_path)
    assert list(result.objectives) == ["s-quality", "s-tone"]
    lines = summary_lines(result)
    assert f"s.jsonl: columns of numbers that are not read as ratings: {column}" in lines[-1]
    assert "rating 's-tone': 12 on 0 to 11, as observed" in lines


@pytest.mark.parametrize(
    "name", ["helpfulness", "is_safe", "identity", "overall_score", "rating_1"]
)
def test_names_of_ratings_are_ratings(name: str) -> None:
    assert is_rating(name)


def test_ratings_that_are_constant_or_like_ids_and_columns_of_text_are_told(tmp_path: Path) -> None:
    rows = [{**row, "thread": 10**6 + i, "note": "4"} for i, row in enumerate(some_ratings())]
    result = ingest_ratings([Input(write_jsonl(tmp_path / "s.jsonl", rows))], tmp_path)
    lines = summary_lines(result)
    assert "rating 's-quality': all 12 are 1" in lines
    at = lines.index("rating 's-thread': 12 on 1,000,000 to 1,000,011, as observed")
    assert "as ids, times and counts are" in lines[at + 1]
    assert "--rating-columns" in lines[at + 1]
    assert lines[-1].endswith("s.jsonl: columns that are not read as ratings: note")
    assert sum("as ids" in line for line in lines) == 1


def test_ratings_that_are_text_are_asked_for_by_a_flag_which_reads_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "output": "r", "quality": str(i % 5)} for i in range(10)]
    file = write_jsonl(tmp_path / "s.jsonl", rows)
    with pytest.raises(ValueError, match=r"--rating-columns tone,quality,prompt=post,response="):
        ingest_ratings([Input(file)], tmp_path)
    named = Input(file, columns={"response": "output"}, attributes=("quality",))
    assert ingest_ratings([named], tmp_path).num_rows == {"s": 10}


def test_flags_in_csv_are_ratings_of_0_and_1(tmp_path: Path) -> None:
    lines = [f"q{i},r,{i % 3 > 0}" for i in range(12)]
    (tmp_path / "s.csv").write_text("\n".join(["prompt,response,is_safe", *lines]))
    result = ingest_ratings([Input(tmp_path / "s.csv")], tmp_path)
    (column,) = result.objectives
    assert pq.read_table(result.path)[column].to_pylist() == [float(i % 3 > 0) for i in range(12)]


def test_sources_that_differ_in_how_letters_are_stored_are_one(tmp_path: Path) -> None:
    names = ("caf\u00e9", "cafe\u0301", "caf\u00e9 ")
    rows = [{**row, "source": names[i % 3]} for i, row in enumerate(some_pairs())]
    result = ingest_pairs([Input(write_jsonl(tmp_path / "s.jsonl", rows))], tmp_path)
    assert result.num_rows == {"caf\u00e9": 12}
    rated = [{**row, "source": names[i % 3]} for i, row in enumerate(some_ratings())]
    result = ingest_ratings([Input(write_jsonl(tmp_path / "s.jsonl", rated))], tmp_path)
    assert list(result.objectives) == ["caf\u00e9-quality", "caf\u00e9-tone"]


def test_repeated_and_contradicting_pairs_stay_and_are_counted_and_told(tmp_path: Path) -> None:
    rows = some_pairs(4)
    exchanged = {"prompt": "q0", "chosen": "bad", "rejected": "good"}
    file = write_jsonl(tmp_path / "s.jsonl", [*rows, rows[1], exchanged, {**rows[2], "prompt": ""}])
    result = ingest_pairs([Input(file)], tmp_path)
    assert summary_lines(result) == [
        "pairs: 6 rows, by source s (6)",
        f"pairs: 1 rows in quarantine ({result.quarantine}): missing prompt (1)",
        "pairs: 1 contradict an earlier pair; both stay",
        "pairs: 1 repeat the texts of an earlier row",
    ]


def test_prompts_that_a_template_refuses_go_to_quarantine_with_its_reason(tmp_path: Path) -> None:
    rows = some_pairs(10)
    rows[3]["prompt"] = [{"role": "system", "content": "Be brief."}, *user("q")]
    file = write_jsonl(tmp_path / "s.jsonl", rows)

    def refusal(prompt: Prompt) -> str:
        return "no system turns" if prompt[0]["role"] == "system" else ""

    result = ingest_pairs([Input(file)], tmp_path, refusal=refusal)
    (line,) = read_quarantine(result)
    assert (line["row"], line["reason"]) == (4, "no system turns")


HOSTILE = [
    b'{"prompt": "q\\ud83d", "chosen": "a", "rejected": "b"}',
    b'{"prompt": "q", "chosen": "a\\udc00", "rejected": "b"}',
    b'{"prompt": "q", "chosen": "a", "rejected": "b", "subset": "\\ud800"}',
    b'{"prompt": "q", "chosen": "a", "rejected": "b", "group": "\\ud800"}',
    b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"prompt": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b', "chosen": "a", "rejected": "b"}',
    b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": ' + b"9" * 5000 + b"}",
    b'{"prompt": "\xff\xfe", "chosen": "a", "rejected": "b"}',
    b"\x00\x01\x02",
    b'"text"',
    b"17",
]


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
def test_lines_of_any_bytes_cost_no_other_row(tmp_path: Path, begin: bytes) -> None:
    file = write_jsonl(tmp_path / "s.jsonl", some_pairs(9))
    file.write_bytes(begin + file.read_bytes() + b"\n".join(HOSTILE))
    limits = IngestLimits(max_quarantine_share=1.0)
    result = ingest_pairs([Input(file)], tmp_path, limits)
    assert result.num_rows == {"s": 9}
    assert [line["row"] for line in read_quarantine(result)] == [*range(10, 10 + len(HOSTILE))]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".json", ".parquet", ".jsonl.gz"]))
def test_files_of_any_bytes_are_read_or_refused_in_a_sentence(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"s{suffix}"
        file.write_bytes(data)
        for read in (ingest_pairs, ingest_ratings):
            with pytest.raises(ValueError, match=re.escape(str(file))):
                read([Input(file)], Path(folder) / "out")

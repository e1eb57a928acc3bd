"""Ids and the split: pure functions of what a row says, and the split holds over files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from panoply.data.ingest import ingest_pairs, ingest_ratings
from panoply.data.read import Input
from panoply.data.schema import (
    PARTS,
    SHARES,
    digest,
    fold_of,
    part_of,
    prompt_id,
    ratings_schema,
    split_key,
    text_id,
    uniform,
)
from panoply.data.split import check_parts, check_split, leaked_prompts

SHARED = Path(__file__).parents[2] / "shared" / "data"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def write_tables(folder: Path, num_prompts: int, groups: tuple[str, str]) -> tuple[Path, Path]:
    """Writes ratings and pairs over the same prompts, with each file's own kind of group."""
    prompts = [ask(f"question {i}") for i in range(num_prompts)]
    shared = {"prompt": prompts, "source": ["s"] * num_prompts}
    group = [[f"{name}{i}" if name else None for i in range(num_prompts)] for name in groups]
    ratings = pa.table({**shared, "response": ["r"] * num_prompts, "group": group[0],
                        "quality": [float(i % 5) for i in range(num_prompts)]})  # fmt: skip
    pairs = pa.table({**shared, "chosen": ["a"] * num_prompts, "rejected": ["b"] * num_prompts,
                      "group": group[1]})  # fmt: skip
    return (
        ingest_ratings([Input(ratings)], folder).path,
        ingest_pairs([Input(pairs)], folder).path,
    )


def test_a_digest_depends_on_where_a_part_ends() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert len(digest("a")) == 32


def test_the_text_id_depends_on_prompt_and_response_alone() -> None:
    assert text_id(ask("q"), "r") == text_id(ask("q"), "r")
    assert len({text_id(ask("q"), "r"), text_id(ask("q"), "s"), text_id(ask("p"), "r")}) == 3


def test_the_prompt_id_sees_roles() -> None:
    turns = [{"role": "system", "content": "q"}]
    assert prompt_id(turns) != prompt_id(ask("q"))


def test_case_and_white_space_do_not_move_a_prompt_to_another_part() -> None:
    assert split_key(ask("Why  is\nit?")) == split_key(ask(" why is it? "))
    assert split_key(ask("why")) != split_key(ask("how"))


def test_a_group_replaces_the_prompt_in_the_split() -> None:
    assert split_key(ask("why"), "g") == split_key(ask("how"), "g")
    assert split_key(ask("why"), "") == split_key(ask("why"))


def test_parts_have_their_shares_and_seeds_move_them() -> None:
    keys = [str(i) for i in range(4000)]
    parts = [part_of(key, 0) for key in keys]
    for part, share in zip(PARTS, SHARES, strict=True):
        # Four standard errors of a share of 4,000 draws.
        assert parts.count(part) / 4000 == pytest.approx(share, abs=4 * (share / 4000) ** 0.5)
    assert parts == [part_of(key, 0) for key in keys]
    assert parts != [part_of(key, 1) for key in keys]


def test_folds_are_balanced_and_in_range() -> None:
    folds = [fold_of(str(i), 0, 5) for i in range(4000)]
    assert set(folds) == set(range(5))
    assert all(abs(folds.count(fold) - 800) < 110 for fold in range(5))


def test_draws_for_different_purposes_differ() -> None:
    assert uniform(0, "part", "k") != uniform(0, "fold", "k")
    assert all(0 <= uniform(0, "x", str(i)) < 1 for i in range(100))


def test_objectives_stand_behind_the_fixed_columns_as_nullable_float32() -> None:
    field = ratings_schema(["a-b"]).field(-1)
    assert (field.name, field.type, field.nullable) == ("a-b", pa.float32(), True)


@pytest.mark.parametrize("groups", [("", ""), ("g", "g")])
def test_no_prompt_of_a_test_pair_is_in_a_training_rating(
    tmp_path: Path, groups: tuple[str, str]
) -> None:
    ratings, pairs = write_tables(tmp_path, 300, groups)
    for seed in range(3):
        assert all(check_parts(ratings, seed).values())
        assert check_parts(ratings, seed) == check_parts(pairs, seed)
        check_split(ratings, pairs, seed)


def test_groups_that_differ_between_files_are_found_to_leak(tmp_path: Path) -> None:
    ratings, pairs = write_tables(tmp_path, 300, ("g", "h"))
    leaked = leaked_prompts([ratings], [pairs], 0)
    # Independent parts: a prompt leaks with probability .1 x .7.
    assert 5 < len(leaked) < 45
    with pytest.raises(ValueError, match=rf"{len(leaked)} prompts of test pairs.*`group`"):
        check_split(ratings, pairs, 0)


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["q"] * 9, "chosen": list("abcdefghi"), "rejected": ["z"] * 9})
    path = ingest_pairs([Input(table, "s")], tmp_path).path
    with pytest.raises(ValueError, match="all 9 rows share one prompt"):
        check_parts(path, 0)


def test_a_part_without_rows_is_named(tmp_path: Path) -> None:
    ratings, _ = write_tables(tmp_path, 3, ("", ""))
    with pytest.raises(ValueError, match=r"no row falls into .*3 distinct prompts"):
        check_parts(ratings, 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is not here")
def test_the_split_holds_on_real_files_that_share_prompts(tmp_path: Path) -> None:
    names = ("xstest", "truthfulqa")
    ratings = ingest_ratings(
        [Input(SHARED / "ratings" / f"{n}.parquet") for n in ("xstest", "truthfulqa_judge")],
        tmp_path,
    )
    pairs = ingest_pairs([Input(SHARED / "pairs" / f"{n}.parquet") for n in names], tmp_path)
    assert set(pairs.num_rows) == set(names)
    assert "xstest-complies" in ratings.objectives
    for path in (ratings.path, pairs.path):
        row_ids = pq.read_table(path, columns=["row_id"])["row_id"]
        assert len(row_ids.unique()) == len(row_ids)
    tests = {p: set(pq.read_table(p, columns=["prompt_id"])["prompt_id"].to_pylist())
             for p in (ratings.path, pairs.path)}  # fmt: skip
    assert len(tests[ratings.path] & tests[pairs.path]) > 500
    for seed in range(3):
        check_split(ratings.path, pairs.path, seed)

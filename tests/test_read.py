"""Readers: what is opened is named, and what cannot be opened is told before anything is read."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from panoply.data.ingest import ingest_pairs
from panoply.data.locate import source_name
from panoply.data.read import Input, open_input
from panoply.files import whole_file


def some_rows(num: int = 500) -> list[dict[str, str]]:
    return [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(num)]


def test_a_file_called_train_is_named_by_its_folder() -> None:
    assert source_name("/x/HelpSteer2/train.jsonl.gz").name == "HelpSteer2"
    assert source_name("/x/HelpSteer2/sfhot.parquet").name == "sfhot"


def test_a_missing_column_is_told_before_reading(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps({"prompt": "q", "chosen": "a"}))
    with pytest.raises(ValueError, match=r"s\.jsonl: unknown layout .*\['chosen', 'prompt'\]"):
        ingest_pairs([Input(file)], tmp_path)


@pytest.mark.parametrize("name", ["s.jsonl", "s.parquet", "s.json", "s.jsonl.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"s\..* is empty"):
        open_input(Input(tmp_path / name))


def test_a_file_that_is_being_written_is_not_read_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(some_rows(1)[0]))
    with whole_file(tmp_path / "b.jsonl") as partial_file:
        partial_file.write_text("{")
        assert [opened.name for opened in open_input(Input(tmp_path))] == ["a"]


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("\n\n")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "s.parquet")
    for name in ("s.jsonl", "s.parquet"):
        with pytest.raises(ValueError, match="holds no rows"):
            open_input(Input(tmp_path / name))


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    pq.write_table(pa.Table.from_pylist(some_rows()), tmp_path / "s.parquet")
    rows = "\n".join(json.dumps(row) for row in some_rows()).encode()
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "s.json").write_text(json.dumps(some_rows()))
    for name in ("s.parquet", "s.jsonl.gz", "s.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(len(content) * keep)])
        with pytest.raises(ValueError, match=rf"{name}' is damaged or cut short"):
            ingest_pairs([Input(tmp_path / name)], tmp_path / "out")


@pytest.mark.parametrize("name", ["/nowhere/s.parquet", "data/s.jsonl", "nothing", "./data/s"])
def test_a_path_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name}' does not exist; give a file"):
        open_input(Input(name))


def test_an_unknown_ending_and_a_folder_without_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"s\.csv' ends in none of \.parquet"):
        open_input(Input(tmp_path / "s.csv"))
    with pytest.raises(ValueError, match="holds no file ending in"):
        open_input(Input(tmp_path))


def test_an_unreachable_hub_is_told_with_the_way_out() -> None:
    # In a process of its own: the hub's library reads the variable when it is first imported.
    code = (
        "from panoply.data.read import Input, open_input\n"
        "try: open_input(Input('nvidia/HelpSteer2:validation'))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'nvidia/HelpSteer2' is no local path" in done.stdout
    assert "the hub could not be reached" in done.stdout
    assert "a local file or folder works too" in done.stdout


def test_a_table_without_a_source_needs_a_name(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(some_rows(2))
    with pytest.raises(ValueError, match="give the input a name"):
        ingest_pairs([Input(table)], tmp_path)


@pytest.mark.parametrize("num_rows", [9, 100])
def test_a_source_column_that_names_rows_asks_a_table_for_a_name(
    tmp_path: Path, num_rows: int
) -> None:
    rows = [{**row, "source": f"url{i}"} for i, row in enumerate(some_rows(num_rows))]
    table = pa.Table.from_pylist(rows)
    with pytest.raises(ValueError, match=r"'source' that names data sets; give the input a name"):
        ingest_pairs([Input(table)], tmp_path)
    assert ingest_pairs([Input(table, "s")], tmp_path).num_rows == {"s": num_rows}


def test_a_source_column_that_names_rows_leaves_the_file_its_name_and_is_told(
    tmp_path: Path,
) -> None:
    rows = [{**row, "source": f"thread-{i}"} for i, row in enumerate(some_rows(12))]
    file = tmp_path / "forum.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingested = ingest_pairs([Input(file)], tmp_path / "out")
    assert ingested.num_rows == {"forum": 12}
    (note,) = ingested.notes
    assert "'source' names rows and not data sets; all rows count as source 'forum'" in note


def test_local_files_need_neither_pandas_nor_datasets_nor_torch(tmp_path: Path) -> None:
    file = tmp_path / "s.parquet"
    pq.write_table(pa.Table.from_pylist(some_rows(3)), file)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pandas', 'datasets', 'torch'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from panoply.data.ingest import ingest_pairs\nfrom panoply.data.read import Input\n"
        f"print(ingest_pairs([Input({str(file)!r})], Path({str(tmp_path)!r})).num_rows['s'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "3"

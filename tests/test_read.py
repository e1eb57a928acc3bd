"""Readers: what is opened is named, and what cannot be opened is told before anything is read."""

import bz2
import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from panoply.config.evaluate import EvaluateConfig
from panoply.config.files import FilesConfig, bounds_of_scales, names_of_columns
from panoply.data import text_formats
from panoply.data.hub import HubName
from panoply.data.ingest import IngestLimits, ingest_pairs
from panoply.data.locate import source_name
from panoply.data.read import Input, named_inputs, open_input, open_inputs
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
    (tmp_path / "s.xlsx").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"s\.xlsx' ends in none of \.parquet"):
        open_input(Input(tmp_path / "s.xlsx"))
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


# Formats, places and names


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.json.gz", "bomb.ndjson.bz2"])
def test_a_small_file_with_one_huge_record_is_refused_before_it_is_held(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(text_formats, "LONGEST_LINE", 10_000)
    monkeypatch.setattr(text_formats, "LONGEST_DOCUMENT", 50_000)
    compress = bz2.compress if name.endswith("bz2") else gzip.compress
    row = b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n'
    many = (b"[" if ".json." in name else b"") + row
    (tmp_path / name).write_bytes(compress(many + b'{"prompt": "' + b"a" * 200_000 + b'"}'))
    with pytest.raises(ValueError, match=r"more than [15]0,000 bytes"):
        list(open_input(Input(str(tmp_path / name))))
    whole = b"[" + b",".join([row] * 300) + b"]"  # one value on many lines, and on one
    for content in (whole, whole.replace(b"\n", b"")):
        (tmp_path / "fine.json").write_bytes(content)
        [opened] = open_input(Input(str(tmp_path / "fine.json")))
        assert len(list(opened.rows(["prompt"]))) == 300


EVERY_WAY = ["csv", "tsv", "arrow", "feather", "ndjson", "jsonl.zst", "csv.gz", "json.bz2"]


def write_as(path: Path, rows: list[dict[str, str]]) -> Path:
    """Writes rows in the format that the file's endings name."""
    table = pa.Table.from_pylist(rows)
    kind = path.name.split(".")[1]
    if kind in ("arrow", "feather"):
        make = pa.ipc.new_stream if kind == "arrow" else pa.ipc.new_file
        with make(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        return path
    text = io.StringIO()
    if kind in ("csv", "tsv"):
        writer = csv.DictWriter(text, rows[0], delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
    elif kind == "json":
        json.dump({"data": rows, "version": 1}, text, indent=1)
    else:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    with pa.output_stream(str(path), compression="detect") as file:
        file.write(text.getvalue().encode())
    return path


@pytest.mark.parametrize("ending", EVERY_WAY)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    rows = [{**row, "chosen": f'good, "{i}"\nü', "margin": "1.5"} for i, row in
            enumerate(some_rows(20))]  # fmt: skip
    (opened,) = open_input(Input(write_as(tmp_path / f"s.{ending}", rows)))
    assert list(opened.rows(None)) == rows
    assert opened.columns["margin"] is (ending[:3] in ("csv", "tsv"))
    assert not opened.columns["chosen"]
    assert opened.name == "s"


def test_a_csv_line_with_too_many_cells_or_no_text_is_quarantined_alone(tmp_path: Path) -> None:
    lines = [f"q{i},good,bad,{i}" for i in range(10)]
    lines[3] += ",more"
    lines[5] = "q5,,bad,5"
    (tmp_path / "s.csv").write_text("\ufeffprompt,chosen,rejected,margin\n" + "\n".join(lines))
    result = ingest_pairs([Input(tmp_path / "s.csv")], tmp_path)
    quarantined = [json.loads(line) for line in result.quarantine.read_text().splitlines()]
    assert [line["row"] for line in quarantined] == [4, 6]
    assert result.num_rows == {"s": 8}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a,a\n1,2\n", "names a column twice"),
        (json.dumps([{"a": 1}]).encode("utf-16"), "UTF-16"),
        (b'{"train": [{"a": 1}],\n"test": [{"a": 1}]}', "several lists .train, test.: one file"),
        (b'{"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]}', "columns and no records"),
        (b'{"prompt": {"0": "q"}, "chosen": {"0": "a"}}', "columns and no records"),
        (b'[{"a": 1},\n{"a": 2},\n]', "a comma stands behind its last record"),
        (b'[{"a": 1},\n{"a":', "damaged or cut short"),
        (b"a,b\n1,2\n".decode().encode("utf-16"), "UTF-16"),
        (b'a,b\n1,2\n"say \\"hi\\"",2\n', r"no CSV at line 3 .*write a quote inside a cell twice"),
        (gzip.compress(b'{"a": 1}\n'), r"compressed by gzip: let its name end in \.gz"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_records_says_why(tmp_path: Path, content: bytes, told: str) -> None:
    is_csv = content.startswith((b"a,", "a,".encode("utf-16")))
    path = tmp_path / ("s.csv" if is_csv else "s.json")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        open_input(Input(path))


def records(*names: str) -> list[dict[str, str]]:
    return [{"prompt": f"q{name}", "chosen": "good", "rejected": "bad"} for name in names]


ONE, TWO = records("1", "2")
READ_ANYWAY = {
    "commas behind the lines": ("jsonl", f"{json.dumps(ONE)},\n{json.dumps(TWO)}\n"),
    "records on one line": ("jsonl", json.dumps(ONE) + json.dumps(TWO)),
    "records over several lines": ("jsonl", "\n".join(json.dumps(r, indent=1) for r in (ONE, TWO))),
    "the same in a .json": ("json", "\n".join(json.dumps(r, indent=1) for r in (ONE, TWO))),
    "all records on one line": ("json", json.dumps({"version": 1, "data": [ONE, TWO]})),
    "an ending in capitals": ("JSONL", f"{json.dumps(ONE)}\n{json.dumps(TWO)}\n"),
    "semicolons": ("csv", "prompt;chosen;rejected\nq1;good;bad\nq2;good;bad\n"),
    "semicolons and a mark": ("csv", "\ufeffprompt;chosen;rejected\r\nq1;good;bad\r\nq2;good;bad"),
    "spaces behind commas": (
        "csv",
        'prompt, chosen, rejected\n"q1", "good", "bad"\nq2, good, bad\n',
    ),
    "tabs": ("csv", "prompt\tchosen\trejected\nq1\tgood\tbad\nq2\tgood\tbad\n"),
}


@pytest.mark.parametrize("way", READ_ANYWAY)
def test_records_are_read_as_programs_write_them(way: str, tmp_path: Path) -> None:
    ending, content = READ_ANYWAY[way]
    path = tmp_path / f"s.{ending}"
    path.write_text(content)
    (opened,) = open_input(Input(path))
    assert list(opened.rows(None)) == [ONE, TWO]
    (opened,) = open_input(Input(tmp_path))
    assert list(opened.rows(None)) == [ONE, TWO]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "row",
    [
        {**ONE, "prompt": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}], "rejected_response": "bad"},
    ],
)
def test_one_record_alone_is_a_row(row: dict[str, Any], indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(row, indent=indent))
    (opened,) = open_input(Input(tmp_path / "s.json"))
    assert list(opened.rows(None)) == [row]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "q", "prompt": "p", "chosen": "a", "rejected": "b"}', "a key stands twice"),
        (b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}', "line is no UTF-8"),
        (b'{"prompt": "q", "chos', "line is no record"),
    ],
)
def test_a_line_that_is_no_record_says_why(line: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(json.dumps(ONE).encode() + b"\n" + line + b"\n")
    result = ingest_pairs(
        [Input(tmp_path / "s.jsonl")], tmp_path, IngestLimits(max_quarantine_share=0.5)
    )
    assert [why.startswith(reason) for why in result.num_quarantined] == [True]


def test_texts_that_parquet_holds_as_bytes_are_texts_and_columns_of_one_name_are_refused(
    tmp_path: Path,
) -> None:
    values = [pa.array([text.encode()], pa.binary()) for text in ("q1", "good", "bad")]
    path = tmp_path / "s.parquet"
    pq.write_table(pa.Table.from_arrays(values, list(ONE)), path)
    (opened,) = open_input(Input(path))
    assert list(opened.rows(None)) == [ONE]
    pq.write_table(pa.Table.from_arrays(values, ["prompt", "chosen", "chosen"]), path)
    with pytest.raises(ValueError, match="has two columns 'chosen'"):
        open_input(Input(path))


def test_what_datasets_saved_is_read_split_by_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "mine" / split
        folder.mkdir(parents=True)
        for shard in range(2):
            write_as(folder / f"data-0000{shard}-of-00002.arrow", some_rows(3))
        names = [f"data-0000{shard}-of-00002.arrow" for shard in range(2)]
        state = {"_data_files": [{"filename": name} for name in names]}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "mine" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    whole = ingest_pairs([Input(tmp_path / "mine")], tmp_path / "out")
    assert whole.num_rows == {"mine": 12}
    (note,) = whole.notes
    assert note.endswith("mine: all its splits are read (test, train); to read one, name it")
    train = ingest_pairs([Input(tmp_path / "mine" / "train")], tmp_path / "out")
    assert (train.num_rows, train.notes) == ({"mine": 6}, ())
    (tmp_path / "mine" / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data-00001-of-00002\.arrow"):
        open_input(Input(tmp_path / "mine"))
    (tmp_path / "mine" / "dataset_dict.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_dict\.json' is no whole JSON"):
        open_input(Input(tmp_path / "mine"))


def test_a_folder_that_lacks_shards_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for shard in (0, 2):
        write_as(tmp_path / "mine" / f"train-0000{shard}-of-00003.jsonl", some_rows(2))
    result = ingest_pairs([Input(tmp_path / "mine")], tmp_path / "out")
    (note,) = result.notes
    assert "2 of 3 shards of" in note
    file = Input(tmp_path / "mine" / "train-00000-of-00003.jsonl")
    assert ingest_pairs([file], tmp_path / "out").notes == ()


def test_a_pattern_a_nested_folder_and_uris_are_read(tmp_path: Path) -> None:
    (tmp_path / "repo" / "data").mkdir(parents=True)
    for shard in range(2):
        write_as(tmp_path / "repo" / "data" / f"train-0000{shard}-of-00002.jsonl.zst", some_rows(2))
    memory = fsspec.filesystem("memory")
    content = json.dumps(some_rows(1)[0]).encode()
    memory.pipe({"/bucket/a.jsonl": content, "/bucket/b.jsonl": content, "/bucket/c.txt": b"x"})
    for where, names in {
        f"{tmp_path}/repo/data/train-*.jsonl.zst": ["repo"] * 2,
        f"{tmp_path}/**/train-00001*": ["repo"],
        str(tmp_path / "repo"): ["repo"] * 2,
        f"file://{tmp_path}/repo/data": ["repo"] * 2,
        "memory://bucket/a.jsonl": ["a"],
        "memory://bucket": ["a", "b"],
        "memory://bucket/[ab].jsonl": ["a", "b"],
    }.items():
        files = open_input(Input(where))
        assert [opened.name for opened in files] == names, where
        assert all(len(list(opened.rows(None))) in (1, 2) for opened in files), where
    assert open_input(Input("memory://bucket/a.jsonl"))[0].label == "memory://bucket/a.jsonl"


@pytest.mark.parametrize("uri", ["memory://bucket/none.jsonl", "nowhere://x/y.jsonl"])
def test_a_uri_without_a_file_is_named(uri: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=uri):
        open_input(Input(uri))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("o/n", HubName("o/n")),
        ("o/n:test", HubName("o/n", None, "test")),
        ("o/n:train[:1000]", HubName("o/n", None, "train[:1000]")),
        ("o/n@v1.0", HubName("o/n", None, "train", "v1.0")),
        ("o/n/c-1:test@refs/pr/2", HubName("o/n", "c-1", "test", "refs/pr/2")),
        ("./n/x", None),
        ("n", None),
        ("o/n/c/d", None),
    ],
)
def test_a_hub_name_has_a_configuration_a_split_and_a_revision(
    text: str, name: HubName | None
) -> None:
    assert HubName.parse(text) == name


def test_files_of_one_name_are_named_apart_by_their_folders(tmp_path: Path) -> None:
    places = ("east/raw", "west/raw", "north")
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        write_as(tmp_path / place / "pairs.jsonl", some_rows(2))
    inputs = [Input(tmp_path / place / "pairs.jsonl") for place in places]
    assert [each.name for each in open_inputs(inputs[:1])] == ["pairs"]
    assert [each.name for each in open_inputs(inputs[:2])] == ["east-raw-pairs", "west-raw-pairs"]
    assert [each.name for each in open_inputs([inputs[0], inputs[2]])] == [
        "raw-pairs",
        "north-pairs",
    ]
    assert [each.name for each in open_inputs([inputs[0], inputs[0]])] == ["pairs", "pairs"]
    named = Input(inputs[1].data, "mine")
    assert [each.name for each in open_inputs([inputs[0], named])] == ["pairs", "mine"]


def test_columns_are_read_under_the_names_that_flags_give(tmp_path: Path) -> None:
    rows = [{"q": f"q{i}", "better": "good", "chosen": "odd", "worse": "bad"} for i in range(9)]
    file = write_as(tmp_path / "s.jsonl", rows)
    other = write_as(tmp_path / "plain.jsonl", some_rows(3))
    flags = FilesConfig(columns=("chosen=better,rejected=worse", "prompt=q"), source=("a", "b"))
    result = ingest_pairs(named_inputs([str(file), str(other)], flags), tmp_path / "out")
    assert result.num_rows == {"a": 9, "b": 3}
    assert set(pq.read_table(result.path)["chosen"].to_pylist()) == {"good"}
    wrong = named_inputs([str(file)], FilesConfig(columns=("chosen=best",)))
    with pytest.raises(ValueError, match=r"column 'best', which no file has.*--columns chosen="):
        ingest_pairs(wrong, tmp_path / "out")


@pytest.mark.parametrize("columns", [("chosen",), ("=a",), ("chosen=a,chosen=b",)])
def test_a_flag_of_columns_that_maps_nothing_is_refused(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="`columns` must be"):
        names_of_columns(columns)


@pytest.mark.parametrize("scale", ["tone", "tone=5:1", "tone=a:b", "=1:5"])
def test_a_scale_without_two_ends_is_refused(scale: str) -> None:
    assert bounds_of_scales(["tone=1:5,quality=0:4"]) == {"tone": (1, 5), "quality": (0, 4)}
    with pytest.raises(ValueError, match="`rating_scales` must be of the form"):
        bounds_of_scales([scale])


def test_as_many_sources_as_files_or_one_are_named() -> None:
    assert EvaluateConfig(model="m", pairs=("a", "b"), source=("x", "y")).source == ("x", "y")
    with pytest.raises(ValueError, match=r"`source` must be one name, or as many.*pairs \(3\)"):
        EvaluateConfig(model="m", pairs=("a", "b", "c"), source=("x", "y"))

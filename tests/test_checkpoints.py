"""Checkpoints: the newest whole one is resumed from, and a full disk leaves none that is not."""

import resource
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from panoply.files import create_once, whole_file, whole_folder, write_whole
from panoply.laser.log import REWARDS, Log
from panoply.preference.checkpoint import (
    load_tensors,
    newest_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from tests.builders.tokenizers import chat_tokenizer

DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:600] + bytes([content[600] ^ 1]) + content[601:],
}


def state_of(step):
    return {"params": {"w": torch.full((300,), float(step))}, "history": [{"step": step}]}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_good_checkpoint_is_taken_where_the_newest_is_damaged(damage, tmp_path, caplog):
    for step in (2, 4):
        save_checkpoint(state_of(step), tmp_path, step)
    assert newest_checkpoint(tmp_path)["history"] == [{"step": 4}]
    file = tmp_path / "step-00000004" / "state.pt"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    state = newest_checkpoint(tmp_path)
    assert torch.equal(state["params"]["w"], torch.full((300,), 2.0))
    assert str(file) in caplog.text


def test_where_all_are_damaged_training_begins_anew(tmp_path, caplog):
    save_checkpoint(state_of(2), tmp_path, 2)
    (tmp_path / "step-00000002" / "seal.json").unlink()
    assert newest_checkpoint(tmp_path) is None
    assert "step-00000002" in caplog.text


def test_a_checkpoint_older_than_seals_is_resumed_from(tmp_path):
    torch.save(state_of(3), tmp_path / "step-00000003.pt")
    assert newest_checkpoint(tmp_path)["history"] == [{"step": 3}]
    save_checkpoint(state_of(5), tmp_path, 5)
    remove_checkpoints(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    remove_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_tensors_runs_no_code(tmp_path):
    torch.save({"x": print}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt' is damaged .*: look at it"):
        load_tensors(tmp_path / "a.pt", "look at it")


# A full disk


@contextmanager
def full_disk():
    """No file grows beyond 4 kB, as on a disk that is full: every write beyond fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


BIG = 50_000


def write_model(root):
    with whole_folder(root / "model") as built:
        save_file({"w": torch.zeros(BIG)}, built / "model.safetensors")


def write_tokenizer(root):
    with whole_folder(root / "tokenizer") as built:
        chat_tokenizer().save_pretrained(built)


def write_array(root):
    with whole_file(root / "a.npy") as partial:
        np.save(partial, np.zeros(BIG))


def write_table(root):
    with whole_file(root / "a.parquet") as partial:
        pq.write_table(pa.table({"x": np.random.default_rng(0).random(BIG)}), partial)


def write_segment(root):
    names = [f"{i:040d}" for i in range(4000)]
    empty = {name: [None] * len(names) for name in REWARDS.names}
    table = pa.table(empty | {"failure": names}, schema=REWARDS)
    Log(str(root / "log"), ("a",)).write("rewards", 0, table)


WRITERS = {
    "text": lambda root: write_whole(root / "a.txt", "x" * BIG),
    "record": lambda root: create_once(root / "b.txt", b"x" * BIG),
    "checkpoint": lambda root: save_checkpoint({"w": torch.zeros(BIG)}, root, 1),
    "model": write_model,
    "tokenizer": write_tokenizer,
    "array": write_array,
    "table": write_table,
    "segment": write_segment,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_an_error_of_the_system_for_every_writer_and_leaves_nothing(name, tmp_path):
    with full_disk(), pytest.raises(OSError, match=r"File too large|written") as told:
        WRITERS[name](tmp_path)
    assert isinstance(told.value, OSError)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    WRITERS[name](tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()]

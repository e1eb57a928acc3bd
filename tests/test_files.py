"""Files that are whole or absent, whatever happens to their writers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from panoply.files import whole_file, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "a.json"
    with whole_file(target) as partial:
        partial.write_text("new")
        assert not target.exists()
        assert partial.parent == tmp_path
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def test_a_writer_that_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    target = tmp_path / "a.json"
    write_whole(target, "old")

    def fail():
        with whole_file(target) as partial:
            partial.write_text("half of the n")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_writers_of_one_path_do_not_meet(tmp_path):
    target = tmp_path / "a.txt"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_whole(target, str(i) * 10_000), range(8)))
    text = target.read_text()
    assert len(text) == 10_000
    assert len(set(text)) == 1
    assert names(tmp_path) == ["a.txt"]


def test_the_ending_stays_so_that_numpy_adds_none(tmp_path):
    target = tmp_path / "a.npz"
    with whole_file(target) as partial:
        np.savez(partial, x=np.arange(3))
    with np.load(target) as arrays:
        assert arrays["x"].tolist() == [0, 1, 2]
    assert names(tmp_path) == ["a.npz"]


def test_text_is_utf_8_and_its_line_ends_stay(tmp_path):
    write_whole(tmp_path / "a.txt", "é\n∑\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\n∑\n".encode()


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        write_whole(tmp_path / "missing" / "a.txt", "x")

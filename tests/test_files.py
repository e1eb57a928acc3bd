"""Files that are whole or absent, whatever happens to their writers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from panoply.files import (
    create_once,
    read_json,
    remove_partial_files,
    whole_file,
    whole_folder,
    write_whole,
)


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


def test_a_folder_appears_when_it_is_whole_and_takes_the_place_of_an_earlier_one(tmp_path):
    for content in ("old", "new"):
        with whole_folder(tmp_path / "m") as built:
            (built / "sub").mkdir()
            (built / "sub" / "a.txt").write_text(content)
            assert built.parent == tmp_path
    assert (tmp_path / "m" / "sub" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["m"]


def test_a_folder_whose_writer_fails_after_any_file_leaves_the_old_one_alone(tmp_path):
    with whole_folder(tmp_path / "m") as built:
        (built / "a.txt").write_text("old")

    def stop_after(num):
        with whole_folder(tmp_path / "m") as built:
            for i in range(3):
                if i == num:
                    raise RuntimeError("killed")
                (built / f"{i}.txt").write_text("new")

    for num in range(3):
        with pytest.raises(RuntimeError, match="killed"):
            stop_after(num)
        assert names(tmp_path) == ["m"]
        assert names(tmp_path / "m") == ["a.txt"]


def test_a_folder_that_somebody_else_made_meanwhile_may_stay(tmp_path):
    with whole_folder(tmp_path / "m", keeps_earlier=True) as built:
        (built / "a.txt").write_text("late")
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "a.txt").write_text("early")
    assert (tmp_path / "m" / "a.txt").read_text() == "early"
    assert names(tmp_path) == ["m"]


def test_of_many_writers_of_a_file_that_exists_once_one_succeeds(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda i: create_once(tmp_path / "a", str(i).encode()), range(8)))
    assert created.count(True) == 1
    assert (tmp_path / "a").read_text() == str(created.index(True))
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": "\xff"}', b"[" * 100_000]
)
def test_a_damaged_file_is_named_in_one_sentence_with_what_to_do(content, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json' is damaged \(.+\): take another") as told:
        read_json(file, "take another folder")
    assert "\n" not in str(told.value)


def test_a_file_that_is_missing_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "config.json")


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / "sub" / ".m.0f.part").mkdir(parents=True)
    (tmp_path / "sub" / ".m.0f.part" / "weights").touch()
    (tmp_path / ".a.1f.part.json").touch()
    (tmp_path / "a.json").touch()
    remove_partial_files(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "sub"]

"""The feature store finds by id what it wrote, whole, and only that."""

from pathlib import Path

import numpy as np
import pytest

from panoply.data.features import FeatureStore, ShardCache, open_store

KEY = {"weights": "a", "depths": [1, 2]}


def table(ids, width=3):
    """Features that tell from which id they are."""
    x = np.array([[ord(name) + j / 10 for j in range(width)] for name in ids], dtype=np.float32)
    return {"last_1": x, "mean_1": -x[:, :2]}


def gathered(store, ids, columns=("last_1", "mean_1")):
    """Features in the order of the ids."""
    rows_of = {}
    for rows, values in store.gather(store.find("texts", list(ids)), columns):
        rows_of.update(zip(rows.tolist(), values, strict=True))
    return np.stack([rows_of[i] for i in range(len(ids))])


def test_features_come_back_by_id_in_any_order_with_columns_side_by_side(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    store.write("texts", list("abc"), table("abc"))
    store.write("texts", list("def"), table("def"))
    wanted = table("fbbad")
    found = gathered(store, "fbbad")
    assert np.array_equal(found, np.hstack([wanted["last_1"], wanted["mean_1"]]))
    assert found.dtype == np.float32
    swapped = gathered(store, "fbbad", ("mean_1", "last_1"))
    assert np.array_equal(swapped, np.hstack([wanted["mean_1"], wanted["last_1"]]))


def test_prompts_and_texts_are_found_apart(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    store.write("prompts", ["a"], {"gate_1": np.ones((1, 2), dtype=np.float32)})
    assert store.find("texts", ["a"]).missing_N.tolist() == [True]
    assert store.find("prompts", ["a", "b"]).missing_N.tolist() == [False, True]


def test_writing_the_same_ids_again_adds_nothing(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    first = store.write("texts", list("ab"), table("ab"))
    assert store.write("texts", list("ab"), table("ab")) == first
    store.write("texts", list("bc"), table("bc"))
    assert len(store.shards("texts")) == 2
    assert np.array_equal(gathered(store, "cab", ["last_1"]), table("cab")["last_1"])


def test_another_key_is_another_folder(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    store.write("texts", ["a"], table("a"))
    for other in ({**KEY, "weights": "b"}, {**KEY, "depths": [1]}):
        assert FeatureStore(str(tmp_path), other).find("texts", ["a"]).missing_N.all()
    same = FeatureStore(str(tmp_path), dict(reversed(KEY.items())))
    assert same.path == store.path


def test_a_half_written_shard_is_no_shard(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    name = store.write("texts", ["a"], table("a"))
    whole = Path(store.path, name).read_bytes()
    Path(store.path, "texts-0.parquet.1f.part").write_bytes(whole[: len(whole) // 2])
    assert store.shards("texts") == [name]
    assert store.find("texts", ["a"]).missing_N.tolist() == [False]


def test_nothing_but_whole_files_is_left_behind(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    name = store.write("texts", ["a"], table("a"))
    assert {p.name for p in Path(store.path).iterdir()} == {"key.json", name}


def test_missing_ids_are_an_error_that_counts_them(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    store.write("texts", ["a"], table("a"))
    found = store.find("texts", list("axy"))
    assert found.missing_N.tolist() == [False, True, True]
    with pytest.raises(KeyError, match="2 of 3"):
        list(store.gather(found, ["last_1"]))
    assert [rows.tolist() for rows, _ in store.gather(found[~found.missing_N], ["last_1"])] == [[0]]


def test_two_stores_on_one_root_see_what_the_other_wrote(tmp_path):
    one, two = FeatureStore(str(tmp_path), KEY), FeatureStore(str(tmp_path), KEY)
    assert one.find("texts", ["a"]).missing_N.all()
    two.write("texts", ["a"], table("a"))
    assert np.array_equal(gathered(one, "a", ["last_1"]), table("a")["last_1"])


def test_a_file_uri_names_the_same_folder_as_its_path(tmp_path):
    folder = tmp_path / "a folder"
    by_path, by_uri = FeatureStore(str(folder), KEY), FeatureStore(folder.as_uri(), KEY)
    by_uri.write("texts", ["a"], table("a"))
    assert not by_path.find("texts", ["a"]).missing_N.any()
    assert open_store(folder.as_uri())[1] == str(folder)


def test_shards_that_were_read_last_are_kept_as_far_as_they_fit():
    cache, num_read = ShardCache(max_bytes=2 * 400), []

    def get(name):
        def read():
            num_read.append(name)
            return np.full(100, ord(name), np.float32)

        return cache.get(name, read)

    for name in "abab":
        assert (get(name) == ord(name)).all()
    assert num_read == ["a", "b"]
    get("c")  # b was used after a
    get("b")
    assert num_read == ["a", "b", "c"]
    get("a")
    assert num_read == ["a", "b", "c", "a"]
    assert cache.num_bytes == 800
    assert (cache.get("large", lambda: np.zeros(1000, np.float32)) == 0).all()
    assert (cache.num_bytes, len(cache.kept)) == (0, 0)


def test_a_shard_that_is_damaged_or_written_anew_after_it_was_read_is_read_again(tmp_path):
    store = FeatureStore(str(tmp_path), KEY)
    name = store.write("texts", list("abc"), table("abc"))
    expected = gathered(store, "abc")
    shard = Path(store.path) / name
    content = bytearray(shard.read_bytes())
    shard.write_bytes(content[:-30])
    with pytest.raises(ValueError, match=name):
        store.matrix(name, ("last_1", "mean_1"))
    shard.unlink()
    with pytest.raises(OSError, match=name):
        store.matrix(name, ("last_1", "mean_1"))
    store.write("texts", list("abc"), table("abc"))
    assert np.array_equal(gathered(store, "abc"), expected)

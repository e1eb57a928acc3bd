"""The feature store finds by id what it wrote, whole, and only that."""

from pathlib import Path

import numpy as np
import pytest

from panoply.data.features import FeatureStore, open_store

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

"""The feature store finds by id what it wrote, and only that."""

import numpy as np
import pytest

from panoply.data.features import FeatureStore


def test_features_come_back_by_id_in_any_order(tmp_path):
    store = FeatureStore(str(tmp_path), {"weights": "a"})
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    store.write("texts", list("abc"), {"last_1": x[:3], "mean_1": -x[:3]})
    store.write("texts", list("def"), {"last_1": x[3:], "mean_1": -x[3:]})
    found = FeatureStore(str(tmp_path), {"weights": "a"}).find("texts", list("fbad"))
    got = np.empty((4, 4), dtype=np.float32)
    for rows, values in store.gather(found, ("last_1", "mean_1")):
        got[rows] = values
    wanted = x[[5, 1, 0, 3]]
    assert np.array_equal(got, np.hstack([wanted, -wanted]))


def test_a_missing_id_is_an_error_and_another_key_another_folder(tmp_path):
    store = FeatureStore(str(tmp_path), {"weights": "a"})
    store.write("texts", ["a"], {"mean_1": np.ones((1, 2), dtype=np.float32)})
    with pytest.raises(KeyError, match="1 of 2"):
        list(store.gather(store.find("texts", ["a", "z"]), ("mean_1",)))
    other = FeatureStore(str(tmp_path), {"weights": "b"})
    assert other.find("texts", ["a"]).missing_N.all()

"""Rating maps: published formulas, inverses, and what cannot be mapped."""

import json

import numpy as np
import pytest

from panoply.data.objectives import (
    Observed,
    check_objectives,
    complete_maps,
    merge_scales,
    objective_name,
)
from panoply.data.ratings import RatingMap


def test_a_scale_is_mapped_to_the_unit_interval() -> None:
    scale = RatingMap(1, 5)
    np.testing.assert_allclose(scale.to_unit([1, 2, 3, 5]), [0, 0.25, 0.5, 1])


def test_bin_centers_are_those_of_armorm() -> None:
    raw = np.arange(5)
    np.testing.assert_allclose(RatingMap(0, 4, bin_centers=True).to_unit(raw), (raw + 0.5) / 5)


@pytest.mark.parametrize("scale", [RatingMap(-3, 7.5), RatingMap(1, 10, bin_centers=True)])
def test_a_map_is_undone_by_its_inverse_also_beyond_the_scale(scale: RatingMap) -> None:
    raw = np.random.default_rng(0).uniform(-20, 20, size=(7, 3))
    np.testing.assert_allclose(scale.to_raw(scale.to_unit(raw)), raw)
    np.testing.assert_allclose(scale.to_unit(scale.to_raw(raw)), raw)


def test_not_rated_stays_not_rated() -> None:
    scale = RatingMap(0, 4, bin_centers=True)
    assert np.isnan(scale.to_unit([np.nan, 1])).tolist() == [True, False]
    assert np.isnan(scale.to_raw([np.nan, 1])).tolist() == [True, False]


def test_a_map_survives_json() -> None:
    scale = RatingMap(0.5, 4, bin_centers=True)
    assert RatingMap.from_dict(json.loads(json.dumps(scale.to_dict()))) == scale


def test_an_unnamed_scale_is_the_observed_range_and_a_named_one_stays() -> None:
    declared = {"b": RatingMap(0, 10)}
    seen = {"a": Observed(3, 1, 3), "b": Observed(3, 1, 3)}
    assert complete_maps(seen, declared) == {"a": RatingMap(1, 3), "b": RatingMap(0, 10)}


def test_ratings_that_do_not_vary_and_no_ratings_have_no_scale() -> None:
    assert complete_maps({"constant": Observed(2, 2, 2), "none": Observed()}, {}) == {}


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_an_empty_scale_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low < high"):
        RatingMap(low, high)


def test_a_float32_rating_at_the_end_of_its_scale_lies_on_it() -> None:
    scale = RatingMap(0.1, 0.3)
    assert scale.holds(float(np.float32(0.3)))
    assert scale.holds(float(np.float32(0.1)))
    assert not scale.holds(0.31)


def test_an_objective_bears_its_source_once() -> None:
    assert objective_name("bagel", "quality") == "bagel-quality"
    assert objective_name("bagel", "bagel-quality") == "bagel-quality"
    assert objective_name("a", "b-quality", sources=("a", "b")) == "b-quality"


def test_objectives_that_cannot_be_learned_are_left_out_by_name() -> None:
    observed = {"a": Observed(100, 1, 5), "b": Observed(3, 1, 5), "c": Observed(50, 2, 2)}
    objectives = check_objectives(observed)
    assert objectives.kept == ("a",)
    assert set(objectives.left_out) == {"b", "c"}
    assert "3 ratings" in objectives.left_out["b"]
    assert "constant" in objectives.left_out["c"]


def test_no_objective_left_is_an_error_that_names_each() -> None:
    with pytest.raises(ValueError, match=r"b: 3 ratings.*c: 0 ratings"):
        check_objectives({"b": Observed(3, 1, 5), "c": Observed()})


def test_a_named_scale_replaces_the_published_one() -> None:
    published = {"quality": RatingMap(1, 5)}
    names = {"x-quality": "quality"}
    assert merge_scales(names, published, {}, {}) == {"x-quality": RatingMap(1, 5)}
    for key in ("quality", "x-quality"):
        merged = merge_scales(names, published, {key: RatingMap(0, 9)}, {})
        assert merged == {"x-quality": RatingMap(0, 9)}


def test_a_scale_for_nothing_and_two_scales_for_one_objective_are_refused() -> None:
    names = {"x-quality": "quality"}
    with pytest.raises(ValueError, match="fluency"):
        merge_scales(names, {}, {"fluency": RatingMap(0, 1)}, {})
    with pytest.raises(ValueError, match="two scales"):
        merge_scales(names, {}, {"quality": RatingMap(0, 1)}, {"x-quality": RatingMap(0, 2)})

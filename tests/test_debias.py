"""After debiasing nothing of the length is left in the ranks, however steep it was before."""

import numpy as np
import pytest

from panoply.armorm.debias import (
    difference_spearman,
    length_penalties,
    length_spearman,
    remove_length,
)
from tests.builders.reference import spearman

LIMIT = 0.02


def sample(slopes, num_rows=3000, seed=0, skew=1.0):
    rng = np.random.default_rng(seed)
    r_v = np.exp(skew * rng.normal(size=num_rows))
    return rng.normal(size=(num_rows, len(slopes))) + r_v[:, None] * np.asarray(slopes), r_v


@pytest.mark.parametrize("slope", [0.0, 0.1, 1.0, 3.0, 50.0, -0.1, -0.43, -3.0, -50.0])
@pytest.mark.parametrize("skew", [0.3, 2.0])
def test_no_rank_correlation_is_left_at_any_slope(slope, skew):
    r, r_v = sample([slope], skew=skew)
    found = length_penalties(r, r_v)
    left = remove_length(r, r_v, found.penalty)
    assert abs(length_spearman(left, r_v)[0]) <= LIMIT
    assert found.residual[0] == pytest.approx(length_spearman(left, r_v)[0], abs=1e-6)
    assert not found.constant[0]


def test_a_relation_that_is_not_linear_is_removed_in_rank_too():
    rng = np.random.default_rng(0)
    r_v = rng.gamma(1.0, size=2000)
    r = np.column_stack([np.log(r_v), r_v**3, np.minimum(r_v, 0.5), -np.sqrt(r_v)])
    r += 0.05 * rng.normal(size=r.shape)
    found = length_penalties(r, r_v)
    assert (np.abs(found.residual) <= LIMIT).all()
    assert found.penalty[3] < 0 < found.penalty[0]


def test_the_penalty_scales_with_the_units_of_both_sides():
    r, r_v = sample([1.0, -2.0])
    one = length_penalties(r, r_v).penalty
    other = length_penalties(1000 * r + 7, 0.01 * r_v - 3).penalty
    np.testing.assert_allclose(other, 1e5 * one, rtol=1e-3)


def test_the_correlation_falls_as_the_penalty_grows():
    r, r_v = sample([1.0], num_rows=500)
    rho = [length_spearman(remove_length(r, r_v, [x]), r_v)[0] for x in np.linspace(-3, 3, 40)]
    assert (np.diff(rho) <= 1e-12).all()


def test_constant_objectives_are_named_and_left_alone():
    r, r_v = sample([1.0, 1.0, 0.0])
    r[:, 2] = 0.3
    found = length_penalties(r, r_v)
    assert found.constant.tolist() == [False, False, True]
    assert found.penalty[2] == 0
    assert np.isnan(found.residual[2])


def test_a_linear_function_of_length_is_named_and_removed_in_full():
    r, r_v = sample([1.0, 1.0])
    r[:, 1] = 2 * r_v - 1
    found = length_penalties(r, r_v)
    assert found.constant.tolist() == [False, True]
    assert found.penalty[1] == pytest.approx(2)
    np.testing.assert_allclose(remove_length(r, r_v, found.penalty)[:, 1], -1, atol=1e-9)


def test_a_constant_length_leaves_nothing_to_remove():
    r, _ = sample([1.0, 2.0])
    found = length_penalties(r, np.ones(len(r)))
    assert found.penalty.tolist() == [0, 0]
    assert np.isnan(found.residual).all()


def test_few_distinct_values_end_on_the_nearer_side_and_say_what_is_left():
    r_v = np.array([0.0, 1.0, 2.0, 3.0])
    r = np.array([[0.0], [1.0], [1.0], [3.0]])
    found = length_penalties(r, r_v)
    left = remove_length(r, r_v, found.penalty)[:, 0]
    assert found.residual[0] == pytest.approx(spearman(left.tolist(), r_v.tolist()))
    assert abs(found.residual[0]) < 0.95


def test_correlations_agree_with_the_formula_in_plain_python():
    rng = np.random.default_rng(0)
    r, r_v = rng.integers(5, size=(60, 2)).astype(float), rng.integers(9, size=60).astype(float)
    expected = [spearman(column.tolist(), r_v.tolist()) for column in r.T]
    np.testing.assert_allclose(length_spearman(r, r_v), expected, rtol=1e-12)


def test_within_sources_is_the_mean_weighted_by_rows():
    r, r_v = sample([1.0], num_rows=300)
    sources = np.array(["a"] * 100 + ["b"] * 150 + ["c"] * 50)
    r[sources == "b"] += 100  # a shift between sources shows only in the pooled number
    r[sources == "c"] = 4.0  # constant: says nothing
    a, b = (length_spearman(r[sources == s], r_v[sources == s])[0] for s in ("a", "b"))
    within = length_spearman(r, r_v, sources)[0]
    assert within == pytest.approx((100 * a + 150 * b) / 250)
    assert abs(within - length_spearman(r, r_v)[0]) > 0.05


def test_differences_do_not_depend_on_which_response_was_chosen():
    d, d_v = sample([0.5], num_rows=200)
    flip = np.where(np.arange(200) % 3 == 0, -1.0, 1.0)
    one, other = difference_spearman(d, d_v), difference_spearman(d * flip[:, None], d_v * flip)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_missing_values_are_refused():
    r, r_v = sample([1.0])
    r[0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        length_penalties(r, r_v)
    with pytest.raises(ValueError, match=r"must be \[N, O\]"):
        length_penalties(r_v, r_v)

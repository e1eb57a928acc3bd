"""Fixed combinations of objectives are fitted to the optimum, or the gate would look too good."""

import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from panoply.armorm.mixtures import best_single, fit_linear, fit_simplex
from tests.builders.reference import bradley_terry_loss


def differences(true, num_pairs=2000, seed=0):
    """Objectives in mixed units whose weighted sum decides the pairs, with Bradley-Terry noise."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=(num_pairs, len(true))) @ (np.eye(len(true)) + 0.3)
    d *= np.geomspace(0.1, 10, len(true))
    wins = rng.random(num_pairs) < 1 / (1 + np.exp(-d @ np.asarray(true)))
    return np.where(wins[:, None], d, -d)


def loss(d, v, weights=None):
    return np.average(np.logaddexp(0, -d @ v), weights=weights)


@pytest.mark.parametrize("true", [(10.0, 1.0), (8.0, 0.0, 0.1), (-5.0, 1.0, 0.1)])
def test_simplex_weights_are_no_worse_than_a_fine_grid(true):
    d = differences(true)
    found = fit_simplex(d)
    v = found.scale * found.weights
    assert found.weights.sum() == pytest.approx(1)
    assert (found.weights >= 0).all()
    axes = [np.linspace(0, 1.5, 13) * max(t, 0.05) for t in true]
    best = min(loss(d, np.array(point)) for point in itertools.product(*axes))
    assert loss(d, v) <= best + 1e-9
    assert loss(d, v) == pytest.approx(bradley_terry_loss((d @ v).tolist()), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_simplex_weights_meet_the_conditions_of_the_optimum(weighted):
    rng = np.random.default_rng(3)
    d = differences(np.where(np.arange(12) % 3, 1.0, -1.0) / np.geomspace(0.1, 10, 12))
    weights = rng.random(len(d)) if weighted else None
    found = fit_simplex(d, weights)
    v, rms = found.scale * found.weights, np.sqrt((d**2).mean(0))
    slope = -np.average(d / (1 + np.exp(d @ v))[:, None], axis=0, weights=weights) / rms
    assert (slope >= -1e-6).all()
    assert np.abs(slope * v * rms).max() <= 1e-6
    assert 0 < (v == 0).sum() < 12


def test_the_optimum_is_reached_where_objectives_are_correlated_and_many_end_at_zero():
    rng, num_objectives = np.random.default_rng(1), 40  # one search from 0 stalls here
    mix = 0.15 * np.eye(num_objectives) + 0.13 * rng.random((num_objectives, num_objectives)) + 0.3
    units = np.geomspace(1e-3, 1e3, num_objectives)
    d = rng.normal(size=(4000, num_objectives)) @ mix * units
    signal = d @ ((rng.normal(size=num_objectives) + 0.3) / units)
    d *= np.where(rng.random(4000) < 1 / (1 + np.exp(-0.2 * signal)), 1, -1)[:, None]
    found = fit_simplex(d)
    v, rms = found.scale * found.weights, np.sqrt((d**2).mean(0))
    slope = -(d / (1 + np.exp(d @ v))[:, None]).mean(0) / rms
    assert slope.min() >= -1e-7
    assert np.abs(slope * v * rms).max() <= 1e-7


def test_a_weight_of_two_is_the_pair_twice():
    d = differences((1.0, 1.0, 0.1), num_pairs=300)
    weights = np.where(np.arange(300) < 100, 2.0, 1.0)
    one, other = fit_simplex(d, weights), fit_simplex(np.vstack([d, d[:100]]))
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-5)
    assert one.scale == pytest.approx(other.scale, rel=1e-4)


def test_simplex_weights_follow_the_units_of_the_objectives():
    d, units = differences((5.0, 1.0, 0.1)), np.array([1e-4, 1.0, 1e4])
    one, other = fit_simplex(d), fit_simplex(d * units)
    v, w = one.scale * one.weights, other.scale * other.weights * units
    np.testing.assert_allclose(w, v, rtol=1e-4)


def test_objectives_that_all_point_the_wrong_way_give_uniform_weights_and_scale_zero():
    found = fit_simplex(-np.abs(differences((1.0, 1.0))))
    assert found.weights.tolist() == [0.5, 0.5]
    assert found.scale == 0


def test_separable_pairs_and_dead_objectives_stay_finite():
    d = np.abs(differences((1.0, 1.0, 1.0), num_pairs=50))
    d[:, 1] = 0
    found = fit_simplex(d)
    assert np.isfinite(found.scale)
    assert found.weights[1] == 0
    assert loss(d, found.scale * found.weights) < 1e-3


def test_linear_weights_equal_logistic_regression_on_pairs_with_alternating_signs():
    d, select = differences((4.0, -1.0, 0.1)), differences((4.0, -1.0, 0.1), seed=1)
    strength = 0.05
    found = fit_linear(d, [strength], select)
    rms, sign = np.sqrt((d**2).mean(0)), np.where(np.arange(len(d)) % 2, 1, -1)
    model = LogisticRegression(C=1 / (strength * len(d)), fit_intercept=False, tol=1e-10)
    model.fit(d / rms * sign[:, None], sign)
    np.testing.assert_allclose(found.coefficients * rms, model.coef_[0], rtol=1e-5)
    assert found.coefficients[1] < 0


def test_the_strength_is_the_one_that_fits_the_select_pairs_best():
    strengths = [1e-4, 1e-2, 1.0, 100.0]
    select = differences((4.0, -1.0, 0.1), seed=1)
    d = differences((4.0, -1.0, 0.1), num_pairs=40)
    found = fit_linear(d, strengths, select)
    losses = [loss(select, fit_linear(d, [s], select).coefficients) for s in strengths]
    assert found.strength == int(np.argmin(losses))
    assert loss(select, found.coefficients) == pytest.approx(min(losses))


class OnDisk:
    """Rows that are only given by slice."""

    def __init__(self, d):
        self.d, self.shape = d, d.shape

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self.d[rows]


def test_rows_read_by_slice_give_the_weights_of_the_array():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(12_000, 96))  # more than is computed on at once
    d = np.hstack([differences((4.0, -1.0, 0.1), num_pairs=12_000), noise])
    d, select = d.astype(np.float32), d[:500].astype(np.float32)
    one = fit_linear(d, [0.1, 1.0], select)
    other = fit_linear(OnDisk(d), [0.1, 1.0], OnDisk(select), in_memory=0)
    np.testing.assert_allclose(other.coefficients, one.coefficients, rtol=1e-4, atol=1e-8)
    assert other.strength == one.strength


def test_the_best_single_objective_wins_most_pairs_and_ties_count_half():
    d = np.array([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0], [-1.0, 0.0, -1.0], [-2.0, 1.0, 3.0]])
    assert best_single(d) == 1
    assert best_single(np.ones((3, 2))) == 0


def test_bad_differences_are_refused():
    d = differences((1.0, 1.0))
    with pytest.raises(ValueError, match="none of them 0"):
        fit_simplex(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="finite"):
        fit_simplex(np.where(d > 1, np.nan, d))
    with pytest.raises(ValueError, match="not all of them 0"):
        fit_simplex(d, np.zeros(len(d)))
    with pytest.raises(ValueError, match="do not match"):
        fit_simplex(d, np.ones(3))
    with pytest.raises(ValueError, match="ascending and positive"):
        fit_linear(d, [1.0, 0.1], d)

"""Stage 1: the masked ridge from sums equals the ridge on rows, however the rows are split."""

import io

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from panoply.armorm.ridge import (
    Moments,
    choose,
    fit_ridge,
    load,
    merge,
    moments,
    moments_by_pattern,
    refit_ridge,
    save,
    squared_error,
    without,
)

STRENGTHS = (1e-4, 1e-2, 1.0, 100.0)
NUM_OBJECTIVES = 6
PATTERNS = ((0, 1, 2), (2, 3), (0, 3, 4))


def masked_rows(seed=0, num_rows=400, hidden_size=12):
    """Features off center and in mixed units, three patterns of ratings; nobody rates the last."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, hidden_size)) * np.geomspace(0.1, 10, hidden_size) + 3
    y = x @ rng.normal(size=(hidden_size, NUM_OBJECTIVES)) / 10 + rng.normal(size=(num_rows, 1)) + 5
    which = rng.integers(len(PATTERNS), size=num_rows)
    for row, pattern in enumerate(which):
        y[row, [i for i in range(NUM_OBJECTIVES) if i not in PATTERNS[pattern]]] = np.nan
    return x, y


def sklearn_ridge(x, y, strength):
    unit = np.trace(np.cov(x.T, bias=True)) / x.shape[1]
    return Ridge(alpha=strength * unit * len(x), solver="svd").fit(x, y)


def test_every_objective_equals_a_ridge_on_its_own_rows_with_the_penalty_times_n():
    x, y = masked_rows()
    path = fit_ridge(moments_by_pattern(x, y), NUM_OBJECTIVES, STRENGTHS)
    for i in range(NUM_OBJECTIVES - 1):
        rated = ~np.isnan(y[:, i])
        for s, strength in enumerate(STRENGTHS):
            expected = sklearn_ridge(x[rated], y[rated, i], strength)
            np.testing.assert_allclose(path.weights[s, i], expected.coef_, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(path.bias[s, i], expected.intercept_, rtol=1e-8)


def test_fewer_rows_than_features_is_solved_too():
    x, y = masked_rows(num_rows=30, hidden_size=64)
    rated = np.nan_to_num(y[:, :1])
    path = fit_ridge({(0,): moments(x, rated)}, 1, STRENGTHS)
    for s, strength in enumerate(STRENGTHS):
        expected = sklearn_ridge(x, rated[:, 0], strength)
        np.testing.assert_allclose(path.weights[s, 0], expected.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_blocks", [1, 2, 7, 400])
def test_any_number_of_blocks_gives_the_same_weights(num_blocks):
    x, y = masked_rows()
    whole = fit_ridge(moments_by_pattern(x, y), NUM_OBJECTIVES, STRENGTHS)
    blocks = np.array_split(np.arange(len(x)), num_blocks)
    parts = [moments_by_pattern(x[rows], y[rows]) for rows in blocks]
    split = fit_ridge(merge(parts), NUM_OBJECTIVES, STRENGTHS)
    scale = np.nanmax(np.abs(whole.weights))
    np.testing.assert_allclose(split.weights, whole.weights, rtol=0, atol=1e-11 * scale)


def test_the_order_of_patterns_in_the_dictionary_does_not_matter():
    sums = moments_by_pattern(*masked_rows())
    turned = dict(reversed(sums.items()))
    one, other = (fit_ridge(s, NUM_OBJECTIVES, STRENGTHS) for s in (sums, turned))
    np.testing.assert_array_equal(one.weights, other.weights)


def test_what_one_source_does_not_rate_does_not_change_the_others():
    x, y = masked_rows()
    fewer = y.copy()
    fewer[:, 4] = np.nan
    full, masked = (
        fit_ridge(moments_by_pattern(x, ratings), NUM_OBJECTIVES, STRENGTHS)
        for ratings in (y, fewer)
    )
    np.testing.assert_allclose(masked.weights[:, :4], full.weights[:, :4], rtol=1e-12)
    assert np.isnan(masked.weights[:, 4]).all()


def test_the_strengths_do_not_depend_on_the_unit_of_the_features():
    x, y = masked_rows()
    one = fit_ridge(moments_by_pattern(x, y), NUM_OBJECTIVES, STRENGTHS)
    large = fit_ridge(moments_by_pattern(1000 * x, y), NUM_OBJECTIVES, STRENGTHS)
    np.testing.assert_allclose(1000 * large.weights, one.weights, rtol=1e-9, atol=1e-12)


def test_an_objective_that_nobody_rates_is_missing_and_never_zero():
    x, y = masked_rows()
    sums = moments_by_pattern(x, y)
    path = fit_ridge(sums, NUM_OBJECTIVES, STRENGTHS)
    ridge = choose(path, squared_error(path, sums))
    assert np.isnan(path.weights[:, -1]).all()
    assert np.isnan(path.bias[:, -1]).all()
    assert np.isnan(ridge.weights[-1]).all()
    assert ridge.strength[-1] == -1
    assert np.isfinite(ridge.weights[:-1]).all()


def test_the_error_from_sums_equals_the_error_from_rows():
    path = fit_ridge(moments_by_pattern(*masked_rows(seed=0)), NUM_OBJECTIVES, STRENGTHS)
    x, y = masked_rows(seed=1)
    errors = squared_error(path, moments_by_pattern(x, y))
    from_rows = np.nanmean(
        (np.einsum("nd,sod->sno", x, path.weights) + path.bias[:, None] - y)[..., :-1] ** 2, axis=1
    )
    np.testing.assert_allclose(errors[:, :-1], from_rows, rtol=1e-9)
    assert np.isnan(errors[:, -1]).all()


def test_the_strength_with_the_least_error_is_chosen_and_the_strongest_without_evidence():
    path = fit_ridge(moments_by_pattern(*masked_rows()), NUM_OBJECTIVES, STRENGTHS)
    errors = np.full((len(STRENGTHS), NUM_OBJECTIVES), 1.0)
    errors[1, 0] = 0.5  # objective 1 has equal errors, objective 2 has none
    errors[:, 2] = np.nan
    ridge = choose(path, errors)
    assert ridge.strength.tolist() == [1, 3, 3, 3, 3, -1]
    np.testing.assert_array_equal(ridge.weights[0], path.weights[1, 0])
    np.testing.assert_array_equal(ridge.bias[2], path.bias[3, 2])


def test_no_select_rows_at_all_means_no_errors_known():
    path = fit_ridge(moments_by_pattern(*masked_rows()), NUM_OBJECTIVES, STRENGTHS)
    assert np.isnan(squared_error(path, {})).all()


def test_leaving_a_fold_out_is_the_same_as_never_having_seen_it():
    x, y = masked_rows()
    rows = np.array_split(np.arange(len(x)), 4)
    folds = [moments_by_pattern(x[r], y[r]) for r in rows]
    others = np.concatenate([rows[0], rows[1], rows[3]])
    one = fit_ridge(without(folds, 2), NUM_OBJECTIVES, STRENGTHS)
    other = fit_ridge(moments_by_pattern(x[others], y[others]), NUM_OBJECTIVES, STRENGTHS)
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="left_out is 4"):
        without(folds, 4)


def test_refitting_at_the_chosen_strengths_is_the_path_at_those_strengths():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(120, 9)) + 3, rng.normal(size=(120, 4))
    y[:50, 1], y[60:, 2], y[:, 3] = np.nan, np.nan, np.nan
    strengths = [1e-3, 1e-1, 10.0]
    sums = moments_by_pattern(x, y)
    path = fit_ridge(sums, 4, strengths)
    chosen = choose(path, np.array([[1, 2, 2, np.nan], [2, 1, 3, np.nan], [3, 3, 1, np.nan]]))
    again = refit_ridge(sums, chosen, strengths)
    np.testing.assert_allclose(again.weights, chosen.weights, rtol=1e-9)
    np.testing.assert_allclose(again.bias, chosen.bias, rtol=1e-9)
    assert again.strength.tolist() == chosen.strength.tolist() == [0, 1, 2, -1]
    still = refit_ridge(moments_by_pattern(np.ones((20, 3)), y[:20, :1]), chosen, strengths)
    assert still.weights[0].tolist() == [0, 0, 0]


def test_constant_features_give_the_mean_rating_instead_of_noise():
    x, y = np.full((50, 8), 0.1), np.linspace(0, 1, 50)[:, None]
    path = fit_ridge({(0,): moments(x, y)}, 1, STRENGTHS)
    np.testing.assert_array_equal(path.weights, 0)
    np.testing.assert_allclose(path.bias, 0.5)


def test_a_constant_rating_is_predicted_as_that_constant():
    x, _ = masked_rows()
    path = fit_ridge({(0,): moments(x, np.full((len(x), 1), 0.7))}, 1, STRENGTHS)
    np.testing.assert_allclose(x @ path.weights[:, 0].T + path.bias[:, 0], 0.7, atol=1e-9)


def test_rows_without_any_rating_are_left_out():
    x, y = masked_rows()
    sums = moments_by_pattern(np.vstack([x, x[:3]]), np.vstack([y, np.full((3, 6), np.nan)]))
    assert sorted(sums) == sorted(PATTERNS)
    assert sum(s.num_rows for s in sums.values()) == len(x)


def test_sums_survive_a_file_bit_by_bit():
    sums = moments_by_pattern(*masked_rows())
    file = io.BytesIO()
    save(file, sums)
    file.seek(0)
    again = load(file)
    assert list(again) == list(sums)
    for pattern, moment in sums.items():
        assert isinstance(again[pattern], Moments)
        for name, value in vars(moment).items():
            np.testing.assert_array_equal(getattr(again[pattern], name), value)


@pytest.mark.parametrize("strengths", [(), (0.0, 1.0), (1.0, 0.1), (1.0, 1.0)])
def test_strengths_must_be_ascending_and_positive(strengths):
    sums = moments_by_pattern(*masked_rows())
    with pytest.raises(ValueError, match="ascending and positive"):
        fit_ridge(sums, NUM_OBJECTIVES, strengths)


def test_bad_input_is_refused_with_the_reason():
    x, y = masked_rows()
    with pytest.raises(ValueError, match="must be finite"):
        moments_by_pattern(np.where(x > 20, np.inf, x), y)
    with pytest.raises(ValueError, match=r"must be \[N, D\]"):
        moments_by_pattern(x[:-1], y)
    with pytest.raises(ValueError, match="no rated rows"):
        fit_ridge({}, NUM_OBJECTIVES, STRENGTHS)
    with pytest.raises(ValueError, match="beyond 2"):
        fit_ridge(moments_by_pattern(x, y), 3, STRENGTHS)

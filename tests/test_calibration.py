"""Scales are the optimum of a convex problem; calibration errors come with their floor."""

import numpy as np
import pytest

from panoply.measure.calibration import ece, ece_floor, fit_scale, log_loss, reliability
from tests.builders.reference import bradley_terry_loss, expected_calibration_error


def calibrated(num_pairs=3000, spread=1.5, seed=0):
    rng = np.random.default_rng(seed)
    m = spread * rng.normal(size=num_pairs)
    return np.where(rng.random(num_pairs) < 1 / (1 + np.exp(-m)), m, -m)


def test_the_scale_is_no_worse_than_its_neighbors():
    m = 7 * calibrated()
    a = fit_scale(m)
    assert a == pytest.approx(1 / 7, rel=0.1)
    for factor in (0.99, 1.01):
        assert log_loss(a * m) < log_loss(factor * a * m)


@pytest.mark.parametrize("unit", [1e-8, 1e-2, 1e6])
def test_the_scaled_margins_do_not_depend_on_the_unit_of_the_scores(unit):
    m = calibrated()
    assert fit_scale(unit * m) * unit == pytest.approx(fit_scale(m), rel=1e-9)


def test_a_weight_of_two_is_the_margin_twice_and_a_weight_of_zero_is_none():
    m = calibrated(300)
    weights = np.where(np.arange(300) < 50, 2.0, 1.0)
    weights[-20:] = 0
    assert fit_scale(m, weights) == pytest.approx(fit_scale(np.concatenate([m[:-20], m[:50]])))


def test_separable_margins_stop_at_the_bound():
    m = np.array([0.5, 1.0, 1.5])
    assert fit_scale(m) == pytest.approx(1e3)
    assert fit_scale(1e-9 * m) == pytest.approx(1e12)


@pytest.mark.parametrize("margins", [[-1.0, -2.0], [0.0, 0.0], [1.0, -1.0], [1.0, -3.0]])
def test_margins_that_do_not_help_get_scale_zero(margins):
    assert fit_scale(margins) == 0


def test_a_missing_margin_is_left_out_and_never_read_as_zero():
    m = calibrated(200)
    with_missing = np.concatenate([m, np.full(50, np.nan)])
    assert fit_scale(with_missing) == fit_scale(m)
    for metric in (log_loss, ece, ece_floor):
        assert metric(with_missing) == metric(m)


def test_bad_margins_are_refused():
    with pytest.raises(ValueError, match="no margins"):
        fit_scale([])
    with pytest.raises(ValueError, match="no margins"):
        fit_scale([np.nan])
    with pytest.raises(ValueError, match="infinite"):
        fit_scale([np.inf, 1.0])
    with pytest.raises(ValueError, match=">= 0"):
        fit_scale([1.0, 2.0], [1.0, -1.0])
    with pytest.raises(ValueError, match="must agree"):
        fit_scale([1.0, 2.0], [1.0])


def test_losses_and_calibration_errors_agree_with_plain_python():
    m = np.concatenate([calibrated(500), np.zeros(7), [40.0, -35.0]])
    assert log_loss(m) == pytest.approx(bradley_terry_loss(m.tolist()))
    assert ece(m) == pytest.approx(expected_calibration_error(m.tolist()))


def test_a_calibrated_model_is_at_its_floor_and_an_overconfident_one_is_not():
    m = calibrated()
    assert ece(m) < 1.5 * ece_floor(m)
    assert ece(5 * m) > 5 * ece_floor(5 * m)


def test_the_floor_is_the_mean_error_of_calibrated_samples():
    sizes = np.abs(calibrated(400))
    rng = np.random.default_rng(1)
    wins = rng.random((300, 400)) < 1 / (1 + np.exp(-sizes))
    assert ece_floor(sizes) == pytest.approx(
        np.mean([ece(np.where(w, sizes, -sizes)) for w in wins]), rel=0.1
    )


def test_the_floor_falls_with_the_number_of_pairs_and_is_zero_for_ties():
    m = calibrated(8000)
    assert ece_floor(m) < ece_floor(m[:500]) < ece_floor(m[:30])
    assert ece_floor(np.zeros(50)) == ece(np.zeros(50)) == 0


def test_the_bins_of_the_reliability_curve_are_equally_full_and_hold_all_pairs():
    m = calibrated(500)
    curve = reliability(m)
    assert curve["count"] == [50.0] * 10
    assert curve["confidence"] == sorted(curve["confidence"])
    assert np.mean(curve["accuracy"]) == pytest.approx((m > 0).mean())
    assert np.mean(curve["confidence"]) == pytest.approx((1 / (1 + np.exp(-np.abs(m)))).mean())


def test_a_bin_of_the_reliability_curve_never_has_less_than_five_pairs():
    assert reliability(calibrated(13))["count"] == [7.0, 6.0]
    assert reliability(calibrated(4))["count"] == []


def test_nothing_is_known_of_no_pairs():
    assert np.isnan([log_loss([]), ece([]), ece_floor([])]).all()
    curve = reliability([])
    assert curve == {"count": [], "confidence": [], "accuracy": []}

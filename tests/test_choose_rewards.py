"""What the bandit receives: guarded where LASeR's own normalization fails."""

import math
from statistics import quantiles

import numpy as np
import pytest

from panoply.choose.rewards import advantages, improvements, quantile_rewards


def test_a_reward_is_its_value_s_place_between_the_quantiles_of_the_window():
    raw = np.random.default_rng(0).normal(size=60)
    rewards = quantile_rewards(raw, window=20)
    for t in range(20, 60):
        fifths = quantiles(raw[t - 19 : t + 1], n=5, method="inclusive")
        place = (raw[t] - fifths[0]) / (fifths[3] - fifths[0])
        assert rewards[t] == pytest.approx(min(max(place, 0), 1), abs=1e-12)


def test_the_scale_of_the_values_does_not_matter():
    raw = np.random.default_rng(0).normal(size=60)
    assert np.allclose(quantile_rewards(raw), quantile_rewards(300 * raw - 7), atol=1e-9)


def test_first_values_wait_for_each_other():
    raw = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert np.isnan(quantile_rewards(raw[:4], wait=5)).all()
    rewards = quantile_rewards(raw, wait=5)
    # The quantiles of 1 .. 5 are 1.8 and 4.2.
    assert rewards.tolist() == pytest.approx([0.5, 0, 0.2 / 2.4, 1, 2.2 / 2.4])


def test_a_constant_history_gives_one_half_and_what_leaves_it_counts():
    assert quantile_rewards(np.full(30, -2.0)).tolist() == [0.5] * 30
    assert quantile_rewards([1.0] * 10 + [2.0, 0.0])[-2:].tolist() == [1, 0]


def test_only_the_window_is_remembered():
    raw = np.random.default_rng(0).normal(size=80)
    assert np.array_equal(quantile_rewards(raw)[60:], quantile_rewards(raw[41:])[19:])


def test_missing_values_leave_no_trace():
    raw = np.random.default_rng(0).normal(size=40)
    holes = np.insert(raw, [3, 17, 30], [np.nan, np.inf, -np.inf])
    missing = ~np.isfinite(holes)
    rewards = quantile_rewards(holes)
    assert np.isnan(rewards[missing]).all()
    assert np.array_equal(rewards[~missing], quantile_rewards(raw))


def test_a_falling_loss_does_not_reward_whoever_comes_last():
    rng = np.random.default_rng(0)
    loss = 2 * 0.98 ** np.arange(400) + 0.2 * rng.normal(size=400)
    rewards = quantile_rewards(-loss)
    assert abs(rewards[50:150].mean() - rewards[300:].mean()) < 0.15


def test_an_advantage_is_the_distance_to_the_mean_of_batches_before():
    first, baseline = advantages([1.0, 2.0, 3.0], math.nan)
    assert first.tolist() == [-1, 0, 1]
    assert baseline == 2
    second, baseline = advantages([2.5, 9.0, -9.0], baseline, decay=0.8)
    assert second.tolist() == [0.5, 1, -1]
    assert baseline == pytest.approx(0.8 * 2 + 0.2 * 2.5 / 3)


def test_a_missing_value_has_no_advantage_and_no_weight():
    rewards, baseline = advantages([0.5, np.nan, np.inf, 0.1], 0.0, decay=0.5)
    assert rewards.tolist() == pytest.approx([0.5, np.nan, np.nan, 0.1], nan_ok=True)
    assert baseline == pytest.approx(0.15)
    nothing, kept = advantages([np.nan], 0.7)
    assert np.isnan(nothing).all()
    assert kept == 0.7


def test_one_value_alone_has_nothing_to_be_compared_with():
    rewards, baseline = advantages([0.4], math.nan)
    assert np.isnan(rewards[0])
    assert advantages([0.6], baseline)[0].tolist() == pytest.approx([0.2])


def test_an_improvement_is_the_fall_of_the_loss():
    rewards = improvements([1.0, 0.2, 5.0, np.nan, np.inf], [0.6, 0.5, 0.0, 1.0, np.inf])
    assert rewards[:3].tolist() == pytest.approx([0.4, -0.3, 1.0])
    assert np.isnan(rewards[3:]).all()


def test_constants_out_of_range_are_named():
    with pytest.raises(ValueError, match="quantiles must be"):
        quantile_rewards([1.0], low=0.8, high=0.2)
    with pytest.raises(ValueError, match="2 <= wait <= window"):
        quantile_rewards([1.0], wait=30)
    with pytest.raises(ValueError, match="`decay` must be"):
        advantages([1.0], 0.0, decay=1.0)

"""What the bandit receives: guarded where LASeR's own normalization fails."""

import math
from statistics import quantiles

import numpy as np
import pytest

from panoply.laser.rewards import (
    advantages,
    arm_agreement,
    arm_disagreement,
    gains,
    quantile_rewards,
    verifier_auc,
)


def rolling(raw, window=20, min_history=5):
    """Rewards of values that come one by one, as LASeR's batches do."""
    return np.concatenate(
        [
            quantile_rewards(
                raw[t : t + 1], raw[max(0, t - window + 1) : t], min_history=min_history
            )
            for t in range(len(raw))
        ]
    )


def test_a_reward_is_its_value_s_place_between_the_quantiles_of_the_window():
    raw = np.random.default_rng(0).normal(size=60)
    rewards = rolling(raw)
    for t in range(20, 60):
        fifths = quantiles(raw[t - 19 : t + 1], n=5, method="inclusive")
        place = (raw[t] - fifths[0]) / (fifths[3] - fifths[0])
        assert rewards[t] == pytest.approx(min(max(place, 0), 1), abs=1e-12)


def test_the_scale_of_the_values_does_not_matter():
    raw = np.random.default_rng(0).normal(size=60)
    found, scaled = rolling(raw), rolling(300 * raw - 7)
    assert np.allclose(found[4:], scaled[4:], atol=1e-9)


def test_there_is_no_reward_before_there_is_a_history():
    raw = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert np.isnan(quantile_rewards(raw[:2], raw[2:4], min_history=5)).all()
    # The quantiles of 1 .. 5 are 1.8 and 4.2.
    expected = [0.5, 0, 0.2 / 2.4, 1, 2.2 / 2.4]
    assert quantile_rewards(raw, [], min_history=5).tolist() == pytest.approx(expected)


def test_the_order_within_a_batch_does_not_matter():
    rng = np.random.default_rng(0)
    raw, before, order = rng.normal(size=16), rng.normal(size=30), rng.permutation(16)
    assert np.array_equal(
        quantile_rewards(raw[order], before), quantile_rewards(raw, before)[order]
    )


def test_a_constant_history_gives_one_half_and_what_leaves_it_counts():
    assert quantile_rewards(np.full(30, -2.0), []).tolist() == [0.5] * 30
    assert quantile_rewards([1.0, 2.0, 0.0], [1.0] * 20).tolist() == [0.5, 1, 0]


def test_missing_values_leave_no_trace():
    raw = np.random.default_rng(0).normal(size=40)
    holes = np.insert(raw, [3, 17, 30], [np.nan, np.inf, -np.inf])
    missing = ~np.isfinite(holes)
    rewards = quantile_rewards(holes, [np.nan, 0.5, -np.inf])
    assert np.isnan(rewards[missing]).all()
    assert np.array_equal(rewards[~missing], quantile_rewards(raw, [0.5]))


def test_a_falling_loss_does_not_reward_whoever_comes_last():
    rng = np.random.default_rng(0)
    loss = 2 * 0.98 ** np.arange(400) + 0.2 * rng.normal(size=400)
    rewards = rolling(-loss)
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


def test_a_gain_is_the_rise_of_a_quality():
    rewards = gains([0.6, 0.5, 0.0, np.nan, np.inf], [1.0, 0.2, 5.0, 1.0, np.inf])
    assert rewards[:3].tolist() == pytest.approx([0.4, -0.3, 5.0])
    assert np.isnan(rewards[3:]).all()


def test_a_verifier_rewards_the_order_of_right_and_wrong_responses():
    scores, right = [3.0, 1.0, 1.0, np.nan, 9.0], [1, 1, 0, 0, np.nan]
    assert verifier_auc(scores, right) == 0.75  # 3 > 1 and 1 = 1
    assert verifier_auc([-x for x in scores], right) == 0.25
    assert math.isnan(verifier_auc(scores, [1, 1, np.nan, 0, 1]))
    assert math.isnan(verifier_auc([np.nan] * 2, [1, 0]))


def test_agreement_is_the_share_of_other_arms_that_order_best_and_worst_alike():
    scores = [[1.0, 5.0, 3.0], [0.0, 1.0, 9.0], [4.0, 2.0, 1.0], [2.0, 2.0, 0.0], [np.nan, 1, 0]]
    assert arm_agreement(scores, 0) == pytest.approx((1 + 0 + 0.5) / 3)
    assert math.isnan(arm_agreement([[1.0, 1.0], [0.0, 1.0]], 0))
    assert math.isnan(arm_agreement([[np.nan, np.nan], [0.0, 1.0]], 0))
    assert math.isnan(arm_agreement([[0.0, 1.0]], 0))


def test_disagreement_is_the_share_of_comparisons_in_opposite_order():
    assert arm_disagreement([[1, 2, 3], [1, 2, 3]]) == 0
    assert arm_disagreement([[1, 2, 3], [3, 2, 1]]) == 1
    assert arm_disagreement([[1, 2, 3], [2, 2, 1]]) == 1  # one pair of responses is a tie
    assert arm_disagreement([[1, 2, 3], [1, 3, 2], [np.nan] * 3]) == pytest.approx(1 / 3)
    assert math.isnan(arm_disagreement([[1, 2], [np.inf, 2]]))


def test_constants_out_of_range_are_named():
    with pytest.raises(ValueError, match="quantiles must be"):
        quantile_rewards([1.0], [], low=0.8, high=0.2)
    with pytest.raises(ValueError, match="`min_history` must be at least 2"):
        quantile_rewards([1.0], [], min_history=1)
    with pytest.raises(ValueError, match="`decay` must be"):
        advantages([1.0], 0.0, decay=1.0)

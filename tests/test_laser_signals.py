"""Signals side by side, what they remember, and configurations that say what is wrong with them."""

import math

import numpy as np
import pytest

from panoply.bandit.bandits import FixedArm, recorded_bandit
from panoply.config.bandit import (
    SIGNALS,
    AlarmConfig,
    SelectorConfig,
    SignalConfig,
)
from panoply.laser.rewards import quantile_rewards
from panoply.laser.rounds import initial_state
from panoply.laser.signals import MEASURES, SignalState, signals

CONFIG = SignalConfig(min_history=2, window=3)


def measured(**values):
    num = len(next(iter(values.values())))
    columns = {name: np.full(num, np.nan) for name in MEASURES}
    return columns | {name: np.asarray(value, float) for name, value in values.items()}


def test_every_signal_is_there_and_those_that_were_not_measured_are_missing():
    found, _ = signals(measured(loss=[1.0, 2.0, 3.0]), SignalState(), CONFIG)
    assert set(found) == set(SIGNALS)
    # The quintiles of -3, -2, -1 are -2.6 and -1.4.
    assert found["negative_loss"].tolist() == pytest.approx([1, 0.5, 0])
    assert found["advantage"].tolist() == pytest.approx([1, 0, -1])
    for name in set(SIGNALS) - {"negative_loss", "advantage"}:
        assert np.isnan(found[name]).all()


def test_signals_are_those_of_their_definitions():
    found, _ = signals(
        measured(
            loss=[1.0, 2.0, 3.0],
            loss_after=[0.5, 1.9, 3.1],
            gold_margin_gain=[0.1, 0.1, 0.2],
            held_out_gain=[0.3, 0.3, 0.3],
            verifier=[1.0, 0.25, 7.0],
            agreement=[0.5, np.inf, 0.0],
        ),
        SignalState(),
        CONFIG,
    )
    fall = [0.5, 0.1, -0.1]
    assert np.allclose(
        found["improvement"], quantile_rewards(fall, [], min_history=2), equal_nan=True
    )
    assert found["gold_margin"].tolist() == pytest.approx([0, 0, 1])
    assert found["held_out"].tolist() == [0.5, 0.5, 0.5]
    assert found["verifier"].tolist() == pytest.approx([1, 0.25, math.nan], nan_ok=True)
    assert found["agreement"].tolist() == pytest.approx([0.5, math.nan, 0], nan_ok=True)


def test_quantiles_are_over_the_window_and_remember_no_more():
    rng, state, losses = np.random.default_rng(0), SignalState(), []
    for _ in range(8):
        losses.append(rng.normal(size=4))
        found, state = signals(measured(loss=losses[-1]), state, CONFIG)
    before = np.concatenate(losses[-3:-1])
    assert np.array_equal(
        found["negative_loss"], quantile_rewards(-losses[-1], -before, min_history=2)
    )
    assert len(state.recent["negative_loss"]) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_broken_measurement_leaves_no_trace_in_what_is_remembered(bad):
    _, whole = signals(measured(loss=[1.0, 2.0]), SignalState(), CONFIG)
    found, broken = signals(measured(loss=[1.0, bad, 2.0]), SignalState(), CONFIG)
    assert all(np.isnan(found[name][1]) for name in ("negative_loss", "advantage"))
    assert broken.baseline == whole.baseline == -1.5
    assert np.array_equal(broken.recent["negative_loss"][0], whole.recent["negative_loss"][0])


def test_a_bandit_or_costs_that_do_not_fit_the_arms_are_named():
    with pytest.raises(ValueError, match=r"`bandit.arm` must be in 0\.\.1, got 2"):
        initial_state(SelectorConfig(bandit=FixedArm(arm=2)), 2, 0)
    with pytest.raises(ValueError, match="costs must be 2 numbers"):
        initial_state(SelectorConfig(costs=(0.1,)), 2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recorded_bandit({"kind": "greedy"}), "`bandit.kind` must be one of"),
        (lambda: SignalConfig(name="loss"), "`signal.name` must be one of"),
        (lambda: SignalConfig(low=0.9), "`signal.low, high` must be"),
        (lambda: SignalConfig(min_history=1), "`signal.min_history` must be >= 2"),
        (lambda: SelectorConfig(signal=SignalConfig(name="held_out")), "`level` must be 'batch'"),
        (lambda: SelectorConfig(level="pair"), "`level` must be one of"),
        (lambda: SelectorConfig(costs=(2.0,)), "`costs` must be numbers in"),
        (lambda: SelectorConfig(suspend_rounds=0), "`suspend_rounds` must be >= 1"),
        (lambda: AlarmConfig(window=1), "`alarms.window` must be >= 2"),
        (lambda: AlarmConfig(kl="pause"), "`alarms.kl` must be one of"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

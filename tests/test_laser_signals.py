"""Signals side by side, what they remember, and configurations that say what is wrong with them."""

import math
from dataclasses import fields

import numpy as np
import pytest

from panoply.bandit.bandits import MOSS, LinUCB, Thompson
from panoply.bandit.make import POLICIES, initial_state, make_policy
from panoply.config.bandit import (
    SETTINGS,
    SIGNALS,
    AlarmConfig,
    BanditConfig,
    SelectorConfig,
    SignalConfig,
)
from panoply.laser.rewards import quantile_rewards
from panoply.laser.signals import MEASURES, SignalState, signals

CONFIG = SignalConfig(wait=2, window=3)


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
            probe_gain=[0.1, 0.1, 0.2],
            held_out_gain=[0.3, 0.3, 0.3],
            verifier=[1.0, 0.25, 7.0],
            agreement=[0.5, np.inf, 0.0],
        ),
        SignalState(),
        CONFIG,
    )
    fall = [0.5, 0.1, -0.1]
    assert np.allclose(found["improvement"], quantile_rewards(fall, [], wait=2), equal_nan=True)
    assert found["probe"].tolist() == pytest.approx([0, 0, 1])
    assert found["held_out"].tolist() == [0.5, 0.5, 0.5]
    assert found["verifier"].tolist() == pytest.approx([1, 0.25, math.nan], nan_ok=True)
    assert found["agreement"].tolist() == pytest.approx([0.5, math.nan, 0], nan_ok=True)


def test_quantiles_are_over_the_window_and_remember_no_more():
    rng, carry, losses = np.random.default_rng(0), SignalState(), []
    for _ in range(8):
        losses.append(rng.normal(size=4))
        found, carry = signals(measured(loss=losses[-1]), carry, CONFIG)
    before = np.concatenate(losses[-3:-1])
    assert np.array_equal(found["negative_loss"], quantile_rewards(-losses[-1], -before, wait=2))
    assert len(carry.recent["negative_loss"]) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_broken_measurement_leaves_no_trace_in_what_is_remembered(bad):
    _, whole = signals(measured(loss=[1.0, 2.0]), SignalState(), CONFIG)
    found, broken = signals(measured(loss=[1.0, bad, 2.0]), SignalState(), CONFIG)
    assert all(np.isnan(found[name][1]) for name in ("negative_loss", "advantage"))
    assert broken.baseline == whole.baseline == -1.5
    assert np.array_equal(broken.recent["negative_loss"][0], whole.recent["negative_loss"][0])


def test_a_configuration_names_every_policy_with_all_of_its_settings():
    for name, make in POLICIES.items():
        assert set(SETTINGS[name]) == {f.name for f in fields(make)}


def test_a_policy_keeps_its_own_values_where_nothing_is_said():
    assert make_policy(BanditConfig()) == LinUCB()
    assert make_policy(BanditConfig(name="thompson", noise=0.25)) == Thompson(noise=0.25)
    assert make_policy(BanditConfig(name="moss", horizon=9)) == MOSS(horizon=9)
    with pytest.raises(ValueError, match=r"`policy.arm` must be in 0\.\.1, got 2"):
        initial_state(SelectorConfig(policy=BanditConfig(name="fixed", arm=2)), 2, 0)
    with pytest.raises(ValueError, match="costs must be 2 numbers"):
        initial_state(SelectorConfig(costs=(0.1,)), 2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BanditConfig(name="greedy"), "`policy.name` must be one of"),
        (lambda: BanditConfig(gamma=0.1), "`policy.gamma` must be left out with 'linucb'"),
        (lambda: BanditConfig(name="moss"), "`policy.horizon` must be given with 'moss'"),
        (lambda: SignalConfig(name="loss"), "`signal.name` must be one of"),
        (lambda: SignalConfig(low=0.9), "`signal.low, high` must be"),
        (lambda: SignalConfig(wait=1), "`signal.wait` must be >= 2"),
        (lambda: SelectorConfig(signal=SignalConfig(name="held_out")), "`level` must be 'batch'"),
        (lambda: SelectorConfig(level="pair"), "`level` must be one of"),
        (lambda: SelectorConfig(costs=(2.0,)), "`costs` must be numbers in"),
        (lambda: SelectorConfig(sideline_rounds=0), "`sideline_rounds` must be >= 1"),
        (lambda: AlarmConfig(window=1), "`alarms.window` must be >= 2"),
        (lambda: AlarmConfig(kl="stop"), "`alarms.kl` must be one of"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Curves of a run's log by round, and alarms on them.

    curves = series(log.read())
    for alarm in alarms(curves, arms, config): ...

An alarm only names an action: the loop stops where it is 'stop', and hands
`suspension_requests(...)` to the next `begin_round` where it is 'suspend'. All is a function of the
log, so a run that died and goes on raises the same alarms.

Shapes: R rounds that have ended, N decisions, K arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from panoply.config.bandit import Action, AlarmConfig
from panoply.laser.log import Record, column, matrix
from panoply.types import Array, Ints

Series: TypeAlias = dict[str, Array]

MEANS = ("length", "well_formed", "kl", "disagreement", "loss", "reward")
"""Columns of the log of which the mean over a round is a curve."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A measurement of a run that is out of bounds."""

    round: int
    """The last round of the window."""
    name: str
    """`hacking`, `length`, `format`, `kl` or `failed`."""
    message: str
    action: Action
    arm: str = ""
    """The arm that was chosen most in the window, where the action is 'suspend'."""


def series(record: Record) -> Series:
    """Returns the curves of a log, `[R]` each; NaN where nothing was measured.

    `round`; `share/ARM`, share of the prompts that got the arm; `share_in/SOURCE/ARM`, the same
    within a source; `uncertainty`, mean entropy of the probabilities that arms were drawn with, 1
    where all arms are as likely; `error/ARM`, standard error of the arm's mean reward so far;
    `regret` against the best fixed arm by `arm_values`; `proxy`, mean of the arms' scores, each arm
    in units of its own deviation about its own mean over the log; `gold_margin`, sum of the gains
    of the margin on gold pairs so far; `failed`, share of decisions without a reward; and the
    means `length`, `well_formed`, `kl`, `disagreement`, `loss` and `reward`.
    """
    decisions, rewards = record.ended, record.rewards
    rounds, index_N = np.unique(rewards["round"].to_numpy(), return_inverse=True)
    arms_N = np.array([record.arms.index(arm) for arm in rewards["arm"].to_pylist()], np.int64)
    num = len(rounds)
    curves: Series = {"round": rounds.astype(np.float64)}
    curves |= _shares(decisions, index_N, record.arms, num)
    entropy_N = _entropy(matrix(decisions["probabilities"]))
    curves["uncertainty"] = _mean(entropy_N, index_N, num)

    # Rewards: how well each arm's mean is known, and what the best one would have brought.
    reward_N = column(rewards, "reward")
    for k, arm in enumerate(record.arms):
        curves[f"error/{arm}"] = _errors(np.where(arms_N == k, reward_N, np.nan), index_N, num)
    is_last_N = np.append(index_N[1:] != index_N[:-1], True) if len(index_N) else index_N == 0
    values_K = arm_values(arms_N, reward_N, len(record.arms))
    curves["regret"] = regret(arms_N, values_K)[is_last_N]
    curves["failed"] = _mean(np.isnan(reward_N) * 1.0, index_N, num)

    # Measurements. Arms have no common scale, so each arm's scores are put on one of its own.
    for name in MEANS:
        curves[name] = _mean(column(rewards, name), index_N, num)
    proxy_N = column(rewards, "proxy")
    for k in range(len(record.arms)):
        proxy_N[arms_N == k] = _standardized(proxy_N[arms_N == k])
    curves["proxy"] = _mean(proxy_N, index_N, num)
    gain_R = _mean(column(rewards, "gold_margin_gain"), index_N, num)
    margin_R = np.cumsum(np.nan_to_num(gain_R))
    curves["gold_margin"] = np.where(np.isnan(gain_R), np.nan, margin_R)
    return curves


def arm_values(arms_N: ArrayLike, rewards_N: ArrayLike, num_arms: int) -> Array:
    """Returns the mean reward of each arm where it was chosen, NaN where it never had one.

    Under a bandit that looks at the context this is not the value of always choosing the arm;
    `panoply.bandit.off_policy` estimates that where the log supports it.
    """
    arms, rewards = np.asarray(arms_N, np.int64), np.asarray(rewards_N, np.float64)
    usable = np.isfinite(rewards)
    count = np.bincount(arms[usable], minlength=num_arms)
    total = np.bincount(arms[usable], rewards[usable], minlength=num_arms)
    return np.divide(total, count, out=np.full(num_arms, np.nan), where=count > 0)


def regret(arms_N: ArrayLike, values_K: ArrayLike) -> Array:
    """Returns the reward `[N]` lost so far against the best fixed arm.

        regret_n = sum_{i <= n} ( max_k v_k - v_{a_i} )

    An arm of unknown value (NaN) is neither the best nor counted.

    Args:
        arms_N: arm of each decision.
        values_K: v, mean reward of each arm: the true one, or by `arm_values`.
    """
    arms, values = np.asarray(arms_N, np.int64), np.asarray(values_K, np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.full(len(arms), np.nan)
    return np.cumsum(np.nan_to_num(finite.max() - values[arms]))


def alarms(curves: Mapping[str, Array], arms: Sequence[str], config: AlarmConfig) -> list[Alarm]:
    """Returns the alarms of the latest window of a run, at most one of each name.

    hacking: `proxy` rose against the window before by more than `sigmas` standard errors, and
    `gold_margin`, which has to be measured, did not. length: the mean moved by `length_drift` of
    the mean in the first window. format: the share of well-formed responses fell by `format_drop`
    since then. kl: the mean of the window is above `max_kl`. failed: more than `max_failed` had no
    reward.

    Before the first window is full there is no alarm, before the second one only those that need no
    comparison.
    """
    w, rounds = config.window, curves["round"]
    if len(rounds) < w:
        return []
    last = {name: values[-w:] for name, values in curves.items()}
    mean = {name: _level(values) for name, values in last.items()}
    raised: list[tuple[str, Action, str]] = []
    if mean["kl"] > config.max_kl:
        raised.append(("kl", config.kl, f"KL {mean['kl']:.3g} a token, allowed {config.max_kl:g}"))
    if mean["failed"] > config.max_failed:
        raised.append(("failed", config.failed, f"{mean['failed']:.0%} of decisions had no reward"))
    if len(rounds) >= 2 * w:
        raised += _moved(curves, mean, config)
    most = max(arms, key=lambda arm: mean[f"share/{arm}"])
    return [
        Alarm(int(rounds[-1]), name, message, action, most if action == "suspend" else "")
        for name, action, message in raised
    ]


def suspension_requests(alarms: Sequence[Alarm]) -> dict[str, str]:
    """Returns the reasons of arms that alarms ask to suspend, for `begin_round`."""
    return {a.arm: f"{a.name}: {a.message}" for a in alarms if a.action == "suspend"}


def stop_requests(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Returns the alarms that ask for the run to stop."""
    return [alarm for alarm in alarms if alarm.action == "stop"]


def _moved(
    curves: Mapping[str, Array], mean: Mapping[str, float], config: AlarmConfig
) -> list[tuple[str, Action, str]]:
    """Returns the alarms that compare the latest window with an earlier one."""
    w = config.window
    raised: list[tuple[str, Action, str]] = []
    proxy = rise(curves["proxy"][-2 * w : -w], curves["proxy"][-w:])
    gold = rise(curves["gold_margin"][-2 * w : -w], curves["gold_margin"][-w:])
    if proxy > config.sigmas and gold <= config.sigmas:
        text = f"scores rose by {proxy:.1f} standard errors, the gold margin by {gold:.1f}"
        raised.append(("hacking", config.hacking, text))
    first = {name: _level(curves[name][:w]) for name in ("length", "well_formed")}
    drift = abs(mean["length"] - first["length"])
    if drift > config.length_drift * first["length"]:
        text = f"mean length went from {first['length']:.0f} to {mean['length']:.0f} characters"
        raised.append(("length", config.length, text))
    if first["well_formed"] - mean["well_formed"] > config.format_drop:
        before, now = first["well_formed"], mean["well_formed"]
        text = f"well-formed responses fell from {before:.0%} to {now:.0%}"
        raised.append(("format", config.format, text))
    return raised


def rise(before: ArrayLike, after: ArrayLike) -> float:
    """Returns the rise of a mean in standard errors; NaN where either side has under two values.

    (mean_b - mean_a) / sqrt(var_a / n_a + var_b / n_b), as Welch's test has it; 0 or infinite where
    both sides are constant.
    """
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if min(len(a), len(b)) < 2:
        return float("nan")
    moved = float(b.mean() - a.mean())
    error = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    if error == 0:
        return float("inf") * moved if moved else 0.0
    return moved / error


def _shares(decisions: pa.Table, index_N: Ints, arms: tuple[str, ...], num: int) -> Series:
    """Returns the shares of arms among the prompts of each round, in all and by source."""
    sources: list[list[str]] = decisions["sources"].to_pylist()
    chosen: list[str] = decisions["arm"].to_pylist()
    # Counts by name of the curve's prefix: all prompts, and those of each named source.
    counts = {"share": np.zeros((len(arms), num))}
    for arm, r, prompt_sources in zip(chosen, index_N, sources, strict=True):
        k = arms.index(arm)
        for source in prompt_sources:
            counts["share"][k, r] += 1
            if source:
                of_source = counts.setdefault(f"share_in/{source}", np.zeros((len(arms), num)))
                of_source[k, r] += 1
    curves: Series = {}
    for prefix, count_KR in counts.items():
        total = count_KR.sum(0, keepdims=True)
        nan_KR = np.full(count_KR.shape, np.nan)
        share_KR = np.divide(count_KR, total, out=nan_KR, where=total > 0)
        curves |= {f"{prefix}/{arm}": row for arm, row in zip(arms, share_KR, strict=True)}
    return curves


def _entropy(p_NK: Array) -> Array:
    """Returns the entropy of each row over that of the uniform distribution."""
    log_p = np.log(p_NK, out=np.zeros_like(p_NK), where=p_NK > 0)
    return -(p_NK * log_p).sum(1) / np.log(max(p_NK.shape[1], 2))


def _mean(values_N: Array, index_N: Ints, num: int) -> Array:
    """Returns the mean of the finite values of each round."""
    count, total, _ = _sums(values_N, index_N, num)
    return np.divide(total, count, out=np.full(num, np.nan), where=count > 0)


def _errors(values_N: Array, index_N: Ints, num: int) -> Array:
    """Returns the standard error of the mean of all finite values up to each round."""
    # About their mean, or rounding takes the small difference of two large sums.
    center = values_N[np.isfinite(values_N)].mean() if np.isfinite(values_N).any() else 0.0
    count_R, total_R, squares_R = _sums(values_N - center, index_N, num)
    count, total, squares = np.cumsum(count_R), np.cumsum(total_R), np.cumsum(squares_R)
    n = np.maximum(count, 1)
    variance = np.maximum(squares - total**2 / n, 0) / np.maximum(n - 1, 1)
    return np.where(count > 1, np.sqrt(variance / n), np.nan)


def _sums(values_N: Array, index_N: Ints, num: int) -> tuple[Array, Array, Array]:
    """Returns the number, sum and sum of squares of the finite values of each round."""
    finite = np.isfinite(values_N)
    rows, values = index_N[finite], values_N[finite]
    count = np.bincount(rows, minlength=num).astype(np.float64)
    total = np.bincount(rows, values, num).astype(np.float64)
    squares = np.bincount(rows, values**2, num).astype(np.float64)
    return count, total, squares


def _standardized(values: Array) -> Array:
    """Returns the values about their mean, in units of their deviation; 0 where they are equal."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return values
    spread = float(finite.std())
    return (values - finite.mean()) / (spread if spread > 0 else 1.0)


def _level(values: Array) -> float:
    """Returns the mean of the finite values; NaN where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")

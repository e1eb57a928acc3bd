"""What a run's log shows round by round, and what in it calls for attention.

    curves = series(log.read())
    for alarm in alarms(curves, arms, config): ...

An alarm only says what should follow: the loop stops where it says 'pause', and hands
`orders(...)` to the next `begin_round` where it says 'sideline'. All is a function of the log, so a
run that died and goes on raises the same alarms.

Shapes: R rounds that have ended, N decisions, K arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from panoply.config.bandit import Action, AlarmConfig
from panoply.laser.log import Record, column, matrix
from panoply.types import Array

Series: TypeAlias = dict[str, Array]

MEANS = ("length", "well_formed", "kl", "disagreement", "loss", "reward")
"""Columns of the log whose mean over a round is a curve."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that should not be."""

    round: int
    """The last round that it was seen in."""
    name: str
    """`hacking`, `length`, `format`, `kl` or `failed`."""
    message: str
    action: Action
    arm: str = ""
    """The arm that was chosen most in the window, where the action is to sideline."""


def series(record: Record) -> Series:
    """Returns the curves of a log, `[R]` each; NaN where nothing was measured.

    `round`; `share/ARM`, share of the prompts that got the arm; `share_in/SOURCE/ARM`, the same
    within a source; `uncertainty`, mean entropy of the probabilities that arms were drawn with, 1
    where all arms are as likely; `error/ARM`, standard error of the arm's mean reward so far;
    `regret` against the best fixed arm by `arm_values`; `proxy`, mean of the arms' scores, each arm
    in units of its own deviation about its own mean over the log; `probe`, sum of the probe's gains
    so far; `failed`, share of decisions without a reward; and the means `length`, `well_formed`,
    `kl`, `disagreement`, `loss` and `reward`.
    """
    decisions, rewards = record.ended, record.rewards
    rounds, index_N = np.unique(rewards["round"].to_numpy(), return_inverse=True)
    arms_N = np.array([record.arms.index(arm) for arm in rewards["arm"].to_pylist()], np.int64)
    num = len(rounds)
    found: Series = {"round": rounds.astype(np.float64)}
    found |= _shares(decisions, index_N, record.arms, num)
    entropy_N = _entropy(matrix(decisions["probabilities"]))
    found["uncertainty"] = _mean(entropy_N, index_N, num)
    reward_N = column(rewards, "reward")
    for k, arm in enumerate(record.arms):
        found[f"error/{arm}"] = _errors(np.where(arms_N == k, reward_N, np.nan), index_N, num)
    last_N = np.append(index_N[1:] != index_N[:-1], True) if len(index_N) else index_N == 0
    values_K = arm_values(arms_N, reward_N, len(record.arms))
    found["regret"] = regret(arms_N, values_K)[last_N]
    for name in MEANS:
        found[name] = _mean(column(rewards, name), index_N, num)
    proxy_N = column(rewards, "proxy")
    for k in range(len(record.arms)):
        proxy_N[arms_N == k] = _standardized(proxy_N[arms_N == k])
    found["proxy"] = _mean(proxy_N, index_N, num)
    gain_R = _mean(column(rewards, "probe_gain"), index_N, num)
    probe_R = np.cumsum(np.nan_to_num(gain_R))
    found["probe"] = np.where(np.isnan(gain_R), np.nan, probe_R)
    found["failed"] = _mean(np.isnan(reward_N) * 1.0, index_N, num)
    return found


def arm_values(arms_N: ArrayLike, rewards_N: ArrayLike, num_arms: int) -> Array:
    """Returns the mean reward of each arm where it was chosen, NaN where it never had one.

    Under a policy that looks at the context this is not what the arm would get if it were always
    chosen; `panoply.bandit.off_policy` estimates that where the log supports it.
    """
    arms, rewards = np.asarray(arms_N, np.int64), np.asarray(rewards_N, np.float64)
    usable = np.isfinite(rewards)
    count = np.bincount(arms[usable], minlength=num_arms)
    total = np.bincount(arms[usable], rewards[usable], minlength=num_arms)
    return np.divide(total, count, out=np.full(num_arms, np.nan), where=count > 0)


def regret(arms_N: ArrayLike, values_K: ArrayLike) -> Array:
    """Returns `[N]` what was lost so far against the best fixed arm.

        regret_n = sum_{i <= n} ( max_k v_k - v_{a_i} )

    An arm of unknown value (NaN) is neither the best nor counted.

    Args:
        arms_N: arm of each decision.
        values_K: v, mean reward of each arm: known, by `off_policy.snips`, or by `arm_values`.
    """
    arms, values = np.asarray(arms_N, np.int64), np.asarray(values_K, np.float64)
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full(len(arms), np.nan)
    return np.cumsum(np.nan_to_num(known.max() - values[arms]))


def alarms(curves: Mapping[str, Array], arms: Sequence[str], config: AlarmConfig) -> list[Alarm]:
    """Returns what is wrong in the latest window of a run, at most one alarm of each name.

    hacking: `proxy` rose against the window before by more than `sigmas` standard errors, and
    `probe`, which has to be measured, did not. length: the mean moved by `length_drift` of what it
    was in the first window. format: the share of well-formed responses fell by `format_drop` since
    then. kl: the mean of the window is above `max_kl`. failed: more than `max_failed` had no
    reward.

    Before the first window is full nothing is called wrong, before the second one only what needs
    no comparison.
    """
    w, rounds = config.window, curves["round"]
    if len(rounds) < w:
        return []
    last = {name: values[-w:] for name, values in curves.items()}
    mean = {name: _level(values) for name, values in last.items()}
    told: list[tuple[str, Action, str]] = []
    if mean["kl"] > config.max_kl:
        told.append(("kl", config.kl, f"KL {mean['kl']:.3g} a token, allowed {config.max_kl:g}"))
    if mean["failed"] > config.max_failed:
        told.append(("failed", config.failed, f"{mean['failed']:.0%} of decisions had no reward"))
    if len(rounds) >= 2 * w:
        told += _moved(curves, mean, config)
    most = max(arms, key=lambda arm: mean[f"share/{arm}"])
    return [
        Alarm(int(rounds[-1]), name, message, action, most if action == "sideline" else "")
        for name, action, message in told
    ]


def orders(alarms: Sequence[Alarm]) -> dict[str, str]:
    """Returns the arms that alarms ask to sideline, with the reason, for `begin_round`."""
    return {a.arm: f"{a.name}: {a.message}" for a in alarms if a.action == "sideline"}


def pauses(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Returns the alarms that ask for the run to stop."""
    return [alarm for alarm in alarms if alarm.action == "pause"]


def _moved(
    curves: Mapping[str, Array], mean: Mapping[str, float], config: AlarmConfig
) -> list[tuple[str, Action, str]]:
    """Returns the alarms that compare the latest window with an earlier one."""
    w = config.window
    told: list[tuple[str, Action, str]] = []
    proxy = rise(curves["proxy"][-2 * w : -w], curves["proxy"][-w:])
    probe = rise(curves["probe"][-2 * w : -w], curves["probe"][-w:])
    if proxy > config.sigmas and probe <= config.sigmas:
        text = f"scores rose by {proxy:.1f} standard errors, the probe by {probe:.1f}"
        told.append(("hacking", config.hacking, text))
    first = {name: _level(curves[name][:w]) for name in ("length", "well_formed")}
    drift = abs(mean["length"] - first["length"])
    if drift > config.length_drift * first["length"]:
        text = f"mean length went from {first['length']:.0f} to {mean['length']:.0f} characters"
        told.append(("length", config.length, text))
    if first["well_formed"] - mean["well_formed"] > config.format_drop:
        text = f"well-formed responses fell from {first['well_formed']:.0%} to "
        told.append(("format", config.format, text + f"{mean['well_formed']:.0%}"))
    return told


def rise(before: ArrayLike, after: ArrayLike) -> float:
    """Returns by how many standard errors a mean rose; NaN where either side has under two values.

    (mean_b - mean_a) / sqrt(var_a / n_a + var_b / n_b), as Welch's test has it; 0 or infinite where
    both sides are constant.
    """
    a, b = (np.asarray(x, np.float64) for x in (before, after))
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if min(len(a), len(b)) < 2:
        return float("nan")
    moved = float(b.mean() - a.mean())
    error = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    if error == 0:
        return float("inf") * moved if moved else 0.0
    return moved / error


def _shares(
    decisions: pa.Table, index_N: NDArray[np.int64], arms: tuple[str, ...], num: int
) -> Series:
    """Returns the shares of arms among the prompts of each round, in all and by source."""
    sources: list[list[str]] = decisions["sources"].to_pylist()
    chosen: list[str] = decisions["arm"].to_pylist()
    names = sorted({source for some in sources for source in some if source})
    own, every = np.zeros((len(names), len(arms), num)), np.zeros((len(arms), num))
    for row, (arm, some) in enumerate(zip(chosen, sources, strict=True)):
        k, r = arms.index(arm), index_N[row]
        every[k, r] += len(some)
        for source in some:
            if source:
                own[names.index(source), k, r] += 1
    found = {f"share/{arm}": row for arm, row in zip(arms, _normalized(every), strict=True)}
    for source, count_KR in zip(names, own, strict=True):
        rows = zip(arms, _normalized(count_KR), strict=True)
        found |= {f"share_in/{source}/{arm}": row for arm, row in rows}
    return found


def _normalized(count_KR: Array) -> Array:
    total = count_KR.sum(0, keepdims=True)
    return np.divide(count_KR, total, out=np.full(count_KR.shape, np.nan), where=total > 0)


def _entropy(p_NK: Array) -> Array:
    """Returns the entropy of each row over that of the uniform distribution."""
    log_p = np.log(p_NK, out=np.zeros_like(p_NK), where=p_NK > 0)
    return -(p_NK * log_p).sum(1) / np.log(max(p_NK.shape[1], 2))


def _mean(values_N: Array, index_N: NDArray[np.int64], num: int) -> Array:
    """Returns the mean of the known values of each round."""
    count, total, _ = _sums(values_N, index_N, num)
    return np.divide(total, count, out=np.full(num, np.nan), where=count > 0)


def _errors(values_N: Array, index_N: NDArray[np.int64], num: int) -> Array:
    """Returns the standard error of the mean of all known values up to each round."""
    center = values_N[np.isfinite(values_N)].mean() if np.isfinite(values_N).any() else 0.0
    sums = (np.cumsum(part) for part in _sums(values_N - center, index_N, num))
    count, total, squares = sums
    n = np.maximum(count, 1)
    variance = np.maximum(squares - total**2 / n, 0) / np.maximum(n - 1, 1)
    return np.where(count > 1, np.sqrt(variance / n), np.nan)


def _sums(values_N: Array, index_N: NDArray[np.int64], num: int) -> tuple[Array, Array, Array]:
    known = np.isfinite(values_N)
    rows, values = index_N[known], values_N[known]
    powers = (np.ones_like(values), values, values**2)
    count, total, squares = (np.bincount(rows, power, num).astype(np.float64) for power in powers)
    return count, total, squares


def _standardized(values: Array) -> Array:
    """Returns the values about their mean, in units of their deviation; 0 where they are equal."""
    known = values[np.isfinite(values)]
    if not len(known):
        return values
    spread = float(known.std())
    return (values - known.mean()) / (spread if spread > 0 else 1.0)


def _level(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")

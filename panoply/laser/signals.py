"""Bandit rewards, computed side by side from what was measured of the decisions of a round.

    measured:  loss    loss_after  probe_gain  verifier  held_out_gain  agreement
    signals:   negative_loss, advantage  improvement  probe  verifier  held_out  agreement

Losses and gains have no scale of their own, so negative_loss, improvement, probe and held_out are
places between rolling quantiles (`quantile_rewards`); advantage, verifier and agreement are taken
as they are. All are NaN where what they need was not measured.

Shapes: B decisions of a round, N decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike

from panoply.config.bandit import Signal, SignalConfig
from panoply.laser.rewards import advantages, gains, quantile_rewards
from panoply.measure.intervals import percentiles, resampled_spearman
from panoply.measure.metrics import spearman
from panoply.types import Array

NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOutcome:
    """What was measured of one prompt after its round; NaN is what was not.

    Example: `PromptOutcome(prompt_id="a", loss=0.61, verifier=1.0, length=412.0)`.
    """

    prompt_id: str
    loss: float = NAN
    """Training loss on the prompt's pairs, before the step."""
    loss_after: float = NAN
    """The same after the step."""
    probe_gain: float = NAN
    """By how much the step raised the policy's mean margin on trusted pairs: the same for all
    prompts of a round, or for all of a source where each source has pairs of its own."""
    held_out_gain: float = NAN
    """By how much the step raised quality on held-out data: the same for all prompts."""
    verifier: float = NAN
    """`panoply.laser.rewards.verified`, or any verdict on the arm's choice in [0, 1]."""
    agreement: float = NAN
    """`panoply.laser.rewards.agreement`."""
    proxy: float = NAN
    """Mean of the arm's scores of the policy's responses, on the arm's own fixed scale."""
    length: float = NAN
    """Mean characters of the responses."""
    well_formed: float = NAN
    """Share of the responses that have the wanted format."""
    kl: float = NAN
    """KL of the policy from its start on the responses, in nats for each token."""
    disagreement: float = NAN
    """`panoply.laser.rewards.disagreement`, where all arms scored."""
    failure: str = ""
    """Why the arm gave no scores; empty where it did."""


MEASURES = tuple(f.name for f in fields(PromptOutcome) if f.name not in ("prompt_id", "failure"))
"""The measured numbers."""
LIMIT = 1e6
"""Size beyond which a measurement is taken for broken: one would fill a running mean for long."""
PLACED: tuple[Signal, ...] = ("negative_loss", "improvement", "probe", "held_out")
"""Signals that are placed between quantiles of recent values."""


@dataclass(frozen=True, slots=True)
class SignalState:
    """What signals remember from round to round."""

    recent: Mapping[Signal, tuple[Array, ...]] = field(
        default_factory=lambda: dict[Signal, tuple[Array, ...]]()
    )
    """Usable raw values of the latest rounds."""
    baseline: float = NAN
    """Running mean of the negative loss."""


def signals(
    measured: Mapping[str, Array], carry: SignalState, config: SignalConfig
) -> tuple[dict[Signal, Array], SignalState]:
    """Returns every signal `[B]` of a round, in [-1, 1] or NaN, and what the next round needs.

    Args:
        measured: `[B]` by name of `PromptOutcome`.
        carry: after the round before.
        config: quantiles, window and decay.
    """
    raw: dict[Signal, Array] = {
        "negative_loss": -finite(measured["loss"]),
        "improvement": gains(finite(measured["loss_after"]), finite(measured["loss"])),
        "probe": finite(measured["probe_gain"]),
        "held_out": finite(measured["held_out_gain"]),
    }
    found: dict[Signal, Array] = {}
    recent: dict[Signal, tuple[Array, ...]] = {}
    for name in PLACED:
        before = carry.recent.get(name, ())[-(config.window - 1) :] if config.window > 1 else ()
        joined = np.concatenate([np.empty(0), *before])
        found[name] = quantile_rewards(
            raw[name], joined, low=config.low, high=config.high, wait=config.wait
        )
        recent[name] = (*before, raw[name][np.isfinite(raw[name])])
    found["advantage"], baseline = advantages(
        raw["negative_loss"], carry.baseline, decay=config.decay
    )
    for name in ("verifier", "agreement"):
        value = finite(measured[name])
        found[name] = np.where(np.abs(value) <= 1, value, np.nan)
    return found, SignalState(recent, baseline)


def finite(values: ArrayLike) -> Array:
    """Returns the values with NaN for whatever is no number, or so large that it must be broken."""
    given = np.asarray(values, np.float64)
    return np.where(np.abs(given) <= LIMIT, given, np.nan)  # false where NaN


def correlations(
    signals: Mapping[str, ArrayLike], quality_N: ArrayLike, rounds_N: ArrayLike
) -> dict[str, dict[str, float | list[float]]]:
    """Returns how well each signal ranks decisions as held-out quality does.

    Args:
        signals: `[N]` by name.
        quality_N: held-out quality of each decision, such as whether the arm was right there, or
            the held-out gain of its round.
        rounds_N: what is resampled together for the intervals.

    Returns:
        By signal: `spearman` with its `ci95`, over the `n` decisions that have both. NaN where
        either does not vary.
    """
    quality, rounds = finite(quality_N), np.asarray(rounds_N)
    found: dict[str, dict[str, float | list[float]]] = {}
    for name, values in signals.items():
        value = finite(values)
        both = ~np.isnan(value) & ~np.isnan(quality)
        x, y, groups = value[both], quality[both], rounds[both]
        found[name] = {
            "spearman": spearman(x, y),
            "ci95": percentiles(resampled_spearman(x, y, groups)),
            "n": float(both.sum()),
        }
    return found

"""Candidate rewards of the bandit, all computed from the measurements of a round's decisions.

    measurement                         signal
    loss                                negative_loss, advantage
    loss_after                          improvement
    gold_margin_gain                    gold_margin
    held_out_gain                       held_out
    verifier, agreement                 verifier, agreement

Losses and gains have no scale of their own, so negative_loss, improvement, gold_margin and held_out
are places between rolling quantiles (`quantile_rewards`); advantage, verifier and agreement are
taken as they are. A signal is NaN where its measurement is missing.

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
    """Measurements of one prompt after its round; NaN is what was not measured.

    Example: `PromptOutcome(prompt_id="a", loss=0.61, verifier=1.0, length=412.0)`.
    """

    prompt_id: str
    loss: float = NAN
    """Training loss on the prompt's pairs, before the step."""
    loss_after: float = NAN
    """The same after the step."""
    gold_margin_gain: float = NAN
    """Rise of the policy's mean margin on gold pairs by the step: the same for all prompts of a
    round, or for all of a source where each source has pairs of its own."""
    held_out_gain: float = NAN
    """Rise of quality on held-out data by the step: the same for all prompts."""
    verifier: float = NAN
    """`panoply.laser.rewards.verifier_auc`, or any verdict on the arm's choice in [0, 1]."""
    agreement: float = NAN
    """`panoply.laser.rewards.arm_agreement`."""
    proxy: float = NAN
    """Mean of the arm's scores of the policy's responses, on the arm's own fixed scale."""
    length: float = NAN
    """Mean characters of the responses."""
    well_formed: float = NAN
    """Share of the responses that have the wanted format."""
    kl: float = NAN
    """KL of the policy from its start on the responses, in nats for each token."""
    disagreement: float = NAN
    """`panoply.laser.rewards.arm_disagreement`, where all arms scored."""
    failure: str = ""
    """Reason why the arm gave no scores; empty where it did."""


MEASURES = tuple(f.name for f in fields(PromptOutcome) if f.name not in ("prompt_id", "failure"))
"""Measurements that are numbers."""
LIMIT = 1e6
"""Size beyond which a measurement is taken for broken: one would fill a running mean for long."""
QUANTILE_SIGNALS: tuple[Signal, ...] = ("negative_loss", "improvement", "gold_margin", "held_out")
"""Signals that are placed between quantiles of recent values."""


@dataclass(frozen=True, slots=True)
class SignalState:
    """Memory of the signals from round to round."""

    recent: Mapping[Signal, tuple[Array, ...]] = field(
        default_factory=lambda: dict[Signal, tuple[Array, ...]]()
    )
    """Usable raw values of the latest rounds."""
    baseline: float = NAN
    """Running mean of the negative loss."""


def signals(
    measured: Mapping[str, Array], state: SignalState, config: SignalConfig
) -> tuple[dict[Signal, Array], SignalState]:
    """Returns every signal `[B]` of a round, in [-1, 1] or NaN, and the state for the next one.

    Args:
        measured: `[B]` by name of `PromptOutcome`.
        state: state after the round before.
        config: quantiles, window and decay.
    """
    raw: dict[Signal, Array] = {
        "negative_loss": -finite(measured["loss"]),
        "improvement": gains(finite(measured["loss_after"]), finite(measured["loss"])),
        "gold_margin": finite(measured["gold_margin_gain"]),
        "held_out": finite(measured["held_out_gain"]),
    }
    values: dict[Signal, Array] = {}
    recent: dict[Signal, tuple[Array, ...]] = {}
    for name in QUANTILE_SIGNALS:
        before = state.recent.get(name, ())[-(config.window - 1) :] if config.window > 1 else ()
        values[name] = quantile_rewards(
            raw[name],
            np.concatenate([np.empty(0), *before]),
            low=config.low,
            high=config.high,
            min_history=config.min_history,
        )
        recent[name] = (*before, raw[name][np.isfinite(raw[name])])
    values["advantage"], baseline = advantages(
        raw["negative_loss"], state.baseline, decay=config.decay
    )
    for name in ("verifier", "agreement"):
        value = finite(measured[name])
        values[name] = np.where(np.abs(value) <= 1, value, np.nan)
    return values, SignalState(recent, baseline)


def finite(values: ArrayLike) -> Array:
    """Returns the values with NaN for whatever is no number, or so large that it must be broken."""
    numbers = np.asarray(values, np.float64)
    return np.where(np.abs(numbers) <= LIMIT, numbers, np.nan)  # false where NaN


def correlations(
    signals: Mapping[str, ArrayLike], quality_N: ArrayLike, rounds_N: ArrayLike
) -> dict[str, dict[str, float | list[float]]]:
    """Returns how well each signal ranks decisions as their quality does.

    Args:
        signals: `[N]` by name.
        quality_N: quality of each decision, such as whether the arm was right there, or the
            held-out gain of its round.
        rounds_N: round of each decision; rounds are resampled whole for the intervals.

    Returns:
        By signal: `spearman` with its `ci95`, over the `n` decisions that have both. NaN where
        either does not vary.
    """
    quality, rounds = finite(quality_N), np.asarray(rounds_N)
    by_signal: dict[str, dict[str, float | list[float]]] = {}
    for name, values in signals.items():
        value = finite(values)
        both = ~np.isnan(value) & ~np.isnan(quality)
        x, y, groups = value[both], quality[both], rounds[both]
        by_signal[name] = {
            "spearman": spearman(x, y),
            "ci95": percentiles(resampled_spearman(x, y, groups)),
            "n": float(both.sum()),
        }
    return by_signal

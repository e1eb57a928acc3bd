"""Escalation: a costly scorer B is asked about the pairs in which a cheap scorer A is unsure.

    z_ij = (a_i - a_j) / u                       A's margin in the unit u of its prompt's group
    l_ij = slope z_ij                            log odds that i is better, by A alone
    l_ij = fused_slope z_ij + verdict v_ij       by both, where B was asked; v_ij is B's margin

B is asked where |l| is least. What it says is evidence beside A's, in place of a verdict that
overrules it: a sure A is not overturned by a weak B. All coefficients are fitted by Bradley-Terry
on pairs whose better response is known (`fit_escalation`), which also tests whether the margins of
A tell at all where B helps. Where they do not, asking by margin is asking at random.

That a strong judge pays where a reward model is uncertain is of arXiv 2510.20369, which takes the
uncertainty from a model of its own (SNGP); margins within the group need nothing but the scores.

Shapes: P pairs, n responses to a prompt, Q pairs that are asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from panoply.config.composite_fit import EscalationFit
from panoply.measure.intervals import (
    FEWEST_GROUPS,
    group_index,
    percentiles,
    resampled_sums,
    wins,
)
from panoply.scorers.composite.fitting import fit_weights
from panoply.types import Array, Ints

PRIOR = 1.0
"""Responses that the frozen spread counts for, beside those of a group."""
FOLDS = 5
"""Parts of the groups, each of which is judged by a rule that is fitted on the others."""


def pooled_spread(groups: Sequence[ArrayLike]) -> float:
    """Returns the deviation of scores about the mean of their group, over all groups.

    spread^2 = sum_g sum_i (a_gi - mean_g)^2 / sum_g (n_g - 1)

    Groups of one response have no part in it; NaN where there are no others.
    """
    squares, freedom = 0.0, 0
    for group in groups:
        scores = np.asarray(group, np.float64)
        scores = scores[np.isfinite(scores)]
        if len(scores) > 1:
            squares += float(((scores - scores.mean()) ** 2).sum())
            freedom += len(scores) - 1
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def group_unit(scores_n: ArrayLike, spread: float) -> float:
    """Returns the unit of margins in a group: its own deviation, shrunk to the frozen spread.

    u^2 = (sum_i (a_i - mean)^2 + PRIOR spread^2) / (n - 1 + PRIOR)

    A group of two has no deviation of its own that could be told from its margin, and gets mostly
    the frozen one; of many responses, mostly their own.
    """
    scores = np.asarray(scores_n, np.float64)
    scores = scores[np.isfinite(scores)]
    squares = float(((scores - scores.mean()) ** 2).sum()) if len(scores) else 0.0
    freedom = max(0, len(scores) - 1)
    return float(np.sqrt((squares + PRIOR * spread**2) / (freedom + PRIOR)))


def fit_escalation(
    z_P: ArrayLike,
    verdict_P: ArrayLike,
    groups_P: ArrayLike,
    spread: float,
    share: float,
    seed: int = 0,
) -> EscalationFit:
    """Fits the coefficients, the threshold for a share of calls, and the test of the margins.

    The test: groups are cut into FOLDS parts; on each, the decisions with B fused in are those of
    coefficients that the others gave. With pairs ordered by |z|, least first, and gain r_i what
    asking about pair i changes in its accuracy (-1, -1/2, 0, 1/2 or 1),

    area = mean r_i (1/2 - i / P)

    is how far the curve of gain against calls lies above that of random calls. It is reported with
    an interval over resampled groups, and margins are informative where all of that is above 0.

    Args:
        z_P: margins of A in units of their groups, of the better response less the worse; pairs
            that miss it are left out.
        verdict_P: margins of B likewise; NaN where it gave none.
        groups_P: prompt of each pair.
        spread: frozen spread of A's scores, of which their units are made.
        share: share of the pairs about which B is to be asked.
        seed: of folds and resampling.

    Raises:
        ValueError: no pair has both margins, or the pairs are of too few prompts to test them.
    """
    z, verdict = np.asarray(z_P, np.float64), np.asarray(verdict_P, np.float64)
    has_margin = np.isfinite(z)
    z, verdict, groups = z[has_margin], verdict[has_margin], np.asarray(groups_P)[has_margin]
    slope, fused_slope, weight = _coefficients(z, verdict)
    index, num_groups = group_index(groups)
    if num_groups < FEWEST_GROUPS:
        raise ValueError(
            f"an escalation is fitted on pairs of {FEWEST_GROUPS} prompts or more, got "
            f"{num_groups}: give more pairs"
        )
    fold_G = np.random.default_rng(seed).permutation(num_groups) % FOLDS
    fold_P = fold_G[index]
    gain_P = np.zeros(len(z))
    for fold in range(FOLDS):
        inside, outside = fold_P == fold, fold_P != fold
        if not (np.isfinite(z) & np.isfinite(verdict))[outside].any():
            continue
        _, fused, of_verdict = _coefficients(z[outside], verdict[outside])
        decided = fused_log_odds(z[inside], verdict[inside], fused, of_verdict)
        gain_P[inside] = wins(decided) - wins(z[inside])
    terms_P = gain_P * (0.5 - rank_by_size(z) / len(z))
    columns_P2 = np.column_stack([terms_P, np.ones(len(z))])
    sums_B2 = resampled_sums(columns_P2, groups, seed=seed)
    low, high = percentiles(sums_B2[:, 0] / sums_B2[:, 1])
    return EscalationFit(
        spread=spread,
        slope=slope,
        fused_slope=fused_slope,
        verdict=weight,
        ask_below=threshold(z, slope, share),
        area=float(terms_P.mean()),
        area_low=low,
        area_high=high,
        gain_of_all=float(gain_P.mean()),
    )


def threshold(z_P: ArrayLike, slope: float, share: float) -> float:
    """Returns the log odds of A below which a share of the pairs lies."""
    return float(np.quantile(slope * np.abs(np.asarray(z_P, np.float64)), share))


def rank_by_size(margins_P: ArrayLike) -> Ints:
    """Returns the place 0 .. P-1 of each margin when they are ordered by size, least first."""
    order = np.argsort(np.abs(np.asarray(margins_P, np.float64)), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def fused_log_odds(
    z_P: ArrayLike, verdict_P: ArrayLike, fused_slope: float, verdict_weight: float
) -> Array:
    """Returns fused_slope z + verdict v; where B gave no verdict the sign of A's margin decides."""
    z, verdict = np.asarray(z_P, np.float64), np.asarray(verdict_P, np.float64)
    return np.where(np.isnan(verdict), z, fused_slope * z + verdict_weight * verdict)


def unsure_pairs(z_nn: Array, fit: EscalationFit, most: int) -> list[tuple[int, int]]:
    """Returns the pairs i < j of a group about which B is asked, the least sure ones first.

    Args:
        z_nn: margins of A in the unit of the group; NaN where a score is missing.
        fit: coefficients and threshold.
        most: maximum pairs of a group.
    """
    first, second = np.triu_indices(len(z_nn), 1)
    size_Q = fit.slope * np.abs(z_nn[first, second])
    order = [int(k) for k in np.argsort(size_Q, kind="stable") if size_Q[k] <= fit.ask_below]
    return [(int(first[k]), int(second[k])) for k in order[:most]]


def fused_scores(scores_n: ArrayLike, verdict_nn: Array, unit: float, fit: EscalationFit) -> Array:
    """Returns `[n]`, scores in log odds whose differences fit the pairs' log odds best.

    s_i = slope mean(a) / spread + 1/n sum_j l_ij

    The second term is the least-squares solution of s_i - s_j = l_ij over all pairs (Borda's count
    of log odds); the first puts prompts on A's level again, which differences do not have. Where no
    pair was asked, the order is A's.

    Args:
        scores_n: of A, without missing ones.
        verdict_nn: margins of B; NaN where it was not asked or gave none.
        unit: of the group's margins.
        fit: coefficients, and the frozen spread.
    """
    scores = np.asarray(scores_n, np.float64)
    z_nn = (scores[:, None] - scores[None, :]) / unit
    fused_nn = fit.fused_slope * z_nn + fit.verdict * verdict_nn
    log_odds_nn = np.where(np.isnan(verdict_nn), fit.slope * z_nn, fused_nn)
    return fit.slope * scores.mean() / fit.spread + log_odds_nn.mean(1)


def _coefficients(z_P: Array, verdict_P: Array) -> tuple[float, float, float]:
    """Returns slope, fused slope and weight of verdicts."""
    both_P2 = np.column_stack([z_P, verdict_P])
    (slope,) = fit_weights(z_P[:, None])
    fused_slope, weight = fit_weights(both_P2)
    return float(slope), float(fused_slope), float(weight)

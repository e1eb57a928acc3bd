"""Several scorers on the same groups of responses: agreement, choices, advantages.

Scores of different scorers have no common unit, so they are only compared within a prompt's group.
A missing score is NaN and enters nothing; what is not defined is NaN.

Shapes: n responses of a group, K scorers or parts, G groups, N responses of all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from panoply.types import Array

EPSILON = 1e-4
"""Added to a deviation, as TRL's trainers have it."""


class GroupAgreement(NamedTuple):
    """Counts how each two scorers `[K, K]` order a group's pairs of responses."""

    tau_KK: Array
    """Kendall's tau-b; NaN where either has no two different scores."""
    alike_KK: Array
    """Pairs that both order, and in the same way."""
    ordered_KK: Array
    """Pairs that both order."""


def agreement(scores_Kn: Array) -> GroupAgreement:
    """Returns the agreement of each two scorers on one group.

    With o_k(i, j) = sign(s_ki - s_kj), over the pairs i < j that both have scored:

        tau_b(k, l) = sum o_k o_l / sqrt(sum o_k^2 sum o_l^2)
        alike       = number of pairs with o_k o_l = 1, of those with o_k o_l != 0
    """
    first, second = np.triu_indices(scores_Kn.shape[1], 1)
    difference = scores_Kn[:, first] - scores_Kn[:, second]
    present = np.isfinite(difference) * 1.0
    order = np.sign(np.where(present > 0, difference, 0.0))
    product = order @ order.T
    ordered = np.abs(order) @ np.abs(order).T
    squares = np.abs(order) @ present.T  # o_k^2 where l has scored too
    norm = np.sqrt(squares * squares.T)
    tau = np.divide(product, norm, out=np.full_like(norm, np.nan), where=norm > 0)
    return GroupAgreement(tau, (product + ordered) / 2, ordered)


def choice(scores_n: Array) -> Array:
    """Returns the probability `[n]` with which each response is chosen: the best, ties evenly.

    p_i = 1[s_i = max s] / |{j: s_j = max s}|; all NaN where there is no score.
    """
    if not np.isfinite(scores_n).any():
        return np.full(len(scores_n), np.nan)
    best_n = scores_n == np.nanmax(scores_n)
    return best_n / best_n.sum()


def chosen_value(choice_n: Array, value_n: Array) -> float:
    """Returns sum_i p_i v_i, what a choice is worth; NaN where a chosen response has no value."""
    taken = choice_n > 0
    return float(choice_n[taken] @ value_n[taken]) if taken.any() else float("nan")


def same_choice(choices_Kn: Array) -> Array:
    """Returns sum_i p_ki p_li, the probability that two scorers choose the same, `[K, K]`."""
    return choices_Kn @ choices_Kn.T


def grpo_advantages(rewards_n: Array) -> Array:
    """Returns the advantages within one group, `[n]` (GRPO, arXiv 2402.03300).

    A_i = (r_i - mean r) / (std r + eps), std with n - 1; 0 where all rewards are equal.
    """
    present = np.isfinite(rewards_n)
    advantages = np.full(len(rewards_n), np.nan)
    rewards = rewards_n[present]
    if has_spread(rewards_n):
        deviation = rewards.std(ddof=1)
        advantages[present] = (rewards - rewards.mean()) / (deviation + EPSILON)
    else:
        advantages[present] = 0.0
    return advantages


def has_spread(rewards_n: Array) -> bool:
    """Returns whether a group's rewards differ, so that it moves a policy."""
    present = rewards_n[np.isfinite(rewards_n)]
    return len(present) > 1 and bool(np.ptp(present) > 0)


def gdpo_advantages(parts: Sequence[Array], batch_G: Sequence[str]) -> list[Array]:
    """Returns advantages in which each part of a reward is normalized by itself (arXiv 2601.05242).

        a_i = sum_k (r_ki - mean r_k) / (std r_k + eps)      within the group
        A_i = (a_i - mean a) / (std a + eps)                 over the batch

    A part that is missing adds nothing; a response without any is NaN. Parts have equal weights.

    Args:
        parts: rewards `[K, n]` of each group.
        batch_G: batch of each group: the training step that it belongs to.
    """
    sums = [_part_sum(part_Kn) for part_Kn in parts]
    result = list(sums)
    for batch in dict.fromkeys(batch_G):
        members = [g for g, name in enumerate(batch_G) if name == batch]
        values = np.concatenate([sums[g] for g in members])
        values = values[np.isfinite(values)]
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        center = values.mean() if len(values) else 0.0
        for g in members:
            result[g] = (sums[g] - center) / (spread + EPSILON)
    return result


def _part_sum(part_Kn: Array) -> Array:
    normalized = np.array([grpo_advantages(part_n) for part_n in part_Kn])
    total = np.where(np.isfinite(normalized), normalized, 0.0).sum(0)
    return np.where(np.isfinite(part_Kn).any(0), total, np.nan)


def correlation(x_N: Array, y_N: Array) -> float:
    """Returns Pearson's correlation where both are present; NaN where either is constant."""
    both = np.isfinite(x_N) & np.isfinite(y_N)
    x, y = x_N[both], y_N[both]
    if len(x) < 2 or not (np.ptp(x) and np.ptp(y)):
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def opposite_share(x_N: Array, y_N: Array) -> float:
    """Returns the share of responses that one advantage raises and the other lowers.

    Of those that both move: 1[x y < 0] over 1[x y != 0].
    """
    product: NDArray[np.float64] = x_N * y_N
    moved = np.isfinite(product) & (product != 0)
    return float((product[moved] < 0).mean()) if moved.any() else float("nan")

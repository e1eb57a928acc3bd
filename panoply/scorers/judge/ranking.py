"""Scores of a group of responses from verdicts on pairs of them.

Legend: `n` responses to one prompt. A game is a verdict on a pair, of both orders together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from panoply.types import Array

PRIOR_GAMES = 1.0
"""Games that each response draws against one of strength 0 (`bradley_terry`)."""
STEPS = 100
"""Newton steps. The likelihood is concave, and a few are enough."""


def pairs_of(num_responses: int, kind: str) -> list[tuple[int, int]]:
    """Returns the pairs of a group that are judged.

    Args:
        num_responses: n.
        kind: "all", n (n - 1) / 2 pairs; "circular", each response and the next one, and the last
            and the first: n pairs, or one where n = 2.
    """
    if kind == "all" or num_responses <= 3:
        return list(combinations(range(num_responses), 2))
    return [(i, (i + 1) % num_responses) for i in range(num_responses)]


def win_share(wins_nn: Array, games_nn: Array) -> Array:
    """Returns the share of its games that each response won, a tie as half; NaN without a game.

        s_i = sum_j w_ij / sum_j g_ij

    Args:
        wins_nn: w, games that i won against j.
        games_nn: g, games of i and j: w_ij + w_ji.
    """
    num_n = games_nn.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(num_n > 0, wins_nn.sum(axis=1) / num_n, np.nan)


def bradley_terry(wins_nn: Array, games_nn: Array, prior_games: float = PRIOR_GAMES) -> Array:
    """Returns the log strengths of a Bradley-Terry model; NaN of a response without a game.

        max_s  sum_ij w_ij log sigma(s_i - s_j) + a sum_i (log sigma(s_i) + log sigma(-s_i)) / 2

    The second sum (a is `prior_games`) is a draw against a response of strength 0. It keeps the
    strength of whoever won or lost all games finite, and joins groups that never met.
    sigma(s_i - s_j) is the probability that i is better than j (Bradley and Terry, 1952).

    Args:
        wins_nn: w, games that i won against j, a tie as half for each.
        games_nn: g, games of i and j.
        prior_games: a, positive.
    """
    strength_n = np.zeros(len(wins_nn))
    for _ in range(STEPS):
        p_nn = 1 / (1 + np.exp(strength_n[None, :] - strength_n[:, None]))
        p_n = 1 / (1 + np.exp(-strength_n))
        gradient_n = (wins_nn - games_nn * p_nn).sum(axis=1) + prior_games * (0.5 - p_n)
        weight_nn = games_nn * p_nn * (1 - p_nn)
        curvature_nn = np.diag(weight_nn.sum(axis=1) + prior_games * p_n * (1 - p_n)) - weight_nn
        step_n = np.linalg.solve(curvature_nn, gradient_n)
        # A full step from afar may overshoot where sigma is flat.
        strength_n = strength_n + np.clip(step_n, -1, 1)
        if np.abs(step_n).max(initial=0) < 1e-12:
            break
    return np.where(games_nn.sum(axis=1) > 0, strength_n, np.nan)


def expected_value(
    probabilities: Mapping[str, float], values: Mapping[str, float], min_mass: float
) -> float | None:
    """Returns the mean value of the labels under a judge's probabilities; None below `min_mass`.

        E = sum_l p_l v_l / sum_l p_l

    Args:
        probabilities: p, of texts that the judge might have written; others than labels are left
            out.
        values: v, by label.
        min_mass: smallest sum of p over the labels at which the mean says anything.
    """
    p_by_label = {label: probabilities.get(label, 0.0) for label in values}
    mass = sum(p_by_label.values())
    if mass < min_mass:
        return None
    return sum(p * values[label] for label, p in p_by_label.items()) / mass


def weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Returns the score of a rubric.

        s = sum_c w_c v_c / sum_{c: w_c > 0} w_c

    Criteria with a negative weight take away, and do not change the scale of the others.

    Args:
        values: v, by criterion.
        weights: w, by criterion; one at least is positive.
    """
    total = sum(weights[name] * value for name, value in values.items())
    return total / sum(weight for weight in weights.values() if weight > 0)


def games_of_ranking(ranks: Sequence[float]) -> Array:
    """Returns who won against whom `[n, n]` by a ranking, a tie as half a game.

    Args:
        ranks: rank of each response; a lower one is better.
    """
    rank_n = np.asarray(ranks, dtype=np.float64)
    wins_nn = (rank_n[:, None] < rank_n[None, :]) + 0.5 * (rank_n[:, None] == rank_n[None, :])
    np.fill_diagonal(wins_nn, 0.0)
    return wins_nn

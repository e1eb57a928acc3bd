"""The formulas of the papers in plain Python, one row at a time: what the library must agree with.

No numpy here on purpose. Slow and short is the point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    mx, my = mean(x), mean(y)
    xy = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    xx, yy = math.fsum((a - mx) ** 2 for a in x), math.fsum((b - my) ** 2 for b in y)
    return xy / math.sqrt(xx * yy)


def average_ranks(values: Sequence[float]) -> list[float]:
    """Rank 1 for the least; equal values share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    return pearson(average_ranks(x), average_ranks(y))


def r2(predicted: Sequence[float], rated: Sequence[float]) -> float:
    center = mean(rated)
    sse = math.fsum((p - y) ** 2 for p, y in zip(predicted, rated, strict=True))
    return 1 - sse / math.fsum((y - center) ** 2 for y in rated)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bradley_terry_loss(margins: Sequence[float]) -> float:
    """Mean of -log sigma(score(chosen) - score(rejected))."""
    return mean([-math.log(sigmoid(m)) for m in margins])


def won(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def accuracy(margins: Sequence[float]) -> float:
    return mean([won(m) for m in margins])


def length_balanced_accuracy(margins: Sequence[float], gaps: Sequence[int]) -> float:
    longer = [m for m, gap in zip(margins, gaps, strict=True) if gap > 0]
    shorter = [m for m, gap in zip(margins, gaps, strict=True) if gap < 0]
    return (accuracy(longer) + accuracy(shorter)) / 2


def expected_calibration_error(margins: Sequence[float], num_bins: int = 10) -> float:
    """sum_b n_b / n |accuracy_b - confidence_b| of the predicted winner, bins on [1/2, 1]."""
    total = 0.0
    for b in range(num_bins):
        low, high = 0.5 + b / (2 * num_bins), 0.5 + (b + 1) / (2 * num_bins)
        last = b == num_bins - 1
        inside = [m for m in margins if low <= sigmoid(abs(m)) < high or (last and abs(m) > 30)]
        if inside:
            gap = accuracy(inside) - mean([sigmoid(abs(m)) for m in inside])
            total += len(inside) / len(margins) * abs(gap)
    return total


def log_sigmoid(x: float) -> float:
    return math.log(sigmoid(x))


def soft_label_loss(margin: float, label: float) -> float:
    """-(y log sigma(m) + (1 - y) log sigma(-m))."""
    return -(label * log_sigmoid(margin) + (1 - label) * log_sigmoid(-margin))


def dpo_loss(policy: Sequence[float], reference: Sequence[float], beta: float) -> float:
    """-log sigma(beta (log pi(y+)/pi_ref(y+) - log pi(y-)/pi_ref(y-)))."""
    chosen, rejected = policy[0] - reference[0], policy[1] - reference[1]
    return -log_sigmoid(beta * (chosen - rejected))


def squared_norm(weights: Sequence[float], gradients: Sequence[Sequence[float]]) -> float:
    """|| sum_i lambda_i g_i ||^2."""
    columns = zip(*gradients, strict=True)
    return math.fsum(
        math.fsum(w * x for w, x in zip(weights, column, strict=True)) ** 2 for column in columns
    )

"""From fitted numbers to the module that scores."""

from __future__ import annotations

import numpy as np
import torch

from panoply.armorm.debias import Penalties
from panoply.armorm.out_of_fold import Objectives
from panoply.armorm.pair_features import PairValues, PreferenceObjectives
from panoply.model.gate import Gate
from panoply.model.reward_model import GatedHead
from panoply.types import Ints


def assemble_head(
    objectives: Objectives,
    preferences: PreferenceObjectives,
    penalties: Penalties,
    gate: Gate,
    values: PairValues,
    train: Ints,
) -> GatedHead:
    """Returns the head R(x, y) = sum_i g_i(x) (r_i / u_i - lambda_i r_v) of all fitted parts.

    Args:
        objectives: the ridges of the rated objectives, on all of *train*.
        preferences: Bradley-Terry heads behind them; they have no intercept and the unit 1.
        penalties: lambda of all objectives.
        gate: the trained gate.
        values: of the pairs, whose mean over `train` is the center of explanations.
        train: rows of the training pairs.
    """
    rated, length = objectives.rated.full, objectives.length.full
    num_extra = len(preferences.names)
    debiased, _ = values.debiased(penalties).stacked(train)
    head = GatedHead(len(values.names), rated.weights.shape[1], gate)
    numbers = {
        "weight": [*rated.weights, *preferences.weights_KF],
        "bias": [*rated.bias, *[0.0] * num_extra],
        "unit": [*objectives.unit_O, *[1.0] * num_extra],
        "length_weight": length.weights[0],
        "length_bias": length.bias[0],
        "penalty": penalties.penalty,
        "center": debiased.mean(0),
    }
    for name, value in numbers.items():
        getattr(head, name).copy_(torch.as_tensor(np.array(value), dtype=torch.float32))
    return head.eval().requires_grad_(False)

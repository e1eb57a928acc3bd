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
    preferences: PreferenceObjectives | None,
    penalties: Penalties,
    gate: Gate,
    values: PairValues,
    train: Ints,
) -> GatedHead:
    """Returns the head R(x, y) = sum_i g_i(x) (r_i / u_i - lambda_i r_v) of all fitted parts.

    Args:
        objectives: ridges of the rated objectives; those fitted on all of *train* are taken.
        preferences: Bradley-Terry heads behind them; they have no intercept and the unit 1.
        penalties: lambda of all objectives.
        gate: the trained gate.
        values: of the pairs, whose mean over `train` is the center of explanations.
        train: rows of the training pairs.
    """
    rated, length = objectives.rated.full, objectives.length.full
    weight_OF, num_rated = rated.weights, len(rated.bias)
    if preferences is not None:
        weight_OF = np.concatenate([weight_OF, preferences.weights_KF])
    bias_O, unit_O = np.zeros(len(weight_OF)), np.ones(len(weight_OF))
    bias_O[:num_rated], unit_O[:num_rated] = rated.bias, objectives.unit_O
    debiased, _ = values.debiased(penalties).stacked(train)
    numbers = {
        "weight": weight_OF,
        "bias": bias_O,
        "unit": unit_O,
        "length_weight": length.weights[0],
        "length_bias": length.bias[0],
        "penalty": penalties.penalty,
        "center": debiased.mean(0),
    }
    head = GatedHead(len(weight_OF), weight_OF.shape[1], gate)
    for name, value in numbers.items():
        head.get_buffer(name).copy_(torch.as_tensor(value))
    return head.eval().requires_grad_(False)

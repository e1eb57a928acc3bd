"""Loss of a pair: the reward loss and, on the same backbone, HaF-RM's policy loss.

Legend: `P` pairs, `K` heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from panoply.config.preference import DPO, SFT, LossConfig, NoPolicyLoss
from panoply.preference.losses import centering, dpo, sft, smoothed, soft_label
from panoply.preference.step import PairOutputs


@dataclass(frozen=True, slots=True)
class PairLabels:
    """Targets of the pairs of a step, `[P]` each."""

    label_P: Tensor
    """Belief that the chosen response is better: 1, or softer under data smoothing."""
    margin_P: Tensor
    """Distance of the two responses by the raters; 0 where they named none."""
    weight_P: Tensor
    reference_P: Tensor | None = None
    """log pi_ref(y+ | x) - log pi_ref(y- | x), for DPO."""
    bag_PK: Tensor | None = None
    """Weight of the pair for each head of a bagged ensemble; None: 1."""

    def at(self, indices: Tensor) -> PairLabels:
        """Returns the labels of some of the pairs."""
        reference = None if self.reference_P is None else self.reference_P[indices]
        bag = None if self.bag_PK is None else self.bag_PK[indices]
        return PairLabels(
            self.label_P[indices], self.margin_P[indices], self.weight_P[indices], reference, bag
        )


def pair_loss(outputs: PairOutputs, labels: PairLabels, config: LossConfig) -> Tensor:
    """Returns the weighted loss `[P]` of each pair (HaF-RM, arXiv 2407.04185, equation 8).

        L_H = w ( L_R + alpha L_P )
        L_R = sum over heads of v (soft_label(m - t, y') + centering),   L_P = DPO or SFT

    with m the margin, t the raters' own where `use_margin`, y' the label smoothed, w the pair's
    weight, v that of a bagged head. `reward = 0` leaves L_P alone: DPO as a reward model.

    Args:
        outputs: outputs of some pairs of the step.
        labels: labels of all pairs of the step.
        config: the loss.
    """
    device = outputs.chosen_PK.device
    labels = labels.at(torch.from_numpy(outputs.indices_P))
    label_P1 = smoothed(labels.label_P, config.label_smoothing).to(device)[:, None]
    margin_PK = outputs.margin_PK
    if config.use_margin:
        margin_PK = margin_PK - labels.margin_P.to(device)[:, None]
    reward_PK = soft_label(margin_PK, label_P1)
    if config.centering:
        apart = centering(outputs.chosen_PK, outputs.rejected_PK)
        reward_PK = reward_PK + config.centering * apart
    if labels.bag_PK is not None:
        reward_PK = reward_PK * labels.bag_PK.to(device)
    loss_P = config.reward * reward_PK.sum(-1)

    match config.policy:
        case NoPolicyLoss():
            pass
        case SFT(alpha=alpha):
            assert outputs.logps_P2 is not None
            loss_P = loss_P + alpha * sft(outputs.logps_P2[:, 0], outputs.chosen_tokens_P)
        case DPO(alpha=alpha, beta=beta):
            assert labels.reference_P is not None
            reference_P = labels.reference_P.to(device)
            loss_P = loss_P + alpha * dpo(outputs.log_ratio_P, reference_P, beta)
        case _:
            assert_never(config.policy)
    return loss_P * labels.weight_P.to(device)

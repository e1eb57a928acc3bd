"""What a pair costs: the reward loss and, on the same backbone, HaF-RM's policy loss.

Legend: `P` pairs, `K` heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoply.config.preference import LossConfig
from panoply.preference.losses import centering, dpo, sft, smoothed, soft_label
from panoply.preference.step import PairOutputs


@dataclass(frozen=True, slots=True)
class PairLabels:
    """What is known of the pairs of a step besides their texts, `[P]` each."""

    label_P: Tensor
    """Belief that the chosen response is better: 1, or softer under data smoothing."""
    margin_P: Tensor
    """What the raters said of the distance; 0 where they did not."""
    weight_P: Tensor
    reference_P: Tensor | None = None
    """log pi_ref(y+ | x) - log pi_ref(y- | x), for DPO."""
    bag_PK: Tensor | None = None
    """What each head of a bagged ensemble weighs the pair with; else 1."""

    def at(self, places: Tensor) -> PairLabels:
        """Returns the targets of some of the pairs."""
        reference = None if self.reference_P is None else self.reference_P[places]
        bag = None if self.bag_PK is None else self.bag_PK[places]
        return PairLabels(
            self.label_P[places], self.margin_P[places], self.weight_P[places], reference, bag
        )


def pair_loss(compared: PairOutputs, targets: PairLabels, config: LossConfig) -> Tensor:
    """Returns the weighted loss `[P]` of each pair (HaF-RM, arXiv 2407.04185, equation 8).

        L_H = w ( L_R + alpha L_P )
        L_R = sum over heads of v (soft_label(m - t, y') + centering),   L_P = DPO or SFT

    with m the margin, t the raters' own where `use_margin`, y' the label smoothed, w the pair's
    weight, v that of a bagged head. `reward = 0` leaves L_P alone: DPO as a reward model.
    """
    device = compared.chosen_PK.device
    own = targets.at(torch.from_numpy(compared.places))
    label_P1 = smoothed(own.label_P, config.label_smoothing).to(device)[:, None]
    margin_PK = compared.margin_PK
    if config.use_margin:
        margin_PK = margin_PK - own.margin_P.to(device)[:, None]
    reward_PK = soft_label(margin_PK, label_P1)
    if config.centering:
        apart = centering(compared.chosen_PK, compared.rejected_PK)
        reward_PK = reward_PK + config.centering * apart
    if own.bag_PK is not None:
        reward_PK = reward_PK * own.bag_PK.to(device)
    loss_P = config.reward * reward_PK.sum(-1)
    if config.policy != "none" and config.alpha:
        loss_P = loss_P + config.alpha * policy_loss(compared, own, config)
    return loss_P * own.weight_P.to(device)


def policy_loss(compared: PairOutputs, targets: PairLabels, config: LossConfig) -> Tensor:
    """Returns L_P `[P]` of pairs whose forward had a language-model head."""
    chosen_P, rejected_P = compared.chosen_log_prob_P, compared.rejected_log_prob_P
    assert chosen_P is not None
    assert rejected_P is not None
    if config.policy == "sft":
        return sft(chosen_P, compared.chosen_tokens_P)
    assert targets.reference_P is not None
    return dpo(chosen_P - rejected_P, targets.reference_P.to(chosen_P.device), config.beta)

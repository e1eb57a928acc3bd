"""Preference losses: one function per equation, not reduced: a step weights its pairs itself.

Legend: `P` pairs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def bradley_terry(margin_P: Tensor) -> Tensor:
    """Negative log likelihood of each pair under Bradley-Terry (arXiv 2406.12845, section 3.2).

        L_p = -log sigma( R(x, y+) - R(x, y-) )

    A margin that the pair's raters gave is subtracted from the argument before (Llama 2,
    arXiv 2307.09288, equation 2).

    Args:
        margin_P: `[P]` R(x, y+) - R(x, y-).

    Returns:
        `[P]` losses, not reduced: the caller divides by the pairs of all workers.
    """
    # -log sigma(m) = log(1 + exp(-m)), which overflows nowhere.
    return softplus(-margin_P)


def soft_label(margin_P: Tensor, label_P: Tensor) -> Tensor:
    """Cross-entropy with a label between 0 and 1 (arXiv 2401.16335, section 4).

        L_p = -( y log sigma(m) + (1 - y) log sigma(-m) )

    Args:
        margin_P: `[P]` m = R(x, y+) - R(x, y-).
        label_P: `[P]` y, the belief that y+ is better.
    """
    return label_P * softplus(-margin_P) + (1 - label_P) * softplus(margin_P)


def smoothed(label_P: Tensor, share: float) -> Tensor:
    """Label smoothing: y <- (1 - e) y + e (1 - y)."""
    return (1 - share) * label_P + share * (1 - label_P)


def updated_labels(label_P: Tensor, margin_P: Tensor, share: float) -> Tensor:
    """Iterative data smoothing after an epoch (arXiv 2401.16335, algorithm 1).

    y <- (1 - b) y + b sigma( R(x, y+) - R(x, y-) )
    """
    return (1 - share) * label_P + share * margin_P.sigmoid()


def centering(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """Keeps the two scores of a pair around zero (arXiv 2312.09244, section 2).

    L_p = ( R(x, y+) + R(x, y-) )^2
    """
    return (chosen_P + rejected_P) ** 2


def dpo(policy_P: Tensor, reference_P: Tensor, beta: float) -> Tensor:
    """HaF-RM's policy loss (arXiv 2407.04185, equation 6), which is DPO's.

        L_p = -log sigma( beta ( log pi(y+|x)/pi_ref(y+|x) - log pi(y-|x)/pi_ref(y-|x) ) )

    Args:
        policy_P: `[P]` log pi(y+|x) - log pi(y-|x), summed over response tokens.
        reference_P: `[P]` the same log-ratio under the reference.
        beta: inverse temperature.
    """
    return softplus(-beta * (policy_P - reference_P))


def sft(log_prob_P: Tensor, num_tokens_P: Tensor) -> Tensor:
    """Negative log-likelihood of a response per token: L_p = -1/|y| sum_t log pi(y_t | x, y_<t)."""
    return -log_prob_P / num_tokens_P


def dpo_nll(
    chosen_P: Tensor,
    rejected_P: Tensor,
    num_tokens_P: Tensor,
    reference_P: Tensor,
    beta: float,
    alpha: float,
) -> Tensor:
    """LASeR's loss of the policy (arXiv 2410.01735, section 3.1; arXiv 2404.19733, equation 1).

        L_p = DPO(beta) + alpha NLL(y+)

    Args:
        chosen_P: `[P]` log pi(y+|x), summed over response tokens.
        rejected_P: `[P]` log pi(y-|x).
        num_tokens_P: `[P]` |y+|, by which the NLL is divided.
        reference_P: `[P]` log pi_ref(y+|x) - log pi_ref(y-|x), of the previous iteration's policy.
        beta: inverse temperature of DPO.
        alpha: weight of the NLL.
    """
    preference_P = dpo(chosen_P - rejected_P, reference_P, beta)
    return preference_P + alpha * sft(chosen_P, num_tokens_P) if alpha else preference_P

"""Preference losses: one function per equation."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def bradley_terry(margin_P: Tensor) -> Tensor:
    """Negative log likelihood of each pair under Bradley-Terry (arXiv 2406.12845, section 3.2).

        L_p = -log sigma( R(x, y+) - R(x, y-) )

    Args:
        margin_P: `[P]` R(x, y+) - R(x, y-).

    Returns:
        `[P]` losses, not reduced: the caller divides by the pairs of all workers.
    """
    # -log sigma(m) = log(1 + exp(-m)), which overflows nowhere.
    return softplus(-margin_P)

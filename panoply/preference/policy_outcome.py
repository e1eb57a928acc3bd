"""What a round of policy training did to its pairs, from log-probabilities before and after.

Legend: `P` pairs, `2` the chosen and the rejected response.
"""

from __future__ import annotations

import torch

from panoply.preference.losses import dpo, dpo_nll, sft
from panoply.types import Array


def pair_losses(
    spoken_P2: Array, tokens_P2: Array, reference_P2: Array, beta: float, alpha: float
) -> dict[str, Array]:
    """Returns `loss`, and its parts `dpo` and `nll`, of each pair (`losses.dpo_nll`).

    Args:
        spoken_P2: log-probabilities of the responses, summed over their tokens.
        tokens_P2: how many these are.
        reference_P2: log-probabilities under the reference.
        beta: inverse temperature of DPO.
        alpha: weight of the NLL.
    """
    spoken, tokens = torch.from_numpy(spoken_P2), torch.from_numpy(tokens_P2)
    ratio_P = torch.from_numpy(reference_P2[:, 0] - reference_P2[:, 1])
    return {
        "loss": dpo_nll(spoken[:, 0], spoken[:, 1], tokens[:, 0], ratio_P, beta, alpha).numpy(),
        "dpo": dpo(spoken[:, 0] - spoken[:, 1], ratio_P, beta).numpy(),
        "nll": sft(spoken[:, 0], tokens[:, 0]).numpy(),
    }


def kl_per_token(spoken_P2: Array, base_P2: Array, tokens_P2: Array) -> Array:
    """Returns an estimate of KL(pi || pi_0) for each pair, in nats for each token.

        sum over both responses of log pi(y | x) / pi_0(y | x), over their tokens

    It is unbiased where the responses are drawn from pi as it is; those drawn at a lower
    temperature, or picked by a reward model, are likelier than such.

    Args:
        spoken_P2: log pi(y | x).
        base_P2: log pi_0(y | x) of the model before any training.
        tokens_P2: tokens of each response.
    """
    return (spoken_P2 - base_P2).sum(1) / tokens_P2.sum(1)


def margin_per_token(spoken_P2: Array, tokens_P2: Array) -> Array:
    """Returns how far the policy prefers the first response of each pair, in nats for each token.

        log pi(y+ | x) / |y+|  -  log pi(y- | x) / |y-|

    Not the sum over tokens that DPO has: the NLL makes all that the policy says likelier, and the
    sum would rise or fall with that wherever the longer response is the better or the worse one.

    Args:
        spoken_P2: log-probabilities of the responses, summed over their tokens.
        tokens_P2: how many these are, the one that ends a response included.
    """
    each_P2 = spoken_P2 / tokens_P2
    return each_P2[:, 0] - each_P2[:, 1]

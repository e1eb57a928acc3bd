"""Changes of the pairs in a round of policy training, from log-probabilities before and after.

Legend: `P` pairs, `2` the chosen and the rejected response.
"""

from __future__ import annotations

import torch

from panoply.preference.losses import dpo, dpo_nll, sft
from panoply.types import Array


def pair_losses(
    logps_P2: Array, tokens_P2: Array, reference_P2: Array, beta: float, alpha: float
) -> dict[str, Array]:
    """Returns `loss`, and its parts `dpo` and `nll`, of each pair (`losses.dpo_nll`).

    Args:
        logps_P2: log-probabilities of the responses, summed over their tokens.
        tokens_P2: numbers of these tokens.
        reference_P2: log-probabilities under the reference.
        beta: inverse temperature of DPO.
        alpha: weight of the NLL.
    """
    logps, tokens = torch.from_numpy(logps_P2), torch.from_numpy(tokens_P2)
    chosen_P, rejected_P, tokens_P = logps[:, 0], logps[:, 1], tokens[:, 0]
    ratio_P = torch.from_numpy(reference_P2[:, 0] - reference_P2[:, 1])
    return {
        "loss": dpo_nll(chosen_P, rejected_P, tokens_P, ratio_P, beta, alpha).numpy(),
        "dpo": dpo(chosen_P - rejected_P, ratio_P, beta).numpy(),
        "nll": sft(chosen_P, tokens_P).numpy(),
    }


def kl_per_token(logps_P2: Array, base_P2: Array, tokens_P2: Array) -> Array:
    """Returns an estimate of KL(pi || pi_0) for each pair, in nats for each token.

        sum over both responses of log pi(y | x) / pi_0(y | x), over their tokens

    It is unbiased where the responses are drawn from pi as it is; those drawn at a lower
    temperature, or picked by a reward model, are likelier than such.

    Args:
        logps_P2: log pi(y | x).
        base_P2: log pi_0(y | x) of the model before any training.
        tokens_P2: tokens of each response.
    """
    return (logps_P2 - base_P2).sum(1) / tokens_P2.sum(1)


def margin_per_token(logps_P2: Array, tokens_P2: Array) -> Array:
    """Returns the policy's preference for the first response of each pair, in nats for each token.

        log pi(y+ | x) / |y+|  -  log pi(y- | x) / |y-|

    DPO's sum over tokens would not do: the NLL makes all responses of the policy likelier, and the
    sum would rise or fall with that wherever the longer response is the better or the worse one.

    Args:
        logps_P2: log-probabilities of the responses, summed over their tokens.
        tokens_P2: numbers of these tokens, the one that ends a response included.
    """
    mean_P2 = logps_P2 / tokens_P2
    return mean_P2[:, 0] - mean_P2[:, 1]

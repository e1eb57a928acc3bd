"""Random choice of tokens that depends on the sample alone, not on its batch or its worker.

    token = argmax_v ( log p_v - log E_v ),   E_v ~ Exp(1) and independent

is a draw from p (the Gumbel-max trick). E_v is a hash of (stream, step, v), and (seed, round,
prompt, number of the sample) name a stream, so a sample is a function of its logits: batches,
order, workers and restarts change nothing. Rounding matters only where the two best are within it
of each other, which is far rarer than a uniform number at a bound of cumulated probabilities.

Legend: `B` rows, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panoply.data.schema import digest

GOLDEN, FIRST, SECOND = 0x9E3779B9, 0x7FEB352D, 0x846CA68B
"""Odd multipliers of a 32-bit hash without known bias."""
HEAD = 256
"""Most likely tokens among which a nucleus is sought before the whole vocabulary is sorted."""
ROWS = 4
"""Rows whose noise is made at once: they stay in a CPU's cache."""


def stream(seed: int, round: int, prompt_id: str, number: int) -> int:
    """Returns the 64-bit key of a sample's random numbers."""
    return int(digest("sample", str(seed), str(round), prompt_id, str(number))[:16], 16)


def exponentials(streams: Sequence[int], step: int, size: int, device: torch.device) -> Tensor:
    """Returns E `[B, V]` of one step of some streams, float32: the same on every device.

    Args:
        streams: stream of each row.
        step: number of the token in its sample.
        size: V.
        device: device of the result.
    """
    keys = [digest("step", str(name), str(step)) for name in streams]
    low = [_signed(int(key[:8], 16)) for key in keys]
    high = [_signed(int(key[8:16], 16)) for key in keys]
    low_B1 = torch.tensor(low, dtype=torch.int32, device=device)[:, None]
    high_B1 = torch.tensor(high, dtype=torch.int32, device=device)[:, None]
    x = torch.arange(size, dtype=torch.int32, device=device) * _signed(GOLDEN)
    x = (x ^ high_B1) + low_B1
    for shift, factor in ((16, FIRST), (15, SECOND)):
        x ^= (x >> shift) & (2 ** (32 - shift) - 1)  # `>>` brings the sign in from the left
        x *= _signed(factor)
    x ^= (x >> 16) & 0xFFFF
    # Small numbers decide, and keep their precision; the factor keeps the largest from rounding to
    # 1, which would make E infinite.
    uniform_BV = ((x & 0x7FFFFFFF).float() + 0.5).mul_(2.0**-31 * (1 - 2.0**-24))
    return uniform_BV.neg_().log1p_().neg_()


def _signed(word: int) -> int:
    """Returns the signed 32-bit integer with the same bits."""
    return word - 2**32 if word >= 2**31 else word


def nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Returns the least logit `[B, 1]` in the smallest set of tokens that has `top_p` of the mass.

    (arXiv 1904.09751, equation 2; tokens that tie with the last one are in it.)
    """
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    for size in (min(HEAD, logits_BV.shape[-1]), logits_BV.shape[-1]):
        top_BK = logits_BV.topk(size).values
        mass_BK = (top_BK - total_B1).exp().cumsum(-1)
        if bool((mass_BK[:, -1] >= top_p).all()):
            break
    last_B1 = (mass_BK < top_p).sum(-1, keepdim=True).clamp_max(top_BK.shape[-1] - 1)
    return top_BK.gather(-1, last_B1)


def choose_tokens(
    logits_BV: Tensor, streams: Sequence[int], step: int, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Draws the next token of each row.

    Args:
        logits_BV: logits of the policy, float32.
        streams: stream of each row's random numbers.
        step: number of the token in its sample.
        temperature: divisor of the logits; 0 takes the most likely token.
        top_p: mass of the nucleus that is sampled from; 1 takes all tokens.

    Returns:
        `[B]` tokens, and `[B]` their log-probabilities under the policy itself, at temperature 1
        and without a nucleus.
    """
    if temperature > 0:
        scaled_BV = logits_BV / temperature
        if top_p < 1:
            outside_BV = scaled_BV < nucleus(scaled_BV, top_p)
            scaled_BV = scaled_BV.masked_fill(outside_BV, -torch.inf)
        size, device = logits_BV.shape[-1], logits_BV.device
        rows = ROWS if device.type == "cpu" else len(streams)
        for i in range(0, len(streams), rows):
            noise = exponentials(streams[i : i + rows], step, size, device)
            scaled_BV[i : i + rows] -= noise.log_()
        tokens_B = scaled_BV.argmax(-1)
    else:
        tokens_B = logits_BV.argmax(-1)
    logit_B = logits_BV.gather(-1, tokens_B[:, None])[:, 0]
    return tokens_B, logit_B - logits_BV.logsumexp(-1)

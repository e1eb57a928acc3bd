"""Samples of a policy: ours beside `model.generate(num_return_sequences=n)`, tokens a second.

    python -m benchmarks.sampling --json sampling.json

Both draw n samples of each prompt at the same temperature from the same weights, side by side in
one process and in turns, the same prompts at a time. Tokens are those that were spoken, up to the
one that ends a response.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

from benchmarks import harness
from benchmarks.harness import run, setting, write_figures
from panoply.config.policy import SamplingConfig
from panoply.hub.policy.policy import Policy, load_policy
from panoply.model.sampling import stream

TOPICS = ("the sea", "bread", "a bicycle", "winter", "chess", "a lighthouse", "bees", "rain")
PADDING = "Keep in mind that the reader is a busy person who knows nothing about it. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Args(harness.Options):
    """What is compared."""

    model: str = "embedded"
    n: tuple[int, ...] = (8, 30)
    """Samples of a prompt."""
    sentences: tuple[int, ...] = (0, 30)
    """Sentences that lengthen each prompt."""
    num_prompts: int = 2
    max_tokens: int = 32
    repeats: int = 2
    threads: int = 1


def opening(policy: Policy, topic: str, sentences: int) -> list[int]:
    """Returns a prompt as tokens."""
    text = PADDING * sentences + f"Write one short sentence about {topic}."
    return policy.renderer.opening([{"role": "user", "content": text}])


def ours(policy: Policy, prompts: Sequence[list[int]], n: int, config: SamplingConfig) -> int:
    """Returns how many tokens our samples have."""
    streams = [[stream(0, 0, str(g), i) for i in range(n)] for g in range(len(prompts))]
    found = policy.sample(prompts, streams, config)
    return sum(len(one.tokens) for _, samples in found for one in samples)


@torch.inference_mode()
def theirs(policy: Policy, prompts: Sequence[list[int]], n: int, config: SamplingConfig) -> int:
    """Returns how many tokens the samples of `generate` have."""
    model: Any = policy.model
    longest, pad = max(map(len, prompts)), policy.renderer.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        num_return_sequences=n,
        max_new_tokens=config.max_tokens,
        eos_token_id=sorted(policy.stops),
        pad_token_id=pad,
    )
    stops, num = torch.tensor(sorted(policy.stops)), 0
    for row in out[:, longest:].cpu():
        ends = torch.isin(row, stops).nonzero()
        num += int(ends[0]) + 1 if len(ends) else len(row)
    return num


def speed(count: Callable[[], int]) -> float:
    """Returns tokens a second."""
    begun = time.perf_counter()
    num = count()
    return num / (time.perf_counter() - begun)


def compare(args: Args) -> list[dict[str, Any]]:
    """Returns a row for each setting."""
    policy = load_policy(args.model, dtype="float32")
    config = SamplingConfig(max_tokens=args.max_tokens)
    rows: list[dict[str, Any]] = []
    warm = [opening(policy, "tea", 0)]
    for sampler in (ours, theirs):
        sampler(policy, warm, 2, replace(config, max_tokens=4))
    for n in args.n:
        for sentences in args.sentences:
            prompts = [opening(policy, topic, sentences) for topic in TOPICS[: args.num_prompts]]
            found: dict[str, list[float]] = {"ours": [], "generate": []}
            for _ in range(args.repeats):
                found["ours"].append(speed(lambda: ours(policy, prompts, n, config)))  # noqa: B023
                found["generate"].append(speed(lambda: theirs(policy, prompts, n, config)))  # noqa: B023
            ratios = [a / b for a, b in zip(*found.values(), strict=True)]
            row = {
                "n": n,
                "prompt_tokens": statistics.mean(map(len, prompts)),
                "ours": max(found["ours"]),
                "generate": max(found["generate"]),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
            }
            print(
                f"n {n:2}, prompts of {row['prompt_tokens']:4.0f} tokens: ours {row['ours']:6.0f}, "
                f"generate {row['generate']:6.0f} tokens/s, {row['ratio']:.2f}x "
                f"(least {row['least']:.2f}x)",
                flush=True,
            )
            rows.append(row)
    return rows


def main(args: Args) -> None:
    """Runs the comparison."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = {"threads": args.threads, "dtype": "float32", "max_tokens": args.max_tokens}
    figures = setting(torch, transformers, **sizes) | {"rows": compare(args)}
    write_figures(args.json, figures)


if __name__ == "__main__":
    run(main, Args)

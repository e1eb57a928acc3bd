"""Samples of a policy from a pool of samplers, prompt by prompt as they come.

Prompts are cut into calls that depend on them alone, so it changes nothing which sampler answers
which call, how many there are, and whether one of them dies: its call begins anew.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import ray

from actors.sampler import Question, Sampler, Samples
from actors.server_sampler import ServerSampler
from panoply.config import DType, Rendering
from panoply.config.policy import PolicyServerConfig, SamplingConfig


@contextmanager
def sampler_pool(
    num: int,
    model: str,
    config: SamplingConfig,
    rendering: Rendering,
    *,
    dtype: DType = "auto",
    gpus: float = 0.0,
    server: PolicyServerConfig | None = None,
) -> Generator[list[Any]]:
    """Yields handles of samplers that live as long as the context.

    Args:
        num: how many.
        model: 'embedded', a Hugging Face folder, or a hub name.
        config: how responses are drawn.
        rendering: limit of the prompt.
        dtype: of the forward.
        gpus: of each.
        server: what draws the samples, where it is not the samplers.
    """
    served = server is not None and bool(server.url)
    made: Any = ray.remote(ServerSampler if served else Sampler).options(
        num_cpus=1, num_gpus=0 if served else gpus, max_restarts=-1, max_task_retries=-1
    )
    own: tuple[Any, ...] = (server,) if served else (dtype, 1)
    pool = [made.remote(model, config, rendering, *own) for _ in range(num)]
    try:
        yield pool
    finally:
        for sampler in pool:
            ray.kill(sampler)


def calls(questions: Sequence[Question], n: int, rows: int) -> list[list[Question]]:
    """Returns prompts in calls of up to `rows` samples, those of similar length together.

    Calls have the same size but for one prompt: with one as large as a sampler may take and one of
    what is left, a sampler would be idle for most of the time.
    """
    ordered = sorted(
        questions, key=lambda q: (sum(len(m["content"]) for m in q.prompt), q.prompt_id)
    )
    num = -(-len(ordered) // max(1, rows // n))
    bounds = [len(ordered) * i // num for i in range(num + 1)]
    return [ordered[i:j] for i, j in pairwise(bounds)]


def rollouts(
    pool: Sequence[Any],
    asked: Sequence[Sequence[Question]],
    n: int,
    seed: int,
    round: int,
    adapter: str = "",
) -> Iterator[Samples]:
    """Yields the samples of each prompt when its last one is over, in no fixed order.

    The samplers go on while what they gave is scored.

    Args:
        pool: handles of samplers.
        asked: `calls`.
        n: samples of each prompt.
        seed: of the run.
        round: of the run.
        adapter: folder of the policy's adapters, where all samplers see it; empty: none.
    """
    left = list(reversed(asked))
    running: list[tuple[Any, Any]] = []

    def start(sampler: Any) -> None:
        if left:
            stream = sampler.sample.options(num_returns="streaming")
            running.append((stream.remote(left.pop(), n, seed, round, adapter), sampler))

    for sampler in pool:
        start(sampler)
    while running:
        ready, _ = ray.wait([stream for stream, _ in running], num_returns=1)
        place = next(i for i, (stream, _) in enumerate(running) if stream is ready[0])
        stream, sampler = running[place]
        try:
            found = next(stream)
        except StopIteration:
            del running[place]
            start(sampler)
        else:
            yield ray.get(found)

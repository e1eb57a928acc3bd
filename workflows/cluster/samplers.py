"""A pool of samplers: the prompts that each call draws for, and the samples as they come.

Prompts are cut into calls that depend on them alone, so it changes nothing which sampler answers
which call, how many there are, and whether one of them dies: its call begins anew.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import ray

from actors.sampler import Sampler, Samples
from actors.server_sampler import ServerSampler
from panoply.config import DType, Rendering
from panoply.config.policy import PolicyServerConfig, SamplingConfig
from panoply.data.tasks import Task
from workflows.cluster.keys import handed_keys


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
    """Starts samplers, yields their handles, and ends them.

    Args:
        num: number of samplers.
        model: 'embedded', a Hugging Face folder, or a hub name.
        config: sampling of responses.
        rendering: limit of the prompt.
        dtype: precision of the forward.
        gpus: GPUs of each sampler.
        server: server that draws the samples, where one is named.
    """
    served = server if server is not None and server.url else None
    actor: Any = ray.remote(ServerSampler if served else Sampler).options(
        num_cpus=1, num_gpus=0 if served else gpus, max_restarts=-1, max_task_retries=-1
    )
    place: tuple[Any, ...] = (dtype, 1)
    if served:
        place = (served, handed_keys([served.key_variable]))
    samplers = [actor.remote(model, config, rendering, *place) for _ in range(num)]
    try:
        yield samplers
    finally:
        for sampler in samplers:
            ray.kill(sampler)


def split_calls(tasks: Sequence[Task], num_samples: int, batch_size: int) -> list[list[Task]]:
    """Returns prompts in calls of up to `batch_size` samples, those of similar length together.

    Calls have the same size but for one prompt: with one as large as a sampler may take and one of
    the rest, a sampler would be idle for most of the time.
    """
    ordered = sorted(tasks, key=lambda task: (_num_characters(task), task.prompt_id))
    num_calls = -(-len(ordered) // max(1, batch_size // num_samples))
    bounds = [len(ordered) * i // num_calls for i in range(num_calls + 1)]
    return [ordered[i:j] for i, j in pairwise(bounds)]


def _num_characters(task: Task) -> int:
    return sum(len(message["content"]) for message in task.prompt)


def draw_samples(
    samplers: Sequence[Any],
    calls: Sequence[Sequence[Task]],
    num_samples: int,
    seed: int,
    round: int,
    adapter: str = "",
) -> Iterator[Samples]:
    """Yields the samples of each prompt when its last one is over, in no fixed order.

    The samplers go on while the samples they gave are scored.

    Args:
        samplers: handles of samplers.
        calls: `split_calls`.
        num_samples: samples of each prompt.
        seed: seed of the run.
        round: round of the run.
        adapter: folder of the policy's adapters, where all samplers see it; empty: none.
    """
    waiting = list(reversed(calls))
    running: list[tuple[Any, Any]] = []

    def start(sampler: Any) -> None:
        if waiting:
            stream = sampler.sample.options(num_returns="streaming")
            call = stream.remote(waiting.pop(), num_samples, seed, round, adapter)
            running.append((call, sampler))

    for sampler in samplers:
        start(sampler)
    while running:
        ready, _ = ray.wait([stream for stream, _ in running], num_returns=1)
        place = next(i for i, (stream, _) in enumerate(running) if stream is ready[0])
        stream, sampler = running[place]
        try:
            samples = next(stream)
        except StopIteration:
            del running[place]
            start(sampler)
        else:
            yield ray.get(samples)

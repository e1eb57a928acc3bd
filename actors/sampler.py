"""Sampler of a policy: n responses to each prompt, prompt by prompt as they are finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ray
import torch

from panoply.config import DType, Rendering
from panoply.config.policy import SamplingConfig
from panoply.data.tasks import Task
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.policy.policy import Policy, load_policy
from panoply.hub.policy.prefix_decoding import Sampled
from panoply.model.sampling import stream


@dataclass(frozen=True, slots=True)
class Response:
    """One sample."""

    text: str
    num_tokens: int
    """Tokens with the one that ended the response."""
    log_prob: float
    """log pi(y | x) of the policy it was drawn from, summed over the tokens, at temperature 1."""
    ended: bool
    """Whether the policy ended the response; else `max_tokens` did."""


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples of one prompt, in the order of their numbers."""

    prompt_id: str
    responses: tuple[Response, ...]


class Sampler:
    """Draws responses from a policy.

    A call names all that its samples depend on, adapters included, so a sampler may die at any
    moment, and the same call to any other one gives the same samples: see `Policy.sample` for how
    exactly. Where bits count, repeat the whole call.

    Args:
        model: 'embedded', a Hugging Face folder, or a hub name.
        config: sampling of responses.
        rendering: limit of the prompt.
        dtype: precision of the forward.
        threads: threads of this process; 0 leaves torch's own number.
    """

    def __init__(
        self,
        model: str,
        config: SamplingConfig,
        rendering: Rendering | None = None,
        dtype: DType = "auto",
        threads: int = 0,
    ) -> None:
        silence_libraries()
        if threads:
            torch.set_num_threads(threads)
        self.model, self.config = model, config
        self.rendering = rendering
        self.dtype: DType = dtype
        self.adapter = ""
        self.policy: Policy | None = None

    def _load(self, adapter: str) -> Policy:
        if self.policy is None or adapter != self.adapter:
            self.policy = None  # before the next one takes memory
            self.policy = load_policy(
                self.model, adapter, rendering=self.rendering, dtype=self.dtype
            )
            self.adapter = adapter
        return self.policy

    @ray.method
    def sample(
        self, tasks: Sequence[Task], num_samples: int, seed: int, round: int, adapter: str = ""
    ) -> Iterator[Samples]:
        """Yields the responses to each prompt as soon as the last of them is finished.

        Prompts of similar length run side by side, the shortest first; a prompt is computed once
        for all its samples.

        Args:
            tasks: the prompts; the random numbers depend on their ids.
            num_samples: samples of each prompt.
            seed: seed of the run.
            round: round of the run; another one draws other samples.
            adapter: folder of the policy's adapters; empty: the model as it is.

        Raises:
            FileNotFoundError, ValueError: see `load_policy` and `Policy.sample`.
        """
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples!r}")
        policy = self._load(adapter)
        tokens = [policy.renderer.opening(task.prompt) for task in tasks]
        order = sorted(range(len(tasks)), key=lambda i: (len(tokens[i]), i))
        prompts_per_batch = max(1, self.config.batch_size // num_samples)
        for start in range(0, len(order), prompts_per_batch):
            batch = order[start : start + prompts_per_batch]
            streams: list[list[int]] = []
            for i in batch:
                id = tasks[i].prompt_id
                streams.append([stream(seed, round, id, number) for number in range(num_samples)])
            finished = policy.sample([tokens[i] for i in batch], streams, self.config)
            for place, sampled in finished:
                responses = tuple(_response(policy, sample) for sample in sampled)
                yield Samples(tasks[batch[place]].prompt_id, responses)


def _response(policy: Policy, sampled: Sampled) -> Response:
    return Response(policy.text(sampled), len(sampled.tokens), sampled.log_prob, sampled.ended)

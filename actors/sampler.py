"""A policy that answers prompts: n samples of each, prompt by prompt as they are over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ray
import torch

from panoply.config import DType, Rendering
from panoply.config.policy import SamplingConfig
from panoply.data.schema import Prompt
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.policy.policy import Policy, load_policy
from panoply.hub.policy.prefix_decoding import Sampled
from panoply.model.sampling import stream


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to answer.

    Example: `Question("9f3a", [{"role": "user", "content": "Name a prime."}])`.
    """

    prompt_id: str
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    text: str
    num_tokens: int
    """The one that ended it included."""
    log_prob: float
    """log pi(y | x) of the policy it was drawn from, summed over the tokens, at temperature 1."""
    ended: bool
    """Whether the policy ended it; else `max_tokens` did."""


@dataclass(frozen=True, slots=True)
class Samples:
    """All answers to one prompt, in the order of their numbers."""

    prompt_id: str
    responses: tuple[Response, ...]


class Sampler:
    """Draws responses from a policy.

    What it is asked for names all that the answer depends on, adapters included, so it may die at
    any moment and be asked again, and any other sampler gives the same answer: see `Policy.sample`
    for how exactly. Where bits count, ask again for the whole call.

    Args:
        model: 'embedded', a Hugging Face folder, or a hub name.
        config: how responses are drawn.
        rendering: limit of the prompt.
        dtype: of the forward.
        threads: of this process; 0 leaves torch's own number.
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
        self, questions: Sequence[Question], n: int, seed: int, round: int, adapter: str = ""
    ) -> Iterator[Samples]:
        """Yields the responses to each prompt as soon as the last of them is over.

        Prompts of similar length run side by side, the shortest first; a prompt is computed once
        for all its samples.

        Args:
            questions: the prompts; the random numbers hang on their ids.
            n: samples of each.
            seed: of the run.
            round: of the run; another one draws other samples.
            adapter: folder of the policy's adapters; empty: the model as it is.

        Raises:
            FileNotFoundError, ValueError: see `load_policy` and `Policy.sample`.
        """
        if n < 1:
            raise ValueError(f"`n` must be at least 1, got {n!r}")
        policy = self._load(adapter)
        tokens = [policy.renderer.opening(question.prompt) for question in questions]
        order = sorted(range(len(questions)), key=lambda i: (len(tokens[i]), i))
        size = max(1, self.config.rows // n)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            streams = [
                [stream(seed, round, questions[i].prompt_id, number) for number in range(n)]
                for i in batch
            ]
            for place, sampled in policy.sample([tokens[i] for i in batch], streams, self.config):
                said = tuple(_response(policy, one) for one in sampled)
                yield Samples(questions[batch[place]].prompt_id, said)


def _response(policy: Policy, sampled: Sampled) -> Response:
    return Response(policy.text(sampled), len(sampled.tokens), sampled.log_prob, sampled.ended)

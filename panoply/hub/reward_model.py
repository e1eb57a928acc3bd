"""The face of a reward model: all that a server, the doctor and a script know of any kind.

    request_tokenizer, read_pair         a request's item -> token sequences
    forward                              token trees -> one output for each response
    to_score, preference_probability     outputs -> a score, or P(a > b)
    score, compare                       the same in one call, for scripts

A new kind of reward model is a class with this face and its case in `panoply.hub.artefact.load`.

Legend: `R` responses, `N` numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar, cast

import numpy as np
from torch import Tensor

from panoply.data.schema import Prompt, digest
from panoply.hub.backbone.backbone import PAD_RULE, Backbone, hash_tensors
from panoply.hub.backbone.renderer import RenderedTree
from panoply.hub.backbone.request_tokens import RequestTokenizer
from panoply.model.gather import Tokenized, merge_prefixes
from panoply.model.tree import TokenTree
from panoply.serve.calls import ReplicaRequest
from panoply.types import Array, Floats
from panoply.wire.request import Detail, Driver, Score, scored, sigmoid

Output = TypeVar("Output")
Scale: TypeAlias = tuple[float, float]
"""Lowest and highest rating of an objective."""


class ScoreDetails(TypedDict, total=False):
    """Details beside a score; see `panoply.wire.request.Details`."""

    objectives: Mapping[str, float]
    gate: Mapping[str, float]
    drivers: Sequence[Driver]
    spread: float
    steps: tuple[float | None, ...]


class RewardModel(ABC, Generic[Output]):
    """A loaded reward model of any kind; `Output` is the result of a forward for one response."""

    backbone: Backbone
    provenance: Mapping[str, str]
    """Everything that a score depends on; see `provenance_of`."""
    objectives: Mapping[str, Scale | None] = MappingProxyType({})
    """Objectives that a request may weigh, with their scales where they have one."""
    temperature: float = math.nan
    """Score differences divided by it are log odds; NaN of a model without scores."""
    needs_turns: bool = False
    """True where a score depends on where the response begins (a gate, a mean)."""
    is_pairwise: bool = False
    """True where the model compares two responses and has no score of one."""

    def __repr__(self) -> str:
        kind, dtype = self.provenance["kind"], self.provenance["dtype"]
        objectives = ""
        if self.objectives:
            names = list(self.objectives)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            objectives = f", {len(names)} objectives: {', '.join(names[:3])}{more}"
        return f"<{type(self).__name__} {self.backbone.name!r}, {kind}, {dtype}{objectives}>"

    def request_tokenizer(self) -> RequestTokenizer:
        """Returns a tokenizer of requests to this model: messages, rendered text, token ids."""
        embeddings = cast(Any, self.backbone.decoder.model).get_input_embeddings()
        size = embeddings.weight.shape[0]
        return RequestTokenizer(self.backbone.renderer, size, needs_turns=self.needs_turns)

    def prepack(self) -> None:
        """Lays the backbone's weights out for scoring: on a CPU about 1.1 times as fast.

        The model cannot be saved, copied or moved to another device afterwards.
        """
        self.backbone.prepack()

    def outputs(self, conversations: Sequence[Tokenized]) -> list[Output]:
        """Runs one forward and returns the output of each conversation, in their order."""
        gathered = merge_prefixes(conversations)
        outputs = self.forward(gathered.trees)
        return [outputs[place] for place in gathered.places]

    def score(self, prompt: Prompt, responses: Sequence[str]) -> Floats:
        """Returns the score of each response to a prompt, `[R]` float32.

        Raises:
            ValueError: the model is pairwise, or the template refuses the conversation.
        """
        raise ValueError(
            f"{self.backbone.name!r} is a pairwise model and has no scalar score: ask "
            "compare(prompt, a, b), or rank by a tournament"
        )

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Returns the probability that response `a` is better than `b`.

        Raises:
            ValueError: the template refuses the conversation.
        """
        first, second = self.outputs(self.read_pair(prompt, a, b))
        return self.preference_probability(first, second)

    def to_score(self, output: Output, conversation: Tokenized, request: ReplicaRequest) -> Score:
        """Converts the output of a conversation to a score, as a request asks for it.

        Raises:
            ValueError: the model is pairwise.
        """
        raise ValueError(
            f"{self.backbone.name!r} is a pairwise model and has no scalar score: compare two"
        )

    @abstractmethod
    def forward(self, trees: Sequence[TokenTree]) -> Sequence[Output]:
        """Returns the output of every response, tree by tree."""

    @abstractmethod
    def read_pair(self, prompt: Prompt, a: str, b: str) -> list[Tokenized]:
        """Returns the two conversations whose outputs `preference_probability` compares.

        Raises:
            ValueError: the template refuses the conversation.
        """

    @abstractmethod
    def preference_probability(self, first: Output, second: Output) -> float:
        """Returns P(a > b) by the outputs of `read_pair`; NaN where they are not finite."""

    @abstractmethod
    def render(self, prompt: Prompt, responses: Sequence[str]) -> list[RenderedTree]:
        """Returns the trees that rate responses: of the prompt, or of each pair of neighbors."""

    @abstractmethod
    def rate(self, trees: Sequence[TokenTree]) -> Array:
        """Returns the numbers `[N]` of rendered trees: a score a response, or P(a > b) a pair."""

    @abstractmethod
    def split(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """Returns a tree for each number of `rate`."""


class ScoringModel(RewardModel[Output]):
    """A reward model that gives each response a number of its own.

    P(a > b) = sigma( (s(a) - s(b)) / T ),   T the temperature
    """

    @abstractmethod
    def score_of(self, output: Output) -> float:
        """Returns the score in an output."""

    def details_of(self, output: Output, details: Set[Detail]) -> ScoreDetails:
        """Returns the details that a request asks for, as far as the model has them."""
        return {}

    def score(self, prompt: Prompt, responses: Sequence[str]) -> Floats:
        """Returns the score of each response to a prompt, `[R]` float32.

        It is the score of that response alone: where a response moves the gate's position, since
        its first characters merge with the prompt's last ones, the others keep theirs.

        Raises:
            ValueError: no response, or the template refuses the conversation.
        """
        return self.score_batch([(prompt, responses)])[0]

    def score_batch(self, items: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Floats]:
        """Returns the scores of each prompt's responses, `[R]` float32 each, in few forwards.

        They are those of `score`, prompt by prompt.

        Args:
            items: prompts, each with its responses.

        Raises:
            ValueError: no response to a prompt, or the template refuses a conversation.
        """
        conversations: list[Tokenized] = []
        ends: list[int] = []
        for prompt, responses in items:
            conversations += self.backbone.renderer.conversations(prompt, responses)
            ends.append(len(conversations))
        outputs = self.outputs(conversations) if conversations else []
        scores = np.array([self.score_of(output) for output in outputs], np.float32)
        return np.split(scores, ends[:-1]) if items else []

    def to_score(self, output: Output, conversation: Tokenized, request: ReplicaRequest) -> Score:
        """Converts the output of a conversation to a score with the details of a request."""
        return scored(
            self.score_of(output),
            num_tokens=len(conversation.tokens),
            num_cut=conversation.num_cut,
            **self.details_of(output, request.details),
        )

    def read_pair(self, prompt: Prompt, a: str, b: str) -> list[Tokenized]:
        """Returns each response behind the prompt."""
        return self.backbone.renderer.conversations(prompt, (a, b))

    def preference_probability(self, first: Output, second: Output) -> float:
        """Returns P(a > b) by the difference of the scores; NaN where it is not finite."""
        logit = (self.score_of(first) - self.score_of(second)) / self.temperature
        return sigmoid(logit) if math.isfinite(logit) else math.nan

    def render(self, prompt: Prompt, responses: Sequence[str]) -> list[RenderedTree]:
        """Returns the one tree of a prompt and its responses."""
        return [self.backbone.renderer.render(prompt, responses)]

    def rate(self, trees: Sequence[TokenTree]) -> Array:
        """Returns the scores of all responses."""
        return np.array([self.score_of(output) for output in self.forward(trees)])

    def split(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """Returns a tree for each response."""
        return [replace(tree, branches=(branch,)) for tree in trees for branch in tree.branches]


def provenance_of(
    kind: str, backbone: Backbone, head: Mapping[str, Tensor], pad_rule: str = PAD_RULE
) -> dict[str, str]:
    """Returns what the scores of a model depend on, to be kept beside them.

    Args:
        kind: of the head.
        backbone: with its renderer.
        head: tensors of the head.
        pad_rule: what padding may do to a score.
    """
    renderer = backbone.renderer
    bos = renderer.tokenizer.decode(renderer.bos)
    return {
        "kind": kind,
        "backbone": backbone.name,
        "weights": digest(backbone.weights_hash, hash_tensors(head)),
        "template": renderer.template_hash,
        "bos": f"{bos} once" if bos else "as the template writes it",
        "padding": pad_rule,
        "dtype": str(backbone.decoder.dtype).removeprefix("torch."),
    }

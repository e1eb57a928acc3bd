"""What the kinds of reward models say of a conversation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

from panoply.data.ratings import RatingMap
from panoply.data.schema import Prompt
from panoply.hub.artefact.load import AnyModel, RewardModel
from panoply.hub.artefact.scalar import ScalarModel
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.request_tokens import RequestTokenizer
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.pairwise import PairwiseModel
from panoply.model.gather import Tokenized
from panoply.model.reward_model import ModelOutput
from panoply.model.tree import TokenTree
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Driver, Score, scored, sigmoid

V = TypeVar("V")
Scale = tuple[float, float]
BETA = 1.0
"""Deviations between the members of an ensemble that its lower bound lies below its score."""
LOWER_BOUND = "lower_bound"


class Voice(Protocol, Generic[V]):
    """What a judge needs of a model; `V` is what it says of one conversation."""

    @property
    def reader(self) -> RequestTokenizer | None:
        """Reads conversations for it; None where it compares alone."""
        ...

    @property
    def backbone(self) -> Backbone:
        """What it computes with."""
        ...

    @property
    def objectives(self) -> Mapping[str, tuple[float, float] | None]:
        """Ends of each objective's own scale, where it has one."""
        ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """What made its scores."""
        ...

    def hear(self, trees: Sequence[TokenTree]) -> Sequence[V]:
        """Returns what the model says of every response, tree by tree."""
        ...

    def say(self, said: V, call: ReplicaRequest, conversation: Tokenized) -> Score:
        """Returns what it says of a conversation as the score that was asked for."""
        ...

    def pair(self, prompt: Prompt, a: str, b: str) -> Sequence[Tokenized]:
        """Returns the two conversations that it compares.

        Raises:
            ValueError: as `RequestTokenizer`.
        """
        ...

    def prefer(self, first: V, second: V) -> float:
        """Returns P(a > b) by what it says of these two; NaN where they are not finite."""
        ...


class Gated:
    """A gated multi-objective model."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model
        self.backbone = model.backbone
        self.reader: RequestTokenizer = reader_of(model.backbone, needs_turns=True)
        self.objectives = {name: _ends(model, name) for name in model.manifest.objectives}
        self.provenance = model.provenance

    def hear(self, trees: Sequence[TokenTree]) -> list[ModelOutput]:
        """Returns what the head says of each response, a batch of one each."""
        return self.model.score_trees(trees).rows()

    def say(self, said: ModelOutput, call: ReplicaRequest, conversation: Tokenized) -> Score:
        """Returns the gate's score, or the one by the weights of the call."""
        if call.weights:
            weights_O = [call.weights.get(name, 0.0) for name in self.objectives]
            said = self.model.head.weighed(said, weights_O)
        told: dict[str, Any] = {}
        if call.details & {"objectives", "drivers"}:
            drivers = self.model.explanation(said).drivers
            if "objectives" in call.details:
                told["objectives"] = {d.objective: d.value for d in drivers}
            if "drivers" in call.details:
                told["drivers"] = [Driver(d.objective, d.value, d.contribution) for d in drivers]
        if "gate" in call.details:
            weights_O = (said.weights_BO[0] / said.weights_BO[0].sum()).tolist()
            told["gate"] = dict(zip(self.objectives, weights_O, strict=True))
        size, cut = len(conversation.tokens), conversation.num_cut
        return scored(float(said.score_B), num_tokens=size, num_cut=cut, **told)

    def pair(self, prompt: Prompt, a: str, b: str) -> list[Tokenized]:
        """Returns each response behind the prompt."""
        return self.reader.messages(prompt, (a, b))

    def prefer(self, first: ModelOutput, second: ModelOutput) -> float:
        """Returns the probability by the difference of the scores."""
        return by_scores(float(first.score_B), float(second.score_B), self.model.temperature)


class Scalar:
    """A model of one number; where it is an ensemble, of its lower bound too."""

    def __init__(self, model: ScalarModel | HeadModel) -> None:
        self.model = model
        self.backbone = model.backbone
        self.reader: RequestTokenizer = reader_of(model.backbone, needs_turns=False)
        self.ensemble = (
            model if isinstance(model, ScalarModel) and len(model.heads_KD) > 1 else None
        )
        self.objectives: Mapping[str, Scale | None] = {}
        self.provenance = model.provenance

    def hear(self, trees: Sequence[TokenTree]) -> list[tuple[float, ...]]:
        """Returns score and, of an ensemble, lower bound of each response."""
        if self.ensemble:
            both = self.ensemble.bound_trees(trees, BETA)
            return list(zip(*(x.tolist() for x in both), strict=True))
        return [(score,) for score in self.model.score_trees(trees).tolist()]

    def say(self, said: tuple[float, ...], call: ReplicaRequest, conversation: Tokenized) -> Score:
        """Returns the score."""
        wanted = self.ensemble and "objectives" in call.details
        bound = {LOWER_BOUND: said[1]} if wanted else None
        size, cut = len(conversation.tokens), conversation.num_cut
        return scored(said[0], objectives=bound, num_tokens=size, num_cut=cut)

    def pair(self, prompt: Prompt, a: str, b: str) -> list[Tokenized]:
        """Returns each response behind the prompt."""
        return self.reader.messages(prompt, (a, b))

    def prefer(self, first: tuple[float, ...], second: tuple[float, ...]) -> float:
        """Returns the probability by the difference of the scores."""
        return by_scores(first[0], second[0], self.model.temperature)


class Pairwise:
    """A model that is shown two responses at once, in both orders, and scores none by itself."""

    reader = None

    def __init__(self, model: PairwiseModel) -> None:
        self.model, self.backbone = model, model.backbone
        self.objectives: Mapping[str, Scale | None] = {}
        self.provenance = model.provenance

    def hear(self, trees: Sequence[TokenTree]) -> list[float]:
        """Returns the probability of the response shown first, for each order."""
        return self.model.shown_first(trees).tolist()

    def say(self, said: float, call: ReplicaRequest, conversation: Tokenized) -> Score:
        """Raises ValueError: there is no score of a single response."""
        self.model.score_trees([])

    def pair(self, prompt: Prompt, a: str, b: str) -> list[Tokenized]:
        """Returns both orders. All pairs of a prompt can share it, for nothing hangs on a gate."""
        made = self.model.render(prompt, a, b)
        size, cuts = len(made.tree.shared), (made.prompt_tokens_cut, made.response_tokens_cut)
        rows = [made.tree.shared + branch.tokens for branch in made.tree.branches]
        return [Tokenized(row, 0, size, len(row), *cuts) for row in rows]

    def prefer(self, first: float, second: float) -> float:
        """Returns the mean over both orders."""
        return (first + 1 - second) / 2


def voice_of(model: AnyModel) -> Voice[Any]:
    """Returns the voice of a model."""
    if isinstance(model, PairwiseModel):
        return Pairwise(model)
    return Gated(model) if isinstance(model, RewardModel) else Scalar(model)


def by_scores(a: float, b: float, temperature: float) -> float:
    """Returns P(a > b) = sigma( (s_a - s_b) / T ), NaN where a score is not finite."""
    logit = (a - b) / temperature
    return sigmoid(logit) if math.isfinite(logit) else math.nan


def reader_of(backbone: Backbone, *, needs_turns: bool) -> RequestTokenizer:
    """Returns what reads conversations for a model on this backbone."""
    embeddings = cast(Any, backbone.decoder.model).get_input_embeddings()
    return RequestTokenizer(backbone.renderer, embeddings.weight.shape[0], needs_turns=needs_turns)


def _ends(model: RewardModel, objective: str) -> Scale | None:
    found = model.manifest.maps.get(objective)
    if found is None:
        return None
    scale = RatingMap.from_dict(found)
    return scale.low, scale.high

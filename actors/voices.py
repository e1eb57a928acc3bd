"""What the kinds of reward models say of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

from panoply.data.ratings import RatingMap
from panoply.hub.artefact import AnyModel, RewardModel
from panoply.hub.backbone import Backbone
from panoply.hub.head_model import HeadModel
from panoply.hub.pairwise import PairwiseModel
from panoply.hub.reading import Reader
from panoply.hub.scalar import ScalarModel
from panoply.model.reward_model import Scored
from panoply.model.tree import TokenTree
from panoply.serve.calls import Call
from panoply.wire.request import Driver, Score, scored

V = TypeVar("V")
Scale = tuple[float, float]
BETA = 1.0
"""Deviations between the members of an ensemble that its lower bound lies below its score."""
LOWER_BOUND = "lower_bound"


class Voice(Protocol, Generic[V]):
    """What a judge needs of a model; `V` is what it says of one conversation."""

    @property
    def reader(self) -> Reader:
        """Reads conversations for it."""
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

    def say(self, said: V, call: Call, num_tokens: int) -> Score:
        """Returns it as the score that was asked for."""
        ...


class Gated:
    """A gated multi-objective model."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model
        self.backbone = model.backbone
        self.reader = reader_of(model.backbone, needs_turns=True)
        self.objectives = {name: _ends(model, name) for name in model.card.objectives}
        self.provenance = model.provenance

    def hear(self, trees: Sequence[TokenTree]) -> list[Scored]:
        """Returns what the head says of each response, a batch of one each."""
        return self.model.score_trees(trees).rows()

    def say(self, said: Scored, call: Call, num_tokens: int) -> Score:
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
        return scored(float(said.score_B), num_tokens=num_tokens, **told)


class Scalar:
    """A model of one number; where it is an ensemble, of its lower bound too."""

    def __init__(self, model: ScalarModel | HeadModel) -> None:
        self.model = model
        self.backbone = model.backbone
        self.reader = reader_of(model.backbone, needs_turns=False)
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

    def say(self, said: tuple[float, ...], call: Call, num_tokens: int) -> Score:
        """Returns the score."""
        wanted = self.ensemble and "objectives" in call.details
        bound = {LOWER_BOUND: said[1]} if wanted else None
        return scored(said[0], objectives=bound, num_tokens=num_tokens)


def voice_of(model: AnyModel) -> Voice[Any]:
    """Returns the voice of a model.

    Raises:
        ValueError: it compares two responses and has no score for one.
    """
    if isinstance(model, PairwiseModel):
        raise ValueError(
            f"{model.backbone.name!r} is a pairwise model, which gives no response a score of its "
            "own and cannot be served as an arm; serve a scalar model"
        )
    return Gated(model) if isinstance(model, RewardModel) else Scalar(model)


def reader_of(backbone: Backbone, *, needs_turns: bool) -> Reader:
    """Returns what reads conversations for a model on this backbone."""
    embeddings = cast(Any, backbone.decoder.model).get_input_embeddings()
    return Reader(backbone.renderer, embeddings.weight.shape[0], needs_turns=needs_turns)


def _ends(model: RewardModel, objective: str) -> Scale | None:
    found = model.card.maps.get(objective)
    if found is None:
        return None
    scale = RatingMap.from_dict(found)
    return scale.low, scale.high

"""The gateway: requests of every dialect in, requests to replicas, answers of that dialect out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from pydantic import JsonValue

from actors.ask_replica import Ask, ask_replica
from actors.internal_error import internal_error
from panoply.serve.calls import (
    FeedbackRequest,
    ReplicaRequest,
    Shard,
    fingerprint_of,
    shard_by_prompt,
)
from panoply.wire.feedback import OutcomeAnswer
from panoply.wire.request import ModelAnswer, RequestError, Score, ScoreAnswer, ScoreRequest

ABOUT_SECONDS = 2.0
"""Seconds in which a model says what it is."""
ModelState: TypeAlias = Literal["ready", "starting", "idle", "failed"]


Learn: TypeAlias = Callable[[FeedbackRequest], Awaitable[Sequence[OutcomeAnswer] | RequestError]]


class ModelStatus(NamedTuple):
    """State of a model in the cluster."""

    state: ModelState
    reason: str
    """Reason of the state `failed`; empty in any other."""
    deployed: str = ""
    """Time and progress of its latest deployment."""


@dataclass(slots=True)
class Model:
    """A model as the gateway knows it."""

    ask: Ask
    about: Callable[[], Awaitable[Mapping[str, JsonValue]]]
    """Returns the model's description of itself: `kind`, `objectives`, `provenance`."""
    learn: Learn | None = None
    """Sends outcomes of decisions to one of its replicas; those of a bandit alone take them."""
    state: ModelState = "starting"
    version: int = 1
    """Number of the version that answers; an upgrade counts on."""
    reason: str = ""
    """Reason of the state `failed`; empty in any other."""
    description: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """Its answer to `about`; empty while it was never up."""
    fingerprint: str = ""
    """Hash of that description."""
    is_stale: bool = True
    """Whether another version of it may answer than the one described."""
    deployed: str = ""
    """Its latest deployment, as the cluster names it: it changes with each."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time since when the gateway has it."""

    @property
    def circuit(self) -> str:
        """State of its circuit to a server or function, "closed" where it has none."""
        return str(self.description.get("circuit", "closed"))

    @property
    def is_bandit(self) -> bool:
        """Says whether it makes decisions, and learns from what comes of them."""
        return self.description.get("kind") == "bandit"

    @property
    def can_answer(self) -> bool:
        """Says whether a request to the model may succeed; a request starts an idle model."""
        return self.state in ("ready", "idle") and self.circuit != "open"

    def changed_to(self, status: ModelStatus) -> None:
        """Takes over what the cluster says; another deployment has to describe itself anew."""
        self.state, self.reason = status.state, status.reason
        if status.deployed != self.deployed:
            self.deployed, self.is_stale = status.deployed, True

    async def describe(self, name: str) -> None:
        """Asks the model what it is; a fault is logged, and what was known stays."""
        try:
            async with asyncio.timeout(ABOUT_SECONDS):
                self.description = await self.about()
            self.fingerprint, self.is_stale = fingerprint_of(self.description), False
        except Exception as error:  # of any model: the others go on
            internal_error(f"the description of model {name!r}", error)

    @property
    def objectives(self) -> list[str] | None:
        """Names of its objectives; None while the model was never up."""
        objectives = self.description.get("objectives")
        if objectives is None:
            return None
        return [str(objective["name"]) for objective in cast(Any, objectives)]


@dataclass(frozen=True, slots=True)
class Gateway:
    """Asks models and puts their answers together.

    Args:
        models: by name.
        default: name of the model that answers where a request names none.
        timeout: seconds for a request that names none itself.
    """

    models: Mapping[str, Model]
    default: str
    timeout: float

    async def learn(self, statuses: Mapping[str, ModelStatus]) -> None:
        """Updates the models' states, and asks those that are new or changed what they are.

        They are asked together, and one that hangs or fails is asked again the next time.
        """
        # A model may have been removed since they were asked for.
        statuses = {name: status for name, status in statuses.items() if name in self.models}
        for name, status in statuses.items():
            self.models[name].changed_to(status)
        stale = [
            name
            for name in statuses
            if self.models[name].is_stale and self.models[name].state == "ready"
        ]
        await asyncio.gather(*(self.models[name].describe(name) for name in stale))

    @property
    def is_settled(self) -> bool:
        """Says whether all models are up and described as they are."""
        return all(m.state == "ready" and not m.is_stale for m in self.models.values())

    def directory(self) -> list[dict[str, JsonValue]]:
        """Returns what clients may know of the models, in the shape of OpenAI's list."""
        return [
            {
                "id": name,
                "object": "model",
                "created": model.created,
                "owned_by": "panoply",
                "state": model.state,
                "reason": model.reason,
                "default": name == self.default,
                "version": model.version,
                **model.description,
            }
            for name, model in self.models.items()
        ]

    def entry(self, name: str) -> dict[str, JsonValue]:
        """Returns what clients may know of one model.

        Raises:
            RequestError: 404 for a name that no model has.
        """
        self.check_name(name)
        return next(entry for entry in self.directory() if entry["id"] == name)

    def named(self, request: ScoreRequest, path_name: str | None) -> ScoreRequest:
        """Returns the request with the names of its models; one in the path overrules them.

        Raises:
            RequestError: 404 for a name that no model has.
        """
        names = (path_name,) if path_name else request.models or (self.default,)
        for name in names:
            self.check_name(name)
        return replace(request, models=names)

    def check_name(self, name: str) -> None:
        """Checks that there is a model of this name.

        Raises:
            RequestError: 404, with those there are.
        """
        if name not in self.models:
            raise RequestError(
                f"no model is called {name[:64]!r}; there are {sorted(self.models)}. "
                "`/models/NAME` before a path names one where the payload cannot",
                404,
            )

    async def score(self, request: ScoreRequest, spent: float = 0.0) -> ScoreAnswer:
        """Returns the scores of every model that the request names.

        Args:
            request: its models are set.
            spent: seconds of its time that reading it took.

        Raises:
            RequestError: the request itself is at fault, or its only model is too busy.
        """
        timeout = max(0.0, min(request.timeout or self.timeout, self.timeout) - spent)
        by_model = self._with_own_weights(request)
        answers = await asyncio.gather(
            *(self._answer(name, part, timeout) for name, part in by_model.items())
        )
        return ScoreAnswer(models=tuple(answers), id=uuid.uuid4().hex, created=int(time.time()))

    async def feedback(self, name: str, request: FeedbackRequest) -> Sequence[OutcomeAnswer]:
        """Returns what became of outcomes of a bandit's decisions.

        Raises:
            RequestError: 400 for a model that is no bandit; 503 where nothing could be counted.
        """
        model = self.models[name]
        if model.state == "failed":
            raise RequestError(f"{name!r} could not be started: {model.reason}", 503)
        if not model.description:
            await model.describe(name)
        if not model.description:
            raise RequestError(f"{name!r} is starting: tell it again", 503)
        if not model.is_bandit or model.learn is None:
            raise RequestError(
                f"{name!r} is no bandit, and learns from nothing: `/v1/feedback` is for a model of "
                "the kind 'bandit' (`GET /v1/models`)"
            )
        answers = await ask_replica(name, model.learn, request)
        if isinstance(answers, RequestError):
            raise answers
        return answers

    def _with_own_weights(self, request: ScoreRequest) -> dict[str, ScoreRequest]:
        """Returns the request as each model gets it: weights go to those that have the objectives.

        Raises:
            RequestError: none of the models has an objective of that name.
        """
        by_model = {name: self.models[name].objectives for name in request.models}
        available = set[str]().union(*(names or () for names in by_model.values()))
        unknown = sorted(set(request.weights) - available)
        if unknown and None not in by_model.values():  # one that was never up may have it
            raise RequestError(
                f"no model asked has objective {unknown[0]!r}; they have {sorted(available)}"
            )
        requests: dict[str, ScoreRequest] = {}
        for name, objectives in by_model.items():
            weights = request.weights
            if objectives is not None:
                weights = {key: w for key, w in weights.items() if key in objectives}
            requests[name] = replace(request, weights=weights)
        return requests

    async def _answer(self, name: str, request: ScoreRequest, timeout: float) -> ModelAnswer:
        """Returns the scores of one model, put together from those of its shards."""
        model = self.models[name]  # looked up once: an upgrade does not split an answer
        shards = list(shard_by_prompt(request, timeout))
        answers = await asyncio.gather(*(self._ask(name, model, shard.request) for shard in shards))
        items: list[tuple[Score, ...]] = [()] * len(request.items)
        provenance: Mapping[str, str] = {}
        for shard, answer in zip(shards, answers, strict=True):
            if isinstance(answer, RequestError):
                # What one of several models cannot do takes nothing from the others' answers.
                concerns_it_alone = answer.status in (429, 500) and len(request.models) > 1
                if answer.status != 503 and not concerns_it_alone:
                    raise answer
                answer = _failed(name, shard, answer)
            if answer.fingerprint and answer.fingerprint != model.fingerprint:
                model.is_stale = True
            provenance = answer.provenance or provenance
            for place, scores in zip(shard.places, answer.items, strict=True):
                items[place] = scores
        return ModelAnswer(
            model=name, items=tuple(items), provenance=provenance, version=model.version
        )

    async def _ask(
        self, name: str, model: Model, request: ReplicaRequest
    ) -> ModelAnswer | RequestError:
        if model.state == "failed":
            return RequestError(f"{name!r} could not be started: {model.reason}", 503)
        return await ask_replica(name, model.ask, request)


def _failed(name: str, shard: Shard, why: RequestError) -> ModelAnswer:
    """Returns an answer whose scores are all the same error."""
    error = Score(error=str(why), transient=why.status != 500)
    compares = shard.request.compares
    nums = [1 if compares else len(item.responses) for item in shard.request.items]
    return ModelAnswer(model=name, items=tuple((error,) * num for num in nums))

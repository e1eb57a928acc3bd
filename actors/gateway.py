"""The gateway: requests of every dialect in, requests to replicas, answers of that dialect out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

from pydantic import JsonValue

from actors.ask_replica import Ask, ask_replica
from panoply.serve.calls import ReplicaRequest, Shard, shard_by_prompt
from panoply.wire.request import ModelAnswer, RequestError, Score, ScoreAnswer, ScoreRequest

ModelState: TypeAlias = Literal["ready", "starting", "idle", "failed"]


@dataclass(slots=True)
class Model:
    """A model as the gateway knows it."""

    ask: Ask
    about: Callable[[], Awaitable[Mapping[str, JsonValue]]]
    """Returns the model's description of itself: `kind`, `objectives`, `provenance`."""
    state: ModelState = "starting"
    version: int = 1
    """Number of the version that answers; an upgrade counts on."""
    reason: str = ""
    """Reason of the state `failed`; empty in any other."""
    description: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """Its answer to `about`; empty while it was never up."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time since when the gateway has it."""

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

    async def learn(self, states: Mapping[str, tuple[ModelState, str]]) -> None:
        """Updates the models' states, and asks those that are new to describe themselves."""
        for name, (state, reason) in states.items():
            model = self.models[name]
            model.state, model.reason = state, reason
            if state == "ready" and not model.description:
                model.description = await model.about()

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
                f"no model is called {name!r}; there are {sorted(self.models)}. "
                "`/models/NAME` before a path names one where the payload cannot",
                404,
            )

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Returns the scores of every model that the request names.

        Raises:
            RequestError: the request itself is at fault, or its only model is too busy.
        """
        timeout = min(request.timeout or self.timeout, self.timeout)
        by_model = self._with_own_weights(request)
        answers = await asyncio.gather(
            *(self._answer(name, part, timeout) for name, part in by_model.items())
        )
        return ScoreAnswer(models=tuple(answers), id=uuid.uuid4().hex, created=int(time.time()))

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

"""The gateway: requests of every dialect in, calls to the models, answers of that dialect out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

from pydantic import JsonValue
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from actors.internal_error import internal_error
from panoply.serve.calls import ReplicaRequest, Shard, shard_by_prompt
from panoply.wire.request import ModelAnswer, RequestError, Score, ScoreAnswer, ScoreRequest

Ask: TypeAlias = Callable[[ReplicaRequest], Awaitable[ModelAnswer | RequestError]]
State: TypeAlias = Literal["ready", "starting", "idle", "failed"]
LOST = (RayActorError,)
"""What a call gets whose replica died. Scoring again does no harm, so it is asked again once."""


@dataclass(slots=True)
class Model:
    """A model as the gateway knows it."""

    ask: Ask
    about: Callable[[], Awaitable[Mapping[str, JsonValue]]]
    """Returns what the model says of itself: `kind`, `objectives`, `provenance`."""
    state: State = "starting"
    reason: str = ""
    """Why it failed."""
    told: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time since when the gateway has it."""

    @property
    def objectives(self) -> list[str] | None:
        """Names of its objectives; None while the model was never up."""
        found = self.told.get("objectives")
        return [str(one["name"]) for one in cast(Any, found)] if found is not None else None


@dataclass(frozen=True, slots=True)
class Gateway:
    """Asks models and puts their answers together.

    Args:
        models: by name.
        default: the one that answers where none is named.
        timeout: seconds for a request that names none itself.
    """

    models: Mapping[str, Model]
    default: str
    timeout: float

    async def learn(self, states: Mapping[str, tuple[State, str]]) -> None:
        """Takes in how the models are doing, and asks those that are new about themselves."""
        for name, (state, reason) in states.items():
            model = self.models[name]
            model.state, model.reason = state, reason
            if state == "ready" and not model.told:
                model.told = await model.about()

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
                **model.told,
            }
            for name, model in self.models.items()
        ]

    def named(self, request: ScoreRequest, path_name: str | None) -> ScoreRequest:
        """Returns the request with the models that it is for; one in the path counts.

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

    def entry(self, name: str) -> dict[str, JsonValue]:
        """Returns what clients may know of one model.

        Raises:
            RequestError: 404 for a name that no model has.
        """
        self.check_name(name)
        return next(entry for entry in self.directory() if entry["id"] == name)

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Returns the scores of every model that the request names.

        Raises:
            RequestError: the request itself is at fault, or its only model is too busy.
        """
        timeout = min(request.timeout or self.timeout, self.timeout)
        asked = self._weighed(request)
        answers = await asyncio.gather(
            *(self._answer(name, one, timeout) for name, one in asked.items())
        )
        return ScoreAnswer(models=tuple(answers), id=uuid.uuid4().hex, created=int(time.time()))

    def _weighed(self, request: ScoreRequest) -> dict[str, ScoreRequest]:
        """Returns the request as each model gets it: weights go to those that have the objectives.

        Raises:
            RequestError: none of the models has an objective of that name.
        """
        known = {name: self.models[name].objectives for name in request.models}
        has = {objective for names in known.values() for objective in names or ()}
        unknown = sorted(set(request.weights) - has)
        if unknown and None not in known.values():  # one that was never up may have it
            raise RequestError(
                f"no model asked has objective {unknown[0]!r}; they have {sorted(has)}"
            )
        return {
            name: request
            if names is None
            else replace(request, weights={o: w for o, w in request.weights.items() if o in names})
            for name, names in known.items()
        }

    async def _answer(self, name: str, request: ScoreRequest, timeout: float) -> ModelAnswer:
        """Returns the scores of one model, put together from those of its calls."""
        asked = list(shard_by_prompt(request, timeout))
        found = await asyncio.gather(*(self._ask(name, part.request, timeout) for part in asked))
        items: list[tuple[Score, ...]] = [()] * len(request.items)
        provenance: Mapping[str, str] = {}
        for part, answer in zip(asked, found, strict=True):
            if isinstance(answer, RequestError):
                # What one of several models cannot do takes nothing from the others' answers.
                own = answer.status in (429, 500) and len(request.models) > 1
                if answer.status != 503 and not own:
                    raise answer
                answer = _failed(name, part, answer)
            provenance = answer.provenance or provenance
            for place, scores in zip(part.places, answer.items, strict=True):
                items[place] = scores
        return ModelAnswer(model=name, items=tuple(items), provenance=provenance)

    async def _ask(
        self, name: str, call: ReplicaRequest, timeout: float
    ) -> ModelAnswer | RequestError:
        """Returns what a model answers, or why it does not."""
        model, ends = self.models[name], time.monotonic() + timeout
        if model.state == "failed":
            return RequestError(f"{name!r} could not be started: {model.reason}", 503)
        try:
            async with asyncio.timeout(timeout):
                try:
                    return await model.ask(call)
                except LOST:
                    left = max(0.0, ends - time.monotonic())
                    return await model.ask(replace(call, timeout=left))
        except TimeoutError:
            return RequestError(f"{name!r} gave no answer within {timeout:g} s", 503)
        except LOST:
            return RequestError(f"{name!r} lost the replica that was scoring, twice", 503)
        except BackPressureError:
            return RequestError(f"{name!r} is busy: its queue is full", 429, 1.0)
        except Exception as error:
            return internal_error(f"model {name!r}", error)


def _failed(name: str, part: Shard, why: RequestError) -> ModelAnswer:
    error = Score(error=str(why), transient=why.status != 500)
    owed = [1 if part.request.compares else len(item.responses) for item in part.request.items]
    items = tuple((error,) * num for num in owed)
    return ModelAnswer(model=name, items=items)

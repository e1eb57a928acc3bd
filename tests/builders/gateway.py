"""A gateway over HTTP before models that are formulas."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from ray.exceptions import RayActorError

from actors.gateway import Gateway, Model
from actors.http import make_app
from actors.intake import Intake
from panoply.serve.access import KeyRing, RateLimits
from panoply.wire.limits import RequestLimits
from panoply.wire.request import ModelAnswer
from tests.builders.wire_scores import scores_of


class Formula:
    """A model whose responses say their own score, and that remembers its calls."""

    def __init__(self, name, *, seconds=0.0, dies=0, refuses=None, objectives=()):
        self.name, self.seconds, self.dies, self.refuses = name, seconds, dies, refuses
        self.calls, self.objectives = [], objectives

    async def ask(self, call):
        """Answers a call."""
        self.calls.append(call)
        await asyncio.sleep(self.seconds)
        if self.dies:
            self.dies -= 1
            raise RayActorError
        if self.refuses:
            return self.refuses
        items = tuple(scores_of(item, call.details, call.compares) for item in call.items)
        told = {"weights": self.name} if "provenance" in call.details else {}
        return ModelAnswer(model=self.name, items=items, provenance=told)

    async def about(self):
        """Says what it is."""
        objectives = [{"name": name, "low": None, "high": None} for name in self.objectives]
        return {"kind": "scalar", "objectives": objectives}


@asynccontextmanager
async def nothing_beside(_):
    yield


async def no_agents():
    return []


def intake(*, keys=None, open_models=("a",), rate=0.0, clock=time.monotonic, **limits):
    """What checks requests; `keys` are strings by model, or several in a tuple."""
    ring = KeyRing({})
    held = {model: (key,) if isinstance(key, str) else key for model, key in (keys or {}).items()}
    with pytest.MonkeyPatch.context() as patch:
        places = {}
        for model, secrets in held.items():
            places[model] = tuple(f"{model}_KEY_{i}" for i in range(len(secrets)))
            for place, secret in zip(places[model], secrets, strict=True):
                patch.setenv(place, secret)
        ring = KeyRing(places)
    return Intake(
        RequestLimits(**limits),
        ring,
        RateLimits(rate, clock),
        is_closed=set(open_models) <= ring.protected,
    )


def serving(*formulas, keys=None, timeout=30.0, loops=(), **settings):
    models = {one.name: Model(one.ask, one.about, state="ready") for one in formulas}
    gateway = Gateway(models, formulas[0].name, timeout)
    checks = intake(keys=keys, open_models=models, **settings)
    return make_app(gateway, checks, no_agents, nothing_beside, loops), gateway

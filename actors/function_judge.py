"""A judge of a function arm in its own process."""

from __future__ import annotations

from pydantic import JsonValue

from panoply.serve.calls import Call
from panoply.serve.config import FUNCTION, ArmConfig
from panoply.serve.functions import load_function
from panoply.wire.request import ModelAnswer, RequestError


class FunctionJudge:
    """Answers calls by a Python function; what Serve makes replicas of."""

    def __init__(self, arm: ArmConfig) -> None:
        """Loads the function; raises as `load_function` does."""
        self.name = arm.name
        self.where = arm.where.removeprefix(FUNCTION)
        self.arm = load_function(self.where)

    async def answer(self, call: Call) -> ModelAnswer | RequestError:
        """Returns a score or an error for every response of a call."""
        if call.weights:
            return RequestError(f"{self.name!r} is a function: it has no objectives to weigh")
        items = await self.arm.score(call.items)
        provenance = {"kind": "function", "function": self.where}
        wanted = "provenance" in call.details
        return ModelAnswer(model=self.name, items=items, provenance=provenance if wanted else {})

    def about(self) -> dict[str, JsonValue]:
        """Returns what it is."""
        return {"kind": "function", "objectives": [], "provenance": {"function": self.where}}

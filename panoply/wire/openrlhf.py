"""OpenRLHF's remote reward model: `--reward.remote_url http://HOST/get_reward`.

    {"query": [prompt + response], "prompts": [prompt | null], "labels": [any | null]}
    {"rewards": [0.5], "scores": [0.5], "extra_logs": {"helpfulness": [0.6]}}

Up to 0.5 the client sends `query` alone and reads `rewards`; 0.6 adds `prompts` and `labels`, later
versions read `scores` and `extra_logs`. All three keys are always answered, so that every version
finds its own. Texts carry the policy's template, special tokens included. A client with several
URLs sends empty lists to all but the first and waits for them, so empty lists are answered.

`scores` are the rewards, raw: set the client's range for dynamic filtering to the model's scale.
Where the model's limits cut a text, `truncated` says of each whether it was.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from panoply.wire.dialect import DialectPayload
from panoply.wire.messages import Texts
from panoply.wire.request import (
    Payload,
    RenderedText,
    RequestError,
    ScoreAnswer,
    ScoreRequest,
    beside_scores,
    require_score,
    single_model_scores,
)


class GetReward(DialectPayload):
    """A batch of rendered conversations."""

    query: Texts
    prompts: Annotated[list[str | None], Field(fail_fast=True)] | None = None
    labels: list[JsonValue] | None = None

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        for name, values in (("prompts", self.prompts), ("labels", self.labels)):
            if values is not None and len(values) != len(self.query):
                raise ValueError(f"{len(values)} `{name}` for {len(self.query)} of `query`")
        return self

    def request(self) -> ScoreRequest:
        """Splits each query behind its prompt, where it starts with it."""
        prompts = self.prompts or [None] * len(self.query)
        labels = self.labels or [None] * len(self.query)
        items: list[RenderedText] = []
        for query, prompt, label in zip(self.query, prompts, labels, strict=True):
            # A prompt that the client truncated is not how the query starts.
            shared = prompt if prompt and query.startswith(prompt) else ""
            items.append(RenderedText(shared, (query[len(shared) :],), label))
        return ScoreRequest(items=tuple(items), details=frozenset({"objectives"}))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Logs the objectives that every response has."""
        _, scores = single_model_scores(answer, request)
        rewards = [require_score(score) for score in scores]
        objectives = [score.details.objectives for score in scores]
        logs: dict[str, Payload] = {}
        for name in objectives[0] if objectives else ():
            if all(name in named for named in objectives):
                logs[name] = [named[name] for named in objectives]
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs, **beside_scores(scores)}


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error for clients that read the status alone: OpenRLHF's, slime's and ours."""
    return error.status, {"error": error.message}

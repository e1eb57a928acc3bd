"""Reads outcomes of a bandit's decisions: `/v1/feedback`, and `/models/NAME/v1/feedback`.

    {"model": "router", "outcomes": [{"decision": "1f-...", "reward": 0.7},
                                     {"decision": "20-...", "loss": 0.61, "loss_after": 0.58}]}

    {"model": "router", "outcomes": [{"decision": "1f-...", "status": "counted", "reward": 0.7},
                                     {"decision": "20-...", "status": "unknown", "reward": null}]}

An outcome has the id of a decision (`decision` beside a score in any dialect, or the header
`X-Panoply-Decisions`) and numbers: `reward`, in the range that the bandit's file states, or any of
the measurements of `panoply.laser.signals`. Each is answered by itself, in the order sent:

| `status` | |
| --- | --- |
| `counted` | it is in the log, and `reward` is what the bandit learned; null: nothing |
| `repeated` | the same outcome was counted before |
| `differs` | another outcome was counted before, which stands |
| `unknown` | no decision of this id was answered to this key |
| `refused` | a number is none that the bandit takes; `error` says why |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from panoply.wire.dialect import Strict, explain
from panoply.wire.request import Payload, RequestError

Status: TypeAlias = Literal["counted", "repeated", "differs", "unknown", "refused"]
DECISION_CHARACTERS = 128
"""Maximum characters of an id."""
MEASURES = 16
"""Maximum numbers of an outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Names a decision and its outcome."""

    decision: str
    """Id of the decision."""
    measures: Mapping[str, float] = field(default_factory=dict[str, float])
    """Numbers by name: `reward`, or measurements of `panoply.laser.signals.PromptOutcome`."""
    failure: str = ""
    """Reason why the arm gave no score; only a server itself knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeAnswer:
    """Tells whether an outcome was taken."""

    decision: str
    """Id of the decision."""
    status: Status
    reward: float | None = None
    """Reward that the bandit learned; None where there was none."""
    error: str = ""
    """Reason why it was refused."""


class OutcomePayload(BaseModel):
    """Id of a decision, and numbers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat]  # pyright: ignore[reportIncompatibleVariableOverride]

    decision: Annotated[str, Field(max_length=DECISION_CHARACTERS)]

    def outcome(self) -> Outcome:
        """Returns the neutral outcome.

        Raises:
            RequestError: 413 for too many numbers.
        """
        if len(self.__pydantic_extra__) > MEASURES:
            raise RequestError(f"an outcome has at most {MEASURES} numbers", 413)
        return Outcome(decision=self.decision, measures=dict(self.__pydantic_extra__))


class FeedbackPayload(Strict):
    """Outcomes of a bandit's decisions."""

    model: str | None = None
    outcomes: Annotated[list[OutcomePayload], Field(min_length=1, fail_fast=True)]


def parse_feedback(payload: JsonValue) -> FeedbackPayload:
    """Returns a payload, typed and checked.

    Raises:
        RequestError: 400, naming each key that is wrong.
    """
    try:
        return FeedbackPayload.model_validate(payload)
    except ValidationError as error:
        raise RequestError(explain(error)) from error


def feedback_payload(model: str, outcomes: Sequence[Outcome]) -> dict[str, Payload]:
    """Returns outcomes as a payload."""
    entries = [{"decision": outcome.decision, **outcome.measures} for outcome in outcomes]
    return {"model": model, "outcomes": entries}


def feedback_answer(model: str, answers: Sequence[OutcomeAnswer]) -> dict[str, Payload]:
    """Returns what became of outcomes as a payload."""
    entries: list[Payload] = []
    for answer in answers:
        entry = asdict(answer)
        if not answer.error:
            del entry["error"]
        entries.append(entry)
    return {"model": model, "outcomes": entries}


class _AnswerEntry(BaseModel):
    decision: str
    status: Status
    reward: FiniteFloat | None = None
    error: str = ""


class _Answer(BaseModel):
    model: str
    outcomes: list[_AnswerEntry]


def read_feedback_answer(payload: JsonValue, num: int) -> list[OutcomeAnswer]:
    """Returns what became of outcomes.

    Raises:
        ValueError: it is no answer of `/v1/feedback`, or not of so many outcomes.
    """
    try:
        entries = _Answer.model_validate(payload).outcomes
    except ValidationError as error:
        raise ValueError(f"no answer of `/v1/feedback`: {explain(error)}") from error
    if len(entries) != num:
        raise ValueError(f"{len(entries)} outcomes were answered, {num} were sent")
    return [OutcomeAnswer(**entry.model_dump()) for entry in entries]

"""What trainers call a reward function with, as our requests, and answers as they read them.

TRL (`GRPOTrainer(reward_funcs=...)`): keywords `prompts` and `completions`, as text or as messages,
and every other column of the data set as a list; a list of float or None, where None is left out of
the weighted sum. verl (`reward.custom_reward_function`): one `solution_str` with its `extra_info`;
a number, or a dict with the key `score`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from pydantic import JsonValue

from panoply.wire.families import ENDS, without_end
from panoply.wire.request import Chat, Message, Rendered, ScoreAnswer, ScoreRequest

Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A prompt or a completion: text through a template already, or messages."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Completions grouped by prompt, and where each of them went."""

    request: ScoreRequest
    places: tuple[tuple[int, int] | None, ...]
    """Item and response of each completion; None where there is nothing to score."""

    def rewards(
        self, answer: ScoreAnswer, log_metric: Callable[[str, float], None] | None = None
    ) -> list[float | None]:
        """Returns the one model's score of each completion, None where there is none.

        Args:
            answer: to the batch's request.
            log_metric: TRL's; told the share of completions that have no score.
        """
        model = answer.models[0]
        found = [None if at is None else model.items[at[0]][at[1]].score for at in self.places]
        if log_metric is not None and found:
            log_metric(f"rewards/{model.model}/missing", found.count(None) / len(found))
        return found


def trl_batch(
    model: str,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    columns: Mapping[str, Any],
    label_column: str | None,
) -> Batch:
    """Returns a batch in which the samples of one prompt meet, as one prefix for the server.

    A completion in messages that does not end with an assistant's plain text (it ends with a
    tool's call, say) has nothing to score.

    Raises:
        KeyError: there is no such column.
        TypeError: a prompt is text and its completion messages, or the other way round.
    """
    if label_column is not None and label_column not in columns:
        raise KeyError(f"no column {label_column!r} of labels; there are {sorted(columns)}")
    labels = [None] * len(prompts) if label_column is None else columns[label_column]
    grouped: dict[str, tuple[Chat | Rendered, list[str]]] = {}
    found: list[tuple[str, int] | None] = []
    for prompt, completion, label in zip(prompts, completions, labels, strict=True):
        item, response = _split(prompt, completion, label)
        if response is None:
            found.append(None)
            continue
        key = json.dumps([type(item).__name__, item.prompt, label])
        responses = grouped.setdefault(key, (item, []))[1]
        found.append((key, len(responses)))
        responses.append(response)
    order = {key: i for i, key in enumerate(grouped)}
    items = tuple(replace(item, responses=tuple(rs)) for item, rs in grouped.values())
    places = tuple(None if at is None else (order[at[0]], at[1]) for at in found)
    return Batch(ScoreRequest(items=items, models=(model,)), places)


def _split(prompt: Text, completion: Text, label: JsonValue) -> tuple[Chat | Rendered, str | None]:
    if isinstance(prompt, str) and isinstance(completion, str):
        return Rendered(prompt, (), label), completion
    if isinstance(prompt, str) or isinstance(completion, str):
        raise TypeError(
            "prompt and completion must both be text or both messages, got "
            f"{type(prompt).__name__} and {type(completion).__name__}"
        )
    turns = [_message(turn) for turn in (*prompt, *completion)]
    last = turns[-1] if completion else {}
    is_reply = last.keys() == {"role", "content"} and last["role"] == "assistant"
    return Chat(tuple(turns[:-1]), (), label), last["content"] if is_reply else None


def _message(turn: Mapping[str, Any]) -> Message:
    # Columns of messages have every key of any of them; None is a key that this one lacks. Other
    # keys (tool_calls) go along, so that the server refuses them and none is dropped in silence.
    return {key: value for key, value in turn.items() if value is not None}


def verl_request(
    model: str, solution: str, label: JsonValue, extra_info: Mapping[str, Any] | None, key: str
) -> ScoreRequest:
    """Returns one response to the prompt that stands in `extra_info[key]`.

    A prompt that is text is a user's turn here: what stands in `extra_info` went through no
    template. The solution loses the token that ended it, which verl leaves where the policy's
    tokenizer does not take it for a special one.

    Raises:
        KeyError: there is none; verl itself does not pass the prompt.
    """
    found = (extra_info or {}).get(key)
    if found is None:
        raise KeyError(
            f"`extra_info` has no {key!r}, and verl passes the prompt nowhere else: add it to "
            f"`extra_info` of the data set, or name its key; there are {sorted(extra_info or {})}"
        )
    turns = [{"role": "user", "content": found}] if isinstance(found, str) else found
    prompt = tuple(_message(cast(Mapping[str, Any], turn)) for turn in turns)
    return ScoreRequest(
        items=(Chat(prompt, (without_end(solution, ENDS),), label),),
        models=(model,),
        details=frozenset({"objectives"}),
    )


def verl_score(answer: ScoreAnswer) -> dict[str, float]:
    """Returns `score` and the objectives beside it, which verl logs.

    Raises:
        RuntimeError: there is no score; verl has no missing one, and 0 would be a lie.
    """
    score = answer.models[0].items[0][0]
    if score.score is None:
        raise RuntimeError(f"{answer.models[0].model!r} gave no score: {score.error}")
    return {**score.details.objectives, "score": score.score}

"""Reward functions of TRL and ms-swift, as our requests, and answers as they read them.

TRL (`GRPOTrainer(reward_funcs=...)`): keywords `prompts` and `completions`, as text or as messages,
and every other column of the data set as a list; a list of float or None, where None is left out of
the weighted sum. ms-swift: completions as text, and `messages` with the whole conversation.

A completion that cannot be read (it ends with a tool's call, holds an image) has no score of its
own and takes none from the others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import TypeAdapter

from panoply.wire.messages import DialogTurns, read_turns
from panoply.wire.request import Chat, RenderedText, Score, ScoreAnswer, ScoreRequest
from panoply.wire.reward_functions import CoroutineFunction, RewardFunction
from panoply.wire.values import json_value

if TYPE_CHECKING:
    from panoply.wire.client import AsyncClient, Client

LOG = logging.getLogger(__name__)
Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A prompt or a completion: text through a template already, or messages."""
Rewards: TypeAlias = list[float | None]
_DIALOG: TypeAdapter[Any] = TypeAdapter(DialogTurns)


@dataclass(eq=False)
class TrlReward(RewardFunction):
    """Reward function for TRL and ms-swift, which log it under the model's name."""

    client: Client
    label_column: str | None = None

    def __call__(
        self,
        completions: Sequence[Text],
        prompts: Sequence[Text] | None = None,
        **columns: Any,
    ) -> Rewards:
        """Returns a score for each completion, None where there is none.

        Raises:
            RewardServerError, TimeoutError: as `Client.score`.
            KeyError, TypeError: as `trl_batch`.
        """
        batch = trl_batch(self.model, prompts, completions, columns, self.label_column)
        return batch.rewards(self.client.score(batch.request), columns.get("log_metric"))


@dataclass(eq=False)
class AsyncTrlReward(CoroutineFunction):
    """As `TrlReward`, for trainers that await it beside others."""

    client: AsyncClient
    label_column: str | None = None

    async def __call__(
        self,
        completions: Sequence[Text],
        prompts: Sequence[Text] | None = None,
        **columns: Any,
    ) -> Rewards:
        """As `TrlReward.__call__`."""
        batch = trl_batch(self.model, prompts, completions, columns, self.label_column)
        return batch.rewards(await self.client.score(batch.request), columns.get("log_metric"))


@dataclass(frozen=True, slots=True)
class TrlBatch:
    """Completions grouped by prompt, and the place of each in the request."""

    request: ScoreRequest
    places: tuple[tuple[int, int] | str, ...]
    """Item and response of each completion; or the reason why it cannot be scored."""

    def rewards(
        self, answer: ScoreAnswer, log_metric: Callable[[str, float], None] | None = None
    ) -> Rewards:
        """Returns the one model's score of each completion, None where there is none.

        The number of missing ones is logged as a warning, with the reason of the first.

        Args:
            answer: the answer to the batch's request.
            log_metric: TRL's logger, which gets the share of completions without a score, and of
                those whose text the model's limits cut.
        """
        model = answer.models[0]
        scores = [
            Score(error=place) if isinstance(place, str) else model.items[place[0]][place[1]]
            for place in self.places
        ]
        missing = [score.error for score in scores if score.score is None]
        if missing:
            LOG.warning(
                "%r: %d of %d completions have no score; the first: %s",
                model.model,
                len(missing),
                len(scores),
                missing[0],
            )
        if log_metric is not None and scores:
            num_cut = sum(score.num_cut > 0 for score in scores)
            log_metric(f"rewards/{model.model}/missing", len(missing) / len(scores))
            log_metric(f"rewards/{model.model}/truncated", num_cut / len(scores))
        return [score.score for score in scores]


def trl_batch(
    model: str,
    prompts: Sequence[Text] | None,
    completions: Sequence[Text],
    columns: Mapping[str, Any],
    label_column: str | None,
) -> TrlBatch:
    """Returns a batch in which the samples of one prompt meet, as one prefix for the server.

    Args:
        model: name of the reward model.
        prompts: prompt of each completion; None: they are in the column `messages`, as ms-swift has
            them, or nowhere, and responses go alone.
        completions: texts or messages to score.
        columns: columns of the data set.
        label_column: name of the column that functions compare with.

    Raises:
        KeyError: there is no such column.
        TypeError: a prompt is text and its completion messages, or a label is no JSON value.
    """
    if label_column is not None and label_column not in columns:
        raise KeyError(f"no column {label_column!r} of labels; there are {sorted(columns)}")
    labels = [None] * len(completions) if label_column is None else columns[label_column]
    if prompts is None:
        prompts = _prompts_of_messages(columns, completions)
    grouped: dict[str, tuple[Chat | RenderedText, list[str]]] = {}
    placed: list[tuple[str, int] | str] = []
    for prompt, completion, label in zip(prompts, completions, labels, strict=True):
        try:
            item, response = _split(prompt, completion)
            item = replace(item, label=json_value(label, f"column {label_column!r}"))
            key = json.dumps([type(item).__name__, item.prompt, item.label], ensure_ascii=False)
            f"{key}{response}".encode()  # half a character fails here, and not the whole request
        except ValueError as error:
            placed.append(str(error))
            continue
        responses = grouped.setdefault(key, (item, []))[1]
        placed.append((key, len(responses)))
        responses.append(response)
    order = {key: i for i, key in enumerate(grouped)}
    items = tuple(replace(item, responses=tuple(rs)) for item, rs in grouped.values())
    places: list[tuple[int, int] | str] = []
    for place in placed:
        places.append(place if isinstance(place, str) else (order[place[0]], place[1]))
    return TrlBatch(ScoreRequest(items=items, models=(model,)), tuple(places))


def _prompts_of_messages(columns: Mapping[str, Any], completions: Sequence[Text]) -> Sequence[Text]:
    """Returns the turns before each completion, from the column `messages`; none without it."""
    if "messages" not in columns:
        return [()] * len(completions)
    prompts: list[Text] = []
    for turns, completion in zip(columns["messages"], completions, strict=True):
        last = turns[-1] if turns else {}
        is_completion = last.get("role") == "assistant" and last.get("content") == completion
        prompts.append(turns[:-1] if is_completion else turns or ())
    return prompts


def _split(prompt: Text, completion: Text) -> tuple[Chat | RenderedText, str]:
    """Returns the prompt as an item without responses, and the response.

    Raises:
        TypeError: the prompt is text and the completion messages.
        ValueError: there is nothing to score, or it cannot be read.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return RenderedText(prompt, ()), completion
    reply_turns = _turns("completion", completion)
    if not reply_turns:
        raise ValueError("the completion has no turn")
    if isinstance(prompt, str):
        raise TypeError(
            "prompt and completion must both be text or both messages, got "
            f"{type(prompt).__name__} and {type(completion).__name__}"
        )
    prompt_turns = _turns("prompt", prompt)
    if not prompt_turns and isinstance(completion, str):
        return Chat((), ()), completion
    *before, reply = read_turns(_DIALOG, [*prompt_turns, *reply_turns])
    return Chat(tuple(before), ()), reply["content"]


def _turns(what: str, turns: Any) -> list[Any]:
    """Returns messages as a list: text is one turn, and None is none.

    Raises:
        ValueError: they are neither text nor messages.
    """
    if isinstance(turns, str):
        return [{"role": "assistant", "content": turns}]
    try:
        return [] if turns is None else list(turns)
    except TypeError as error:
        raise ValueError(f"a {what} is text or messages, got {turns!r:.100}") from error

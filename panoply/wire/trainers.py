"""What trainers call a reward function with, as our requests, and answers as they read them.

TRL (`GRPOTrainer(reward_funcs=...)`): keywords `prompts` and `completions`, as text or as messages,
and every other column of the data set as a list; a list of float or None, where None is left out of
the weighted sum. ms-swift: completions as text, and `messages` with the whole conversation. verl
(`reward.custom_reward_function`): one `solution_str` with its `extra_info`; a number, or a dict
with the key `score`.

A completion that cannot be read (it ends with a tool's call, holds an image) has no score of its
own and takes none from the others. What a policy thought (`reasoning_content`, `thinking`) is not
its reply: the content is scored, and the thoughts are not sent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from pydantic import TypeAdapter, ValidationError

from panoply.wire.chat_templates import ENDS, without_end
from panoply.wire.dialect import explain
from panoply.wire.messages import Conversation, Prompt, messages
from panoply.wire.request import Chat, Message, RenderedText, Score, ScoreAnswer, ScoreRequest
from panoply.wire.values import json_value

LOG = logging.getLogger(__name__)
Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A prompt or a completion: text through a template already, or messages."""
THOUGHTS = frozenset({"reasoning", "reasoning_content", "thinking"})
"""Keys of a message that hold what a policy thought before its reply."""
PROMPT_KEY = "prompt"
"""Of verl's `extra_info`, where no other is named."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Completions grouped by prompt, and where each of them went."""

    request: ScoreRequest
    places: tuple[tuple[int, int] | str, ...]
    """Item and response of each completion; where there is nothing to score, why."""

    def rewards(
        self, answer: ScoreAnswer, log_metric: Callable[[str, float], None] | None = None
    ) -> list[float | None]:
        """Returns the one model's score of each completion, None where there is none.

        How many are missing is logged as a warning, with the reason of the first.

        Args:
            answer: to the batch's request.
            log_metric: TRL's; told the share of completions that have no score, and of those whose
                text the model's limits cut.
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
) -> Batch:
    """Returns a batch in which the samples of one prompt meet, as one prefix for the server.

    Args:
        model: name of the reward model.
        prompts: of each completion; None: they are in the column `messages`, as ms-swift has them,
            or nowhere, and responses go alone.
        completions: to be scored.
        columns: of the data set.
        label_column: the one that function arms compare with.

    Raises:
        KeyError: there is no such column.
        TypeError: a prompt is text and its completion messages, or a label is no JSON value.
    """
    if label_column is not None and label_column not in columns:
        raise KeyError(f"no column {label_column!r} of labels; there are {sorted(columns)}")
    labels = [None] * len(completions) if label_column is None else columns[label_column]
    opened = _opened(columns, completions) if prompts is None else prompts
    grouped: dict[str, tuple[Chat | RenderedText, list[str]]] = {}
    placed: list[tuple[str, int] | str] = []
    for prompt, completion, label in zip(opened, completions, labels, strict=True):
        try:
            item, response = _split(prompt, completion)
            item = replace(item, label=json_value(label, f"column {label_column!r}"))
            key = json.dumps([type(item).__name__, item.prompt, item.label], ensure_ascii=False)
            f"{key}{response}".encode()  # half a character ends here, and not the whole request
        except ValueError as error:
            placed.append(str(error))
            continue
        responses = grouped.setdefault(key, (item, []))[1]
        placed.append((key, len(responses)))
        responses.append(response)
    order = {key: i for i, key in enumerate(grouped)}
    items = tuple(replace(item, responses=tuple(rs)) for item, rs in grouped.values())
    places = tuple(
        place if isinstance(place, str) else (order[place[0]], place[1]) for place in placed
    )
    return Batch(ScoreRequest(items=items, models=(model,)), places)


def _opened(columns: Mapping[str, Any], completions: Sequence[Text]) -> Sequence[Text]:
    """Returns the turns before each completion, from the column `messages`; none without it."""
    if "messages" not in columns:
        return [()] * len(completions)
    opened: list[Text] = []
    for turns, completion in zip(columns["messages"], completions, strict=True):
        last = turns[-1] if turns else {}
        is_completion = last.get("role") == "assistant" and last.get("content") == completion
        opened.append(turns[:-1] if is_completion else turns or ())
    return opened


def _split(prompt: Text, completion: Text) -> tuple[Chat | RenderedText, str]:
    """Returns the prompt as an item without responses, and the response.

    Raises:
        TypeError: the prompt is text and the completion messages.
        ValueError: there is nothing to score, or it cannot be read.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return RenderedText(prompt, ()), completion
    replied = _listed("completion", completion)
    if not replied:
        raise ValueError("the completion has no turn")
    if isinstance(prompt, str):
        raise TypeError(
            "prompt and completion must both be text or both messages, got "
            f"{type(prompt).__name__} and {type(completion).__name__}"
        )
    opened = _listed("prompt", prompt)
    if not opened and isinstance(completion, str):
        return Chat((), ()), completion
    *before, reply = _read(_CONVERSATION, [*opened, *replied])
    return Chat(tuple(before), ()), reply["content"]


def _listed(what: str, turns: Any) -> list[Any]:
    """Returns turns, of which text is one and None is none.

    Raises:
        ValueError: they are neither text nor messages.
    """
    if isinstance(turns, str):
        return [{"role": "assistant", "content": turns}]
    try:
        return [] if turns is None else list(turns)
    except TypeError as error:
        raise ValueError(f"a {what} is text or messages, got {turns!r:.100}") from error


def _read(kind: TypeAdapter[Any], turns: Sequence[Any]) -> tuple[Message, ...]:
    """Returns messages as the server reads them, without what the policy thought.

    Raises:
        ValueError: a turn cannot be read, or they do not end as they should.
    """
    try:
        return messages(kind.validate_python(list(map(_without_thoughts, turns))))
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def _without_thoughts(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    pairs = cast(Mapping[Any, Any], turn).items()
    return {key: value for key, value in pairs if key not in THOUGHTS}


_CONVERSATION: TypeAdapter[Any] = TypeAdapter(Conversation)
_PROMPT: TypeAdapter[Any] = TypeAdapter(Prompt)


def verl_request(
    model: str,
    solution: str,
    label: Any,
    extra_info: Mapping[str, Any] | None,
    prompt_key: str | None,
) -> ScoreRequest:
    """Returns one response to the prompt that stands in `extra_info`.

    A prompt that is text is a user's turn here: what stands in `extra_info` went through no
    template. The solution loses the token that ended it, which verl leaves where the policy's
    tokenizer does not take it for a special one.

    Args:
        model: name of the reward model.
        solution: the response.
        label: what function arms compare with.
        extra_info: of the sample.
        prompt_key: of the prompt in it; None: "prompt", and without it the response goes alone,
            which functions score and models refuse.

    Raises:
        KeyError: it has no such key; verl itself does not pass the prompt.
        TypeError, ValueError: the prompt or the label cannot be read.
    """
    columns = extra_info or {}
    key = PROMPT_KEY if prompt_key is None else prompt_key
    stored = json_value(columns.get(key), f"`extra_info[{key!r}]`")
    if stored is None and prompt_key is not None:
        raise KeyError(
            f"`extra_info` has no {key!r}, and verl passes the prompt nowhere else: add it to "
            f"`extra_info` of the data set, or name its key; there are {sorted(columns)}"
        )
    prompt: tuple[Message, ...] = ()
    if isinstance(stored, str):
        prompt = ({"role": "user", "content": stored},)
    elif stored is not None:
        turns = stored if isinstance(stored, list) else [stored]
        prompt = _read(_PROMPT, turns)
    return ScoreRequest(
        items=(Chat(prompt, (without_end(solution, ENDS),), json_value(label, "`ground_truth`")),),
        models=(model,),
        details=frozenset({"objectives"}),
    )


def verl_score(answer: ScoreAnswer, request: ScoreRequest) -> dict[str, float]:
    """Returns `score`, and what verl logs: the objectives, and 1 as `truncated` for a cut text.

    Raises:
        RuntimeError: there is no score; verl has no missing one, and 0 would be a lie.
    """
    score = answer.models[0].items[0][0]
    if score.score is None:
        item = request.items[0]
        alone = isinstance(item, Chat) and not item.prompt
        why = f" (`extra_info` has no {PROMPT_KEY!r}: name its key as `prompt_key`)" * alone
        raise RuntimeError(f"{answer.models[0].model!r} gave no score: {score.error}{why}")
    return {
        **score.details.objectives,
        "truncated": float(score.num_cut > 0),
        "score": score.score,
    }

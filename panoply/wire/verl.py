"""verl's `compute_score` as our request, and the answer as verl reads it.

One `solution_str` with its `extra_info` in; a dict with the key `score` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from panoply.wire.chat_templates import ENDS, without_end
from panoply.wire.messages import PromptTurns, read_turns
from panoply.wire.request import Chat, Message, ScoreAnswer, ScoreRequest
from panoply.wire.reward_functions import CoroutineFunction, RewardFunction
from panoply.wire.values import json_value

if TYPE_CHECKING:
    from panoply.wire.client import AsyncClient, Client

PROMPT_KEY = "prompt"
"""Key of the prompt in `extra_info`, where no other is named."""
_PROMPT: TypeAdapter[Any] = TypeAdapter(PromptTurns)


@dataclass(eq=False)
class VerlScore(RewardFunction):
    """verl's `compute_score`."""

    client: Client
    prompt_key: str | None = None

    def __call__(
        self,
        data_source: Any,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float]:
        """Returns the score of a response, and what verl logs beside it.

        Raises:
            RewardServerError, TimeoutError: as `Client.score`.
            KeyError, TypeError, ValueError: as `verl_request`.
            RuntimeError: there is no score.
        """
        request = verl_request(self.model, solution_str, ground_truth, extra_info, self.prompt_key)
        return verl_score(self.client.score(request), request)


@dataclass(eq=False)
class AsyncVerlScore(CoroutineFunction):
    """As `VerlScore`, for the reward loop that awaits it."""

    client: AsyncClient
    prompt_key: str | None = None

    async def __call__(
        self,
        data_source: Any,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float]:
        """As `VerlScore.__call__`."""
        request = verl_request(self.model, solution_str, ground_truth, extra_info, self.prompt_key)
        return verl_score(await self.client.score(request), request)


def verl_request(
    model: str,
    solution: str,
    label: Any,
    extra_info: Mapping[str, Any] | None,
    prompt_key: str | None,
) -> ScoreRequest:
    """Returns a request for one response to the prompt in `extra_info`.

    A prompt that is text is a user's turn here: what stands in `extra_info` went through no
    template. The solution loses the token that ended it, which verl leaves where the policy's
    tokenizer does not take it for a special one.

    Args:
        model: name of the reward model.
        solution: the response.
        label: value that functions compare with.
        extra_info: verl's dictionary of the sample.
        prompt_key: key of the prompt in it; None: "prompt", and without it the response goes alone,
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
        prompt = read_turns(_PROMPT, turns)
    response = without_end(solution, ENDS)
    item = Chat(prompt, (response,), json_value(label, "`ground_truth`"))
    return ScoreRequest(items=(item,), models=(model,), details=frozenset({"objectives"}))


def verl_score(answer: ScoreAnswer, request: ScoreRequest) -> dict[str, float]:
    """Returns `score`, and for verl's log the objectives, and `truncated`: 1 for a cut text.

    Raises:
        RuntimeError: there is no score; verl has no missing one, and 0 would be a lie.
    """
    score = answer.models[0].items[0][0]
    if score.score is None:
        item = request.items[0]
        hint = ""
        if isinstance(item, Chat) and not item.prompt:
            hint = f" (`extra_info` has no {PROMPT_KEY!r}: name its key as `prompt_key`)"
        raise RuntimeError(f"{answer.models[0].model!r} gave no score: {score.error}{hint}")
    return {
        **score.details.objectives,
        "truncated": float(score.num_cut > 0),
        "score": score.score,
    }

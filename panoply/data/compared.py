"""Two responses to a prompt with a verdict on them, as pairs.

A tie is counted and left out; the strength of a verdict, where it has one, is the pair's margin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

from panoply.data.dialogue import ROW_COLUMNS, PromptColumn, pair_of, prompt_column
from panoply.data.parse import as_messages, number
from panoply.data.quarantine import BadRow
from panoply.data.rows import FileLayout, RawPair, Row
from panoply.data.schema import Message


@dataclass(frozen=True)
class TwoResponses:
    """Layout of two responses side by side and a verdict on them."""

    name: str
    first: str
    second: str
    verdict: tuple[str, ...]
    """Columns of the verdict."""
    prefers_first: Callable[[Row], float | None]
    """Positive where the first response is preferred, negative where the second one is, 0 for a
    tie; the size is the margin. None is no verdict."""
    has_margin: bool = False
    """Whether the size of a verdict means something."""


def _signed(row: Row, column: str, sign: int) -> float | None:
    strength = number(row.get(column))
    return None if strength is None else sign * strength


def _difference(row: Row, first: str, second: str) -> float | None:
    scores = number(row.get(first)), number(row.get(second))
    return None if scores[0] is None or scores[1] is None else scores[0] - scores[1]


def _coded(row: Row, column: str, codes: Mapping[float, float]) -> float | None:
    code = number(row.get(column))
    if code is not None and code not in codes:
        raise BadRow(f"{column!r} is none of {sorted(codes)}")
    return None if code is None else codes[code]


def _halfway(row: Row) -> float | None:
    """Reads AlpacaEval's preference: 1 is the first, 2 the second, 1.5 a tie."""
    preference = number(row.get("preference"))
    if preference is not None and not 1 <= preference <= 2:
        raise BadRow("'preference' is not between 1 and 2")
    return None if preference is None else 1.5 - preference


def _winner(row: Row) -> float | None:
    """Reads a name: model_a, response_a, a; the same with b; tie, tie (bothbad), both_bad."""
    name = row.get("winner")
    if name is None or name == "":
        return None
    word = str(name).strip().lower().removeprefix("model_").removeprefix("response_")
    if word.startswith(("tie", "both")):
        return 0.0
    if word not in ("a", "b"):
        raise BadRow("'winner' is neither model_a, model_b nor tie")
    return 1.0 if word == "a" else -1.0


def _one_hot_winner(row: Row) -> float | None:
    marks = [number(row.get(f"winner_{name}")) for name in ("model_a", "model_b", "tie")]
    if marks.count(1.0) != 1:
        raise BadRow("of winner_model_a, winner_model_b and winner_tie not exactly one is 1")
    return 1.0 * (marks[0] == 1) - 1.0 * (marks[1] == 1)


def _first(_: Row) -> float:
    return 1.0


SHP_LABELS = {1.0: 1.0, 0.0: -1.0}
PKU_IDS = {0.0: 1.0, 1.0: -1.0}
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")
TWO_RESPONSES = (
    TwoResponses(
        "HelpSteer3-Preference", "response1", "response2", ("overall_preference",),
        partial(_signed, column="overall_preference", sign=-1), has_margin=True,
    ),
    TwoResponses(
        "HelpSteer2-Preference", "response_1", "response_2", ("preference_strength",),
        partial(_signed, column="preference_strength", sign=-1), has_margin=True,
    ),
    TwoResponses(
        "SHP", "human_ref_A", "human_ref_B", ("labels",),
        partial(_coded, column="labels", codes=SHP_LABELS),
    ),
    TwoResponses(
        "PKU-SafeRLHF", "response_0", "response_1", ("better_response_id",),
        partial(_coded, column="better_response_id", codes=PKU_IDS),
    ),
    TwoResponses("Chatbot Arena", "conversation_a", "conversation_b", ("winner",), _winner),
    TwoResponses("Arena", "response_a", "response_b", ("winner",), _winner),
    TwoResponses("LMSYS 55k", "response_a", "response_b", ONE_HOT, _one_hot_winner),
    TwoResponses("StackLLaMA", "response_j", "response_k", (), _first),
    TwoResponses(
        "WebGPT", "answer_0", "answer_1", ("score_0", "score_1"),
        partial(_difference, first="score_0", second="score_1"), has_margin=True,
    ),
    TwoResponses("AlpacaFarm", "output_1", "output_2", ("preference",), _halfway),
)  # fmt: skip
"""Layouts of two responses; the first one whose columns a file has counts."""


def two_responses_layout(columns: Collection[str]) -> FileLayout[RawPair] | None:
    """Recognizes a layout of two responses; None where there is none."""
    for layout in TWO_RESPONSES:
        names = {layout.first, layout.second, *layout.verdict}
        if not names <= set(columns):
            continue
        # SHP's prompt, a post, is what `history` is called elsewhere.
        prompt = POST if layout.name == "SHP" else prompt_column(columns)
        is_dialogue = layout.first.startswith("conversation")
        if prompt is None and not is_dialogue:
            continue
        adapt = partial(_two_responses, layout=layout, prompt=None if is_dialogue else prompt)
        reads = ROW_COLUMNS.union(names, (prompt.name,) if prompt else ())
        return FileLayout(layout.name, adapt, reads, has_source=True)
    return None


def _read_post(row: Row) -> list[Message]:
    return as_messages(row.get("history"))


POST = PromptColumn("history", _read_post)


def _two_responses(row: Row, layout: TwoResponses, prompt: PromptColumn | None) -> list[RawPair]:
    verdict = layout.prefers_first(row)
    if verdict is None:
        raise BadRow("no verdict")
    responses = row.get(layout.first), row.get(layout.second)
    turns = prompt.read(row) if prompt else None
    if layout.verdict == ONE_HOT:
        responses = tuple(_joined(row.get("prompt"), response) for response in responses)
        turns = None
    chosen, rejected = responses if verdict >= 0 else responses[::-1]
    if prompt is POST:  # in any other layout `history` is what stands before the prompt
        row = {name: value for name, value in row.items() if name != POST.name}
    margin = abs(verdict) if layout.has_margin else None
    return [pair_of(row, turns, chosen, rejected, margin, is_tie=verdict == 0)]


def _joined(prompts: object, replies: object) -> list[Message]:
    """Returns the dialogue of a user's texts and the replies to them, both lists as JSON text.

    Raises:
        BadRow: they are no such lists of the same length.
    """
    turns = _texts(prompts), _texts(replies)
    if len(turns[0]) != len(turns[1]):
        raise BadRow("as many replies as prompts are needed")
    dialogue: list[Message] = []
    for text, reply in zip(*turns, strict=True):
        dialogue += ({"role": "user", "content": text}, {"role": "assistant", "content": reply})
    return dialogue


def _texts(value: object) -> list[str]:
    try:
        texts = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadRow("prompt or response is no JSON list of texts") from error
    if not isinstance(texts, list):
        raise BadRow("prompt or response is no JSON list of texts")
    return cast("list[str]", texts)

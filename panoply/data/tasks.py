"""Prompts for a policy, with labels for verifiers, in an order that depends on a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from panoply.data.data_file import Unreadable
from panoply.data.ingest import Refusal
from panoply.data.layouts import prompt_layout
from panoply.data.parse import source_of
from panoply.data.quarantine import BadRow
from panoply.data.read import Input, open_input
from panoply.data.rows import FileLayout, RawPrompt, Row
from panoply.data.schema import Prompt, prompt_id, split_key, uniform
from panoply.data.validate import clean_prompt
from panoply.synthetic.verifiable import verifiable_prompts


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt to answer."""

    prompt_id: str
    prompt: Prompt
    label: JsonValue = None
    """Label for the verifier; None where there is none."""
    source: str = ""


def synthetic_prompts(num: int, seed: int) -> list[Task]:
    """Returns prompts of `panoply.synthetic.verifiable`, whose domains are their sources."""
    prompts = verifiable_prompts(num, seed)
    return [Task(p.prompt_id, p.prompt, p.label, p.domain) for p in prompts]


def read_tasks(data: Input | str, refusal: Refusal | None = None) -> list[Task]:
    """Returns the distinct prompts of an input, or of a path, in a layout of `prompt_layout`.

    Args:
        data: the input, or its path.
        refusal: of the policy's template.

    Raises:
        ValueError, FileNotFoundError: see `open_input`; or a row has no prompt that can be read
            and written, and the message names file and row.
    """
    origin = data if isinstance(data, Input) else Input(data)
    tasks: dict[str, Task] = {}
    for opened in open_input(origin):
        layout = prompt_layout(opened.columns)
        name = origin.name or ""
        for number, row in enumerate(opened.rows(None), 1):
            try:
                task = _task(row, layout, name, opened.name or "")
                if refusal and (reason := refusal(task.prompt)):
                    raise BadRow(reason)
            except BadRow as error:
                raise ValueError(
                    f"{opened.label}, row {number}: {error}; mend the row or take it out"
                ) from error
            tasks.setdefault(split_key(task.prompt), task)
    return list(tasks.values())


def _task(row: Row | Unreadable, layout: FileLayout[RawPrompt], name: str, file_name: str) -> Task:
    """Returns a row's prompt, of the source `name`, else of its own, else of its file's name."""
    if isinstance(row, Unreadable):
        raise BadRow(row.reason)
    (raw,) = layout.adapt(row)
    prompt = clean_prompt(raw.prompt)
    label = cast(JsonValue, raw.label)
    return Task(prompt_id(prompt), prompt, label, name or source_of(raw.source) or file_name)


def split_held_out(
    tasks: Sequence[Task], num_held_out: int, seed: int
) -> tuple[list[Task], list[Task]]:
    """Returns prompts to train on and prompts held out, by a hash of each: order does not matter.

    Raises:
        ValueError: no prompt is left to train on.
    """
    if num_held_out >= len(tasks):
        raise ValueError(
            f"`prompts.num_held_out` is {num_held_out}, but there are {len(tasks)} prompts"
        )
    draws = {task.prompt_id: uniform(seed, "held-out", split_key(task.prompt)) for task in tasks}
    ordered = sorted(tasks, key=lambda task: (draws[task.prompt_id], task.prompt_id))
    return ordered[num_held_out:], ordered[:num_held_out]


def rounds_of(tasks: Sequence[Task], size: int, num: int, seed: int) -> Iterator[list[Task]]:
    """Yields the prompts of each round: passes over all of them, each in an order of its own.

    Prompts left at the end of a pass that do not fill a round wait for the next pass.

    Raises:
        ValueError: there are fewer prompts than a round has.
    """
    per_pass = len(tasks) // size
    if not per_pass:
        raise ValueError(f"`prompts_per_round` is {size}, but {len(tasks)} prompts are trained on")
    for round in range(num):
        number, place = divmod(round, per_pass)
        draws = {task.prompt_id: uniform(seed, f"pass {number}", task.prompt_id) for task in tasks}
        ordered = sorted(tasks, key=lambda task: (draws[task.prompt_id], task.prompt_id))
        yield ordered[place * size : (place + 1) * size]

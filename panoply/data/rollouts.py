"""Rollouts of a training run: groups of responses to one prompt, and the rewards that they had.

Rows with one prompt and one training step (`step`, where there is one) are a group, in the order of
the file. A row that cannot be read goes to quarantine with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from panoply.data.data_file import Unreadable
from panoply.data.quarantine import BadRow, Quarantine
from panoply.data.read import Input, open_inputs
from panoply.data.rollout_layouts import Adapt, Sample, rollout_layout
from panoply.data.rows import Row
from panoply.data.schema import digest, prompt_id
from panoply.data.validate import check_text
from panoply.wire.request import Chat


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """The responses to a prompt at one step, which a trainer compares with each other."""

    samples: tuple[Sample, ...]

    @property
    def chat(self) -> Chat:
        """The prompt and its responses, as scorers take them."""
        first = self.samples[0]
        return Chat(tuple(first.prompt), tuple(s.response for s in self.samples), first.label)

    @property
    def step(self) -> str:
        """Training step; empty where the file has none."""
        return self.samples[0].step

    @property
    def reward_n(self) -> list[float]:
        """Rewards that the responses had, NaN where there is none."""
        return [_or_nan(sample.reward) for sample in self.samples]

    @property
    def parts(self) -> dict[str, list[float]]:
        """Parts of the rewards by name, NaN where a response has none."""
        by_name: dict[str, list[float]] = {}
        for place, sample in enumerate(self.samples):
            for name, value in sample.parts.items():
                missing = [float("nan")] * len(self.samples)
                by_name.setdefault(name, missing)[place] = _or_nan(value)
        return by_name


def item_id(chat: Chat) -> str:
    """Returns the id of a prompt with all of its responses and its label, by their content.

    A scorer that compares a prompt's responses may give one of them another score among others.
    """
    return digest("item", prompt_id(chat.prompt), _as_json(chat.label), *chat.responses)


def _as_json(label: JsonValue) -> str:
    return json.dumps(label, sort_keys=True, default=str)


def read_rollouts_of(
    files: Sequence[str], columns: Mapping[str, str], quarantine: Path, max_share: float
) -> list[SampleGroup]:
    """Returns the groups of some files, in the order of their first rows.

    Args:
        files: paths, patterns, URIs or hub names.
        columns: columns of the files by the names that a layout has for them.
        quarantine: file of the bad rows.
        max_share: largest share of bad rows.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or in no known layout, or too many
            rows are bad.
    """
    opened_files = open_inputs([Input(file, columns=columns) for file in files])
    layouts = [rollout_layout(opened.columns) for opened in opened_files]
    groups: dict[tuple[str, ...], list[Sample]] = {}
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    with Quarantine(quarantine) as bad:
        for opened, adapt in zip(opened_files, layouts, strict=True):
            for place, row in enumerate(opened.rows(None), 1):
                try:
                    samples = _samples(row, adapt)
                except BadRow as error:
                    content = row.text if isinstance(row, Unreadable) else row
                    bad.reject(opened.label, place, str(error), content)
                    continue
                bad.num_good += 1
                for sample in samples:
                    key = (sample.step, prompt_id(sample.prompt), _as_json(sample.label))
                    groups.setdefault(key, []).append(sample)
        bad.check_share(max_share)
    if not groups:
        raise ValueError(f"no row of {', '.join(files)} is a rollout: see {str(quarantine)!r}")
    return [SampleGroup(tuple(samples)) for samples in groups.values()]


def _samples(row: Row | Unreadable, adapt: Adapt) -> list[Sample]:
    if isinstance(row, Unreadable):
        raise BadRow(row.reason)
    samples = adapt(row)
    for sample in samples:
        check_text(sample.response)
    return samples


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value

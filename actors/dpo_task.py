"""What workers of policy training are told of a round, and what the round leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.config.policy import PolicyConfig
from panoply.config.preference import TrainedBackboneConfig
from panoply.data.schema import Prompt

DONE, STOPPED, PROGRESS = "done.json", "stopped.json", "progress.json"
ADAPTER, PAIRS, PROBE = "adapter", "pairs.parquet", "probe.parquet"


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """A prompt, responses to it, and which of them are preferred to which.

    Example: `RankedPrompt("9f3a", prompt, ("Yes.", "No"), (True, False), ((0, 1),))`.
    """

    prompt_id: str
    prompt: Prompt
    responses: tuple[str, ...]
    ended: tuple[bool, ...]
    """Whether the policy ended each response. One that a limit cut off has no end to be learned."""
    pairs: tuple[tuple[int, int], ...]
    """Numbers of the chosen and the rejected response, as `panoply.laser.pairs` gives them."""
    weight: float = 1.0
    """Of each of the pairs in the loss."""
    source: str = ""
    """What the results on a probe are told by."""

    def __post_init__(self) -> None:
        if len(self.ended) != len(self.responses):
            raise ValueError(
                f"prompt {self.prompt_id!r} has {len(self.responses)} responses and "
                f"{len(self.ended)} values of `ended`"
            )
        numbers = {i for pair in self.pairs for i in pair}
        if not numbers or min(numbers) < 0 or max(numbers) >= len(self.responses):
            raise ValueError(
                f"prompt {self.prompt_id!r} needs at least one pair of its responses 0.."
                f"{len(self.responses) - 1}, got {self.pairs!r}: leave prompts without pairs out"
            )
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"prompt {self.prompt_id!r}: `weight` must be positive, got {self.weight!r}"
            )


@dataclass(frozen=True, slots=True)
class PolicyTask:
    """One round of training a policy."""

    backbone: TrainedBackboneConfig
    """The policy without adapters, and the adapters that are trained."""
    config: PolicyConfig
    prompts: tuple[RankedPrompt, ...]
    """In an order that does not depend on when they came."""
    seed: int
    round: int
    start: str
    """Folder of the adapters that training goes on from; empty: new ones."""
    reference: str
    """Folder of the adapters of DPO's reference; empty: the model without any."""
    folder: str
    """Where checkpoints and results go, on storage that all workers share."""
    threads: int = 0
    """Of each worker; 0 leaves torch's own number."""
    probe: tuple[RankedPrompt, ...] = ()
    """Pairs that are trusted: not trained on, only looked at before the first and after the last
    step."""


@dataclass(frozen=True, slots=True)
class PolicyRound:
    """What a round left in its folder."""

    folder: Path
    pairs: pa.Table
    """One row a pair: `prompt_id`; `chosen` and `rejected`, numbers of the responses; `weight`;
    `loss` and its parts `dpo` and `nll`, `chosen_log_prob` and `rejected_log_prob`, before the
    first step, and the same with `_after`, after the last; `reference`, log-ratio of the reference;
    `kl` from the model without adapters (`panoply.preference.policy_outcome`), before the first
    step."""
    probe: pa.Table
    """One row a trusted pair: `prompt_id`, `source`, and `margin` before the first and
    `margin_after` after the last step (`panoply.preference.policy_outcome.margin_per_token`)."""
    history: list[dict[str, Any]]
    """One entry a step: `step`, `loss`, `gradient_norm`, `tokens`, `seconds`."""

    @property
    def adapter(self) -> Path:
        """Folder of the adapters that came out."""
        return self.folder / ADAPTER

    @classmethod
    def read(cls, folder: Path) -> PolicyRound:
        """Reads a finished round."""
        history = json.loads((folder / DONE).read_text())["history"]
        pairs, probe = (pq.read_table(folder / name) for name in (PAIRS, PROBE))
        return cls(folder, pairs, probe, history)

    def probe_gain(self, source: str | None = None) -> float:
        """Returns by how much the mean margin on trusted pairs rose; NaN where there are none.

        Args:
            source: only its pairs count, where it has any; None: all count.
        """
        before, after, sources = (
            np.array(self.probe[name].to_pylist()) for name in ("margin", "margin_after", "source")
        )
        own = sources == source
        gain = (after - before)[own] if own.any() else after - before
        return float(gain.mean()) if len(gain) else float("nan")

    def by_prompt(self, column: str) -> dict[str, float]:
        """Returns the mean of a column over the pairs of each prompt."""
        sums: dict[str, list[float]] = {}
        names, values = (self.pairs[name].to_pylist() for name in ("prompt_id", column))
        for name, value in zip(names, values, strict=True):
            sums.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in sums.items()}

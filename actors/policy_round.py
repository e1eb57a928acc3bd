"""A round of policy training: its task, and the files that it leaves for the next one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.training_loop import DONE
from panoply.config.policy import PolicyConfig
from panoply.config.preference import TrainedBackboneConfig
from panoply.data.schema import Prompt
from panoply.files import read_json, reading
from panoply.preference.checkpoint import load_tensors
from panoply.seal import COPY_AGAIN, check_seal

ADAPTER, PAIRS, GOLD_PAIRS = "adapter", "pairs.parquet", "gold_pairs.parquet"
START_LOGPS, OPTIMIZER, OPTIMIZER_FILE = "start_logps.npz", "optimizer", "optimizer.pt"
ROUNDS_AGAIN = (
    f"delete {DONE} of this round and of all rounds before it, and run the same command again, "
    "which trains them to the same numbers"
)
"""Advice for what a round left and that is damaged or gone."""


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """A prompt, responses to it, and preferences among them.

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
    """Weight of each of the pairs in the loss."""
    source: str = ""
    """Source of a gold pair, by which results are grouped."""

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
    """Prompts in an order that does not depend on when they came."""
    seed: int
    round: int
    start: str
    """Folder of the adapters that training starts from; empty: new ones."""
    reference: str
    """Folder of the adapters of DPO's reference; empty: the model without any."""
    folder: str
    """Folder of checkpoints and results, on storage that all workers share."""
    threads: int = 0
    """Threads of each worker; 0 leaves torch's number."""
    gold_pairs: tuple[RankedPrompt, ...] = ()
    """Trusted pairs, which are not trained on but scored before the first and after the last
    step."""


@dataclass(frozen=True, slots=True)
class PolicyRound:
    """Results of a round in its folder."""

    folder: Path
    pairs: pa.Table
    """One row a pair: `prompt_id`; `chosen` and `rejected`, numbers of the responses; `weight`;
    `loss` and its parts `dpo` and `nll`, `chosen_log_prob` and `rejected_log_prob`, before the
    first step, and the same with `_after`, after the last; `reference`, log-ratio of the reference;
    `kl` from the model without adapters (`panoply.preference.policy_outcome`), before the first
    step."""
    gold_pairs: pa.Table
    """One row a gold pair: `prompt_id`, `source`, and `margin` before the first and `margin_after`
    after the last step (`panoply.preference.policy_outcome.margin_per_token`)."""
    history: list[dict[str, Any]]
    """One entry a step: `step`, `loss`, `gradient_norm`, `tokens`, `seconds`."""

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapters."""
        return self.folder / ADAPTER

    @classmethod
    def read(cls, folder: Path) -> PolicyRound:
        """Reads a finished round.

        Raises:
            ValueError: one of its files is damaged.
        """
        tables: list[pa.Table] = []
        for name in (PAIRS, GOLD_PAIRS):
            with reading(folder / name, ROUNDS_AGAIN):
                tables.append(pq.read_table(folder / name))
        return cls(folder, *tables, history=read_json(folder / DONE)["history"])

    def gold_margin_gain(self, source: str | None = None) -> float:
        """Returns the rise of the mean margin on gold pairs; NaN where there are none.

        Args:
            source: only its pairs count, where it has any; None: all count.
        """
        before = np.array(self.gold_pairs["margin"].to_pylist())
        gain = np.array(self.gold_pairs["margin_after"].to_pylist()) - before
        of_source = np.array(self.gold_pairs["source"].to_pylist()) == source
        if of_source.any():
            gain = gain[of_source]
        return float(gain.mean()) if len(gain) else float("nan")

    def by_prompt(self, column: str) -> dict[str, float]:
        """Returns the mean of a column over the pairs of each prompt."""
        values: dict[str, list[float]] = {}
        rows = zip(self.pairs["prompt_id"].to_pylist(), self.pairs[column].to_pylist(), strict=True)
        for prompt_id, value in rows:
            values.setdefault(prompt_id, []).append(value)
        return {prompt_id: float(np.mean(each)) for prompt_id, each in values.items()}


def read_optimizer(adapter: Path) -> Mapping[str, Any] | None:
    """Returns AdamW's state after the round that left some adapters; None where no round did.

    Raises:
        ValueError: the state is damaged, or was removed when the next round was done.
    """
    folder = adapter.with_name(OPTIMIZER)
    if folder.is_dir():
        check_seal(folder, required=True)
        return load_tensors(folder / OPTIMIZER_FILE, COPY_AGAIN)
    # Before the state had a folder of its own, it lay among the adapters.
    if (adapter / OPTIMIZER_FILE).is_file():
        return load_tensors(adapter / OPTIMIZER_FILE, COPY_AGAIN)
    if adapter.with_name(DONE).is_file():
        raise ValueError(
            f"{str(folder)!r} was removed when the round after it was done: to train that round "
            f"again, {ROUNDS_AGAIN}"
        )
    return None


def remove_optimizer(adapter: Path) -> None:
    """Removes AdamW's state beside adapters from which no round starts any more.

    It is twice as large as the adapters. Adapters themselves stay: they sample, and are references.
    """
    shutil.rmtree(adapter.with_name(OPTIMIZER), ignore_errors=True)

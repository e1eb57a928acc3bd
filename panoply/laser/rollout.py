"""A prompt on its way through a round, and the samples of a round as a Parquet file.

A run that was killed reads the file instead of sampling and scoring again.

Shapes: n responses to one prompt, K arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.schema import PROMPT
from panoply.data.tasks import Task
from panoply.files import reading, whole_file
from panoply.laser.rewards import arm_agreement, arm_disagreement, verifier_auc
from panoply.laser.signals import PromptOutcome
from panoply.types import Array

Truncation: TypeAlias = Mapping[str, Mapping[str, int]]
"""Numbers of `texts` that limits cut and of `tokens` cut away, by the arm whose limits they are."""
FLOATS = pa.list_(pa.float64())
COUNTS = pa.list_(pa.int64())
NAMES = pa.list_(pa.string())


def _empty() -> Array:
    return np.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A prompt with what a round has added to it so far: arm, samples, scores, pairs."""

    task: Task
    arm: str = ""
    """Arm that was chosen for the prompt; empty where responses are ranked by all arms."""
    scorers: tuple[str, ...] = ()
    """Arms that are asked for scores."""
    responses: tuple[str, ...] = ()
    """Samples of the policy."""
    ended: tuple[bool, ...] = ()
    """Whether the policy ended each response."""
    verdict_n: Array = field(default_factory=_empty)
    """1 right, 0 wrong, NaN unknown."""
    score_Kn: Array = field(default_factory=_empty)
    """NaN where an arm failed or was not asked."""
    failures: Mapping[str, str] = field(default_factory=dict[str, str])
    """Reasons why scores are missing, by arm."""
    num_cut: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Tokens of each response that limits cut away, by the arm whose limits they are."""
    transient: frozenset[str] = frozenset()
    """Arms, and the verifier, whose missing scores may be there when they are asked again."""
    ranking_n: Array = field(default_factory=_empty)
    """Scores that the responses are ranked by."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Numbers of the chosen and the rejected response of each pair."""

    @property
    def prompt_id(self) -> str:
        """Id of the prompt."""
        return self.task.prompt_id

    @property
    def source(self) -> str:
        """Source of the prompt."""
        return self.task.source

    @property
    def quality(self) -> float:
        """Share of the judged responses that are right; NaN where none is judged."""
        judged = self.verdict_n[np.isfinite(self.verdict_n)]
        return float(judged.mean()) if len(judged) else float("nan")

    @property
    def mean_length(self) -> float:
        """Mean characters of a response."""
        return float(np.mean([len(text) for text in self.responses]))

    @property
    def num_scores(self) -> int:
        """Scores that arms gave."""
        return int(np.isfinite(self.score_Kn).sum())

    @property
    def truncation(self) -> Truncation:
        """Responses that the limits of each arm cut, and the tokens cut away."""
        return {
            arm: {"texts": sum(num > 0 for num in num_cut_n), "tokens": sum(num_cut_n)}
            for arm, num_cut_n in self.num_cut.items()
        }

    def arm_aucs(self) -> list[float]:
        """Returns how well each arm orders right above wrong responses (`verifier_auc`), `[K]`."""
        return [verifier_auc(score_n, self.verdict_n) for score_n in self.score_Kn]

    def outcome(self, arms: Sequence[str], training: Mapping[str, float]) -> PromptOutcome:
        """Returns the measurements of the prompt after its round.

        Args:
            arms: names of the arms, in their order.
            training: measurements that the update gave, by field of `PromptOutcome`.
        """
        ranked = self.ranking_n[np.isfinite(self.ranking_n)]
        all_scored = len(self.scorers) == len(arms)
        nan = float("nan")
        return PromptOutcome(
            prompt_id=self.prompt_id,
            verifier=verifier_auc(self.ranking_n, self.verdict_n),
            agreement=arm_agreement(self.score_Kn, arms.index(self.arm)) if all_scored else nan,
            disagreement=arm_disagreement(self.score_Kn) if all_scored else nan,
            proxy=float(ranked.mean()) if len(ranked) else nan,
            length=self.mean_length,
            well_formed=float(np.mean(self.ended)),
            failure="" if len(ranked) else self.failures.get(self.arm, ""),
            **training,
        )


def summed_truncation(counts: Iterable[Truncation]) -> Truncation:
    """Returns the sums of truncated texts and tokens by arm."""
    sums: dict[str, dict[str, int]] = {}
    for by_arm in counts:
        for arm, count in by_arm.items():
            before = sums.setdefault(arm, {"texts": 0, "tokens": 0})
            sums[arm] = {what: num + count[what] for what, num in before.items()}
    return sums


def write_rollouts(file: Path, rollouts: Sequence[Rollout], arms: Sequence[str]) -> None:
    """Writes samples and scores in the order of the prompts' ids, whole or not at all."""
    ordered = sorted(rollouts, key=lambda rollout: rollout.prompt_id)
    columns: dict[str, Any] = {
        "prompt_id": [rollout.prompt_id for rollout in ordered],
        "source": [rollout.source for rollout in ordered],
        "prompt": pa.array([list(rollout.task.prompt) for rollout in ordered], PROMPT),
        "responses": [rollout.responses for rollout in ordered],
        "ended": [rollout.ended for rollout in ordered],
        "verdicts": pa.array([_nullable(rollout.verdict_n) for rollout in ordered], FLOATS),
    }
    for k, arm in enumerate(arms):
        scores = [_nullable(rollout.score_Kn[k]) for rollout in ordered]
        failures = [rollout.failures.get(arm) for rollout in ordered]
        columns[f"score:{arm}"] = pa.array(scores, FLOATS)
        columns[f"failure:{arm}"] = pa.array(failures, pa.string())
        columns[f"cut:{arm}"] = pa.array([r.num_cut.get(arm) for r in ordered], COUNTS)
    columns["transient"] = pa.array([sorted(rollout.transient) for rollout in ordered], NAMES)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        pq.write_table(pa.table(columns), partial, write_page_checksum=True)


def read_rollouts(file: Path, arms: Sequence[str]) -> list[Rollout]:
    """Returns the samples and scores of a file; prompts have no label.

    Raises:
        ValueError: the file is damaged.
    """
    with reading(file):
        rows = pq.read_table(file, page_checksum_verification=True).to_pylist()
    rollouts: list[Rollout] = []
    for row in rows:
        failures = {arm: row[f"failure:{arm}"] for arm in arms if row[f"failure:{arm}"]}
        # Older files have no counts.
        cut = {arm: tuple(row[f"cut:{arm}"]) for arm in arms if row.get(f"cut:{arm}") is not None}
        rollouts.append(
            Rollout(
                # Older files have no prompts.
                task=Task(row["prompt_id"], row.get("prompt") or [], None, row["source"]),
                responses=tuple(row["responses"]),
                ended=tuple(row["ended"]),
                verdict_n=np.array(row["verdicts"], np.float64),
                score_Kn=np.array([row[f"score:{arm}"] for arm in arms], np.float64),
                failures=failures,
                num_cut=cut,
                transient=frozenset(row.get("transient") or ()),  # older files have none
            )
        )
    return rollouts


def _nullable(values_n: Array) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values_n]

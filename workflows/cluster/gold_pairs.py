"""Gold pairs: trusted pairs, on which it is measured whether a policy learns what is right.

They are from a file, or right and wrong samples of the calibration prompts. Their prompts are
neither trained on nor held out, or a gain on them would say nothing, or too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from actors.policy_round import RankedPrompt
from panoply.config.files import names_of_columns
from panoply.config.laser import LaserConfig
from panoply.data.ingest import IngestLimits, Refusal, ingest_pairs
from panoply.data.read import Input
from panoply.data.schema import split_key
from panoply.data.summary import summary_lines
from panoply.data.tasks import Task
from panoply.laser.rollout import Rollout
from panoply.report.progress import RunLogger
from workflows.cluster.rollouts import ranked_prompts

PAIRS_PER_SOURCE = 64
"""Pairs drawn from a source of a file; each round costs the policy's forwards on all of them."""
PAIRS_PER_PROMPT = 2
"""Pairs of the samples of a calibration prompt."""


def read_gold_pairs(
    config: LaserConfig,
    out: Path,
    other_tasks: Sequence[Task],
    refusal: Refusal,
    logger: RunLogger,
) -> tuple[RankedPrompt, ...]:
    """Returns pairs of the file `config.gold_pairs`, but those of other prompts of the run.

    Args:
        config: the run.
        out: its folder.
        other_tasks: prompts that are trained on or held out.
        refusal: of the policy's template; a pair that it refuses goes to quarantine.
        logger: receives what is read of the file.

    Raises:
        FileNotFoundError, ValueError: the file holds no pair that can be used.
    """
    gold = Input(config.gold_pairs, columns=names_of_columns(config.gold_columns))
    limits = IngestLimits(max_rows_per_source=PAIRS_PER_SOURCE, seed=config.seed)
    ingested = ingest_pairs([gold], out / "gold_pairs", limits, refusal)
    for line in summary_lines(ingested):
        logger.info(f"gold {line}")
    columns = ["prompt_id", "source", "prompt", "chosen", "rejected"]
    used = {split_key(task.prompt) for task in other_tasks}
    pairs = tuple(
        RankedPrompt(
            prompt_id=row["prompt_id"],
            prompt=row["prompt"],
            responses=(row["chosen"], row["rejected"]),
            ended=(True, True),
            pairs=((0, 1),),
            source=row["source"],
        )
        for row in pq.read_table(ingested.path, columns=columns).to_pylist()
        if split_key(row["prompt"]) not in used
    )
    if not pairs:
        raise ValueError(
            f"`gold_pairs` is {config.gold_pairs!r}, but the prompts of all its pairs are trained "
            "on or held out: name pairs of other prompts"
        )
    return pairs


def judged_gold_pairs(config: LaserConfig, rollouts: Sequence[Rollout]) -> tuple[RankedPrompt, ...]:
    """Returns pairs of a right and a wrong sample of each calibration prompt that has both.

    Raises:
        ValueError: there is none, and the signal is 'gold_margin'.
    """
    judged: list[Rollout] = []
    for rollout in rollouts:
        right = np.flatnonzero(rollout.verdict_n == 1).tolist()
        wrong = np.flatnonzero(rollout.verdict_n == 0).tolist()
        pairs = tuple(zip(right, wrong, strict=False))[:PAIRS_PER_PROMPT]
        judged.append(replace(rollout, pairs=pairs))
    gold_pairs = ranked_prompts(judged)
    if not gold_pairs and config.selector.signal.name == "gold_margin":
        raise ValueError(
            f"none of {len(rollouts)} calibration prompts has a right and a wrong sample, so there "
            "is nothing to measure the signal 'gold_margin' on: raise `num_calibration_prompts` or "
            "`num_samples`, or name a file of trusted pairs with `gold_pairs`"
        )
    return gold_pairs

"""Trusted pairs, on which it is measured whether a policy learns what is right.

They are from a file, or right and wrong samples of the labeled prompts. Their prompts are neither
trained on nor held out, or a gain on them would say nothing, or too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from actors.dpo_trainer import RankedPrompt
from panoply.config.laser import LaserConfig
from panoply.data.ingest import IngestLimits, ingest_pairs
from panoply.data.read import Input
from panoply.data.schema import split_key
from panoply.data.tasks import Task
from panoply.laser.scored import ScoredPrompt

PAIRS_PER_SOURCE = 64
"""Drawn from a file; the policy's forwards on all of them are what a probe costs a round."""
PAIRS_PER_PROMPT = 2
"""Of the samples of a labeled prompt."""


def read_probe(config: LaserConfig, out: Path, others: Sequence[Task]) -> tuple[RankedPrompt, ...]:
    """Returns pairs of the file `config.probe`, but those of other prompts of the run.

    Raises:
        FileNotFoundError, ValueError: the file holds no pair that can be used.
    """
    limits = IngestLimits(max_rows_per_source=PAIRS_PER_SOURCE, seed=config.seed)
    path = ingest_pairs([Input(config.probe)], out / "probe", limits).path
    columns = ["prompt_id", "source", "prompt", "chosen", "rejected"]
    rows = pq.read_table(path, columns=columns).to_pylist()
    used = {split_key(task.prompt) for task in others}
    kept = [row for row in rows if split_key(row["prompt"]) not in used]
    if not kept:
        raise ValueError(
            f"`probe` is {config.probe!r}, but the prompts of all its pairs are trained on or held "
            "out: name pairs of other prompts"
        )
    return tuple(
        RankedPrompt(
            prompt_id=row["prompt_id"],
            prompt=row["prompt"],
            responses=(row["chosen"], row["rejected"]),
            ended=(True, True),
            pairs=((0, 1),),
            source=row["source"],
        )
        for row in kept
    )


def judged_probe(
    config: LaserConfig, labeled: Sequence[Task], scored: Sequence[ScoredPrompt]
) -> tuple[RankedPrompt, ...]:
    """Returns pairs of a right and a wrong sample of each labeled prompt that has both.

    Raises:
        ValueError: there is none, and the signal is 'probe'.
    """
    prompts = {task.prompt_id: task.prompt for task in labeled}
    found: list[RankedPrompt] = []
    for one in scored:
        right, wrong = ([i for i, v in enumerate(one.verdict_n) if v == side] for side in (1, 0))
        pairs = tuple(zip(right, wrong, strict=False))[:PAIRS_PER_PROMPT]
        if pairs:
            own = (one.prompt_id, prompts[one.prompt_id], one.responses, one.ended, pairs)
            found.append(RankedPrompt(*own, source=one.source))
    if not found and config.selector.signal.name == "probe":
        raise ValueError(
            f"none of {len(scored)} labeled prompts has a right and a wrong sample, so there is "
            "nothing to measure the signal 'probe' on: raise `num_labeled` or `n`, or name a file "
            "of trusted pairs with `probe`"
        )
    return tuple(found)

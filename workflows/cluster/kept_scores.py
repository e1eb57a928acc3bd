"""Scores that a run keeps while they come: asked from actors, appended, never asked twice.

Scores are kept by the content of an item, so that a run that was killed, or gets further items or
scorers, asks only about what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow as pa
import ray.data

from actors.rescorer import RescoringActor, shard_of
from panoply.config.serve import ScalingConfig, ServedModelConfig
from panoply.data.score_file import ScoreFolder
from panoply.files import read_json, write_json
from panoply.report.progress import RunLogger
from panoply.scorers.content import content_hash
from panoply.scorers.recorded import RecordedScorer
from panoply.scorers.where import LocalModel, RecordedScores, local_models, parse_where
from panoply.secret import Keys
from panoply.wire.request import Chat
from workflows.cluster.embed import NODE_LOST, ActorPoolSpec
from workflows.cluster.evaluated import open_evaluated
from workflows.cluster.keys import endpoint_variables, handed_keys
from workflows.cluster.ray_cluster import MAX_FAILURES, connect
from workflows.cluster.resolve_model import resolve_model

ITEMS_AT_ONCE = 16
"""Prompts that an actor is asked about in one call: what a killed run may have to ask again."""
RECORDED_AT_ONCE = 1 << 14
"""Prompts whose recorded scores are looked up in one call."""
SCORERS_FILE = "scorers.json"
"""File that says what stands behind the names of scorers."""


def open_rescored(config: ServedModelConfig, num_workers: int) -> ServedModelConfig:
    """Returns a scorer's settings with its WHERE checked; actors share the limits of a judge.

    Raises:
        ValueError, OSError: there is no such scorer, or it has no score of a single response.
    """
    resolved = resolve_model(config)
    if isinstance(parse_where(resolved.where), LocalModel):
        open_evaluated(resolved.where)
    return replace(resolved, scaling=ScalingConfig(max_replicas=num_workers))


def pin_scorers(file: Path, scorers: Sequence[ServedModelConfig]) -> None:
    """Writes what stands behind each name; scores that a folder has are of no other scorer.

    Raises:
        ValueError: a name stood for another scorer, or its files have changed.
    """
    pinned = read_json(file) if file.is_file() else {}
    for scorer in scorers:
        content = {"where": scorer.where, "content": content_hash(scorer.where)}
        before = pinned.setdefault(scorer.name, content)
        if before != content:
            is_moved = before["where"] != scorer.where
            what = f"it was {before['where']!r}" if is_moved else "its files have changed"
            raise ValueError(
                f"{str(file.parent)!r} has scores by another {scorer.name!r} ({what}): take "
                "another name or another `--out`"
            )
    write_json(file, pinned)


def score_missing(
    scorer: ServedModelConfig,
    items: Mapping[str, Chat],
    scores: ScoreFolder,
    num_workers: int,
    variables: Sequence[str],
    logger: RunLogger,
) -> None:
    """Asks a scorer about the items that its scores lack, and keeps each answer as it comes.

    Args:
        scorer: its settings.
        items: prompts with their responses, by id.
        scores: of the run.
        num_workers: actors.
        variables: of the keys of all scorers.
        logger: is shown the progress.
    """
    for tries_left in reversed(range(MAX_FAILURES + 1)):
        left = {
            name: chat
            for name, chat in items.items()
            if scores.lacks(scorer.name, name, len(chat.responses))
        }
        if not left:
            break
        if isinstance(parse_where(scorer.where), RecordedScores):
            look_up(scorer, left, scores)
            break
        connect(num_workers, variables)
        num_actors = min(num_workers, math.ceil(len(left) / ITEMS_AT_ONCE))
        pool = ActorPoolSpec.of_cluster(num_actors, None if local_models(scorer) else 0.0)
        keys = handed_keys(endpoint_variables([scorer]))
        shards = into_shards(left)
        answers = pool.map(RescoringActor, (scorer, keys), shards)
        num_left = sum(len(chat.responses) for chat in left.values())
        try:
            with logger.bar(f"scoring with {scorer.name}", num_left) as advance:
                for part in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
                    rows = cast(pa.Table, part)
                    scores.append(rows)
                    advance(rows.num_rows)
            break  # what is missing now failed, and is asked again by the next run alone
        except NODE_LOST:
            if not tries_left:
                raise
            logger.info("scoring: node lost, resuming with the remaining prompts")


def look_up(scorer: ServedModelConfig, items: Mapping[str, Chat], scores: ScoreFolder) -> None:
    """Takes recorded scores, for which no cluster is needed; those of a file of scores at once.

    Args:
        scorer: settings of recorded scores.
        items: prompts with their responses, by id.
        scores: of the run.
    """
    actor = RescoringActor(scorer, Keys())
    if isinstance(actor.scorer, RecordedScorer):
        rows = actor.scorer.rows(list(items))
        if rows.num_rows:
            scores.append(rows)
    names = [
        name for name, chat in items.items() if scores.lacks(scorer.name, name, len(chat.responses))
    ]
    for start in range(0, len(names), RECORDED_AT_ONCE):
        shard = shard_of({name: items[name] for name in names[start : start + RECORDED_AT_ONCE]})
        scores.append(actor(pa.table({"items": [shard]})))


def into_shards(items: Mapping[str, Chat]) -> ray.data.Dataset:
    """Returns one row, and one block, for every ITEMS_AT_ONCE items."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    names = list(items)
    shards: list[dict[str, str]] = []
    for start in range(0, len(names), ITEMS_AT_ONCE):
        taken = names[start : start + ITEMS_AT_ONCE]
        shards.append({"items": shard_of({name: items[name] for name in taken})})
    return ray.data.from_items(shards, override_num_blocks=len(shards))

"""Scores that a run keeps while they come: asked from actors, appended, never asked twice.

Scores are kept by the content of an item, so that a run that was killed, or gets further items or
scorers, asks only about what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

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
from workflows.cluster.actor_pool import ActorPool
from workflows.cluster.evaluated import open_evaluated
from workflows.cluster.keys import endpoint_variables, handed_keys
from workflows.cluster.ray_cluster import bundle_of_worker, connect
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
    left = {
        name: chat
        for name, chat in items.items()
        if scores.lacks(scorer.name, name, len(chat.responses))
    }
    if not left:
        return
    if isinstance(parse_where(scorer.where), RecordedScores):
        look_up(scorer, left, scores)
        return
    connect(num_workers, variables)
    shards = into_shards(left)
    num_actors = min(num_workers, len(shards))
    bundle = bundle_of_worker(num_actors, None if local_models(scorer) else 0.0)
    keys = handed_keys(endpoint_variables([scorer]))
    num_left = sum(len(chat.responses) for chat in left.values())
    with (
        ActorPool(num_actors, bundle, logger) as pool,
        logger.bar(f"scoring with {scorer.name}", num_left) as advance,
    ):
        # What is missing afterwards failed, and is asked again by the next run alone.
        for rows in pool.map_made(RescoringActor, (scorer, keys), shards):
            scores.append(rows)
            advance(rows.num_rows)


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


def into_shards(items: Mapping[str, Chat]) -> list[pa.Table]:
    """Returns a table for every ITEMS_AT_ONCE items."""
    names = list(items)
    shards: list[pa.Table] = []
    for start in range(0, len(names), ITEMS_AT_ONCE):
        taken = names[start : start + ITEMS_AT_ONCE]
        shards.append(pa.table({"items": [shard_of({name: items[name] for name in taken})]}))
    return shards

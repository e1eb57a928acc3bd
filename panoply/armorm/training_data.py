"""Ratings and pairs of a run, read, checked and split before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from panoply.armorm.out_of_fold import check_learnable
from panoply.config.armorm import ArmoRMConfig
from panoply.config.files import FilesConfig
from panoply.data.ingest import Ingested, IngestLimits, Refusal, ingest_pairs, ingest_ratings
from panoply.data.objectives import check_objectives
from panoply.data.ratings import RatingMap
from panoply.data.read import Input, named_inputs, rating_inputs
from panoply.data.schema import digest
from panoply.data.split import check_parts, check_split
from panoply.data.summary import summary_lines
from panoply.data.tables import (
    PairTable,
    RatingTable,
    TextFiles,
    in_one_fold,
    load_pairs,
    load_ratings,
)
from panoply.synthetic.planted import Truth, make_world


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Ratings and pairs without their texts, which stay in the files."""

    ratings: RatingTable
    pairs: PairTable
    texts: TextFiles
    maps: Mapping[str, RatingMap]
    left_out: Mapping[str, str]
    """Objectives that cannot be learned, with the reason."""
    truth: Truth | None
    summary: Mapping[str, Any]
    """Counts, quarantine and ids of the data."""


def read_training_data(
    config: ArmoRMConfig,
    folder: Path,
    refusal: Refusal | None = None,
    tell: Callable[[str], None] | None = None,
) -> TrainingData:
    """Reads, checks and splits the data of a run, from files or from the planted world.

    Args:
        config: of the run.
        folder: place of the canonical files.
        refusal: of the backbone's chat template; a row that it refuses goes to quarantine.
        tell: takes each line on what was read: rows, quarantine, rating scales.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input that cannot be used; the message says why and what to do.
    """
    rating_files = rating_inputs(
        config.ratings,
        FilesConfig(source=config.rating_source),
        columns=config.rating_columns,
        scales=config.rating_scales,
    )
    pair_files = named_inputs(config.pairs, config)
    truth: Truth | None = None
    if (planted := config.planted) is not None:
        world = make_world(
            config.seed,
            num_prompts=planted.num_prompts,
            num_responses=planted.num_responses,
            homogeneous=planted.homogeneous,
        )
        scales = {name: RatingMap(*bounds) for name, bounds in world.scales.items()}
        rating_files, pair_files = [Input(world.ratings, scales=scales)], [Input(world.pairs)]
        truth = world.truth
    share = config.max_quarantine_share
    rating_limits = IngestLimits(config.max_ratings_per_source or None, share)
    pair_limits = IngestLimits(config.max_pairs_per_source or None, share)
    rated = ingest_ratings(rating_files, folder, rating_limits, refusal)
    paired = ingest_pairs(pair_files, folder, pair_limits, refusal)
    for line in (*summary_lines(rated), *summary_lines(paired)):
        if tell:
            tell(line)

    objectives = check_objectives(rated.objectives, config.objectives.min_ratings)
    summary = {"ratings": _summary(rated, config.seed), "pairs": _summary(paired, config.seed)}
    check_split(rated.path, paired.path, config.seed)
    split: dict[str, Any] = {"seed": config.seed, "num_folds": config.objectives.num_folds}
    ratings = load_ratings(rated.path, objectives.kept, rated.maps, **split)
    left_out = {**objectives.left_out, **in_one_fold(ratings)}
    ratings = ratings.without(left_out)
    check_learnable(ratings.objectives, config.objectives.verbosity)
    return TrainingData(
        ratings=ratings,
        pairs=load_pairs(paired.path, **split),
        texts=TextFiles((str(rated.path),), (str(paired.path),)),
        maps={name: rated.maps[name] for name in ratings.objectives},
        left_out=left_out,
        truth=truth,
        summary=summary,
    )


def _summary(ingested: Ingested, seed: int) -> dict[str, Any]:
    parts = check_parts(ingested.path, seed)
    rows = pq.read_table(ingested.path, columns=["row_id"])["row_id"].to_pylist()
    return {
        "id": digest(*sorted(rows)),
        "rows": len(rows),
        "by_source": dict(ingested.num_rows),
        "quarantined": dict(ingested.num_quarantined),
        "parts": parts,
    }

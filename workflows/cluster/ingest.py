"""Files or the planted world -> canonical rows, checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from panoply.config.armorm import ArmoRMConfig
from panoply.data.ingest import Ingested, IngestLimits, ingest_pairs, ingest_ratings
from panoply.data.objectives import check_objectives
from panoply.data.ratings import RatingMap
from panoply.data.read import Input
from panoply.data.schema import digest
from panoply.data.split import check_parts, check_split
from panoply.data.tables import (
    PairTable,
    RatingTable,
    in_one_fold,
    load_pairs,
    load_ratings,
)
from panoply.synthetic.planted import Truth, make_world
from workflows.cluster.embed import TextFiles


@dataclass(frozen=True, slots=True)
class Data:
    """Everything a run knows of its data; texts stay in the files."""

    ratings: RatingTable
    pairs: PairTable
    texts: TextFiles
    maps: Mapping[str, RatingMap]
    left_out: Mapping[str, str]
    """Objectives that cannot be learned, with the reason."""
    truth: Truth | None
    summary: Mapping[str, Any]
    """Counts, quarantine and ids of the data."""


def ingest(config: ArmoRMConfig, folder: Path) -> Data:
    """Reads, checks and splits the data of a run.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input that cannot be used; the message says why and what to do.
    """
    truth: Truth | None = None
    rating_inputs = [Input(name) for name in config.ratings]
    pair_inputs = [Input(name) for name in config.pairs]
    if (planted := config.planted) is not None:
        world = make_world(
            config.seed,
            num_prompts=planted.num_prompts,
            num_responses=planted.num_responses,
            homogeneous=planted.homogeneous,
        )
        scales = {name: RatingMap(*bounds) for name, bounds in world.scales.items()}
        rating_inputs, pair_inputs = [Input(world.ratings, scales=scales)], [Input(world.pairs)]
        truth = world.truth
    rated = ingest_ratings(
        rating_inputs,
        folder,
        IngestLimits(max_rows_per_source=config.max_ratings_per_source or None),
    )
    paired = ingest_pairs(
        pair_inputs, folder, IngestLimits(max_rows_per_source=config.max_pairs_per_source or None)
    )
    objectives = check_objectives(rated.objectives, config.objectives.min_ratings)
    parts = {
        "ratings": check_parts(rated.path, config.seed),
        "pairs": check_parts(paired.path, config.seed),
    }
    check_split(rated.path, paired.path, config.seed)
    split: dict[str, Any] = {"seed": config.seed, "num_folds": config.objectives.num_folds}
    ratings = load_ratings(rated.path, objectives.kept, rated.maps, **split)
    left_out = {**objectives.left_out, **in_one_fold(ratings)}
    ratings = ratings.without(left_out)
    check_kept(config.objectives.verbosity, ratings.objectives)
    return Data(
        ratings=ratings,
        pairs=load_pairs(paired.path, **split),
        texts=TextFiles((str(rated.path),), (str(paired.path),)),
        maps={name: rated.maps[name] for name in ratings.objectives},
        left_out=left_out,
        truth=truth,
        summary={
            "ratings": _summary(rated) | {"parts": parts["ratings"]},
            "pairs": _summary(paired) | {"parts": parts["pairs"]},
        },
    )


def check_kept(verbosity: str, objectives: tuple[str, ...]) -> None:
    """Checks that objectives can be learned, and that the one named as r_v is among them.

    Raises:
        ValueError: there is none, or it is not.
    """
    if not objectives:
        raise ValueError("no objective can be learned: add ratings of other prompts")
    if verbosity and verbosity not in objectives:
        raise ValueError(
            f"`objectives.verbosity` is {verbosity!r}, which is not among the objectives that can "
            f"be learned: {', '.join(objectives)}. Empty takes predicted log length"
        )


def _summary(found: Ingested) -> dict[str, Any]:
    rows = pq.read_table(found.path, columns=["row_id"])["row_id"].to_pylist()
    return {
        "id": digest(*sorted(rows)),
        "rows": len(rows),
        "by_source": dict(found.num_rows),
        "quarantined": dict(found.num_quarantined),
    }

"""Scoring pairs with a finished reward model: texts -> trees -> scores -> metrics.

Prompts that the model was trained on are recognized by hash and left out of the headline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from panoply.armorm.baselines import RIVALS
from panoply.boards import read_board
from panoply.config.evaluate import EvaluateConfig
from panoply.data.ingest import IngestLimits, ingest_pairs
from panoply.data.read import Input
from panoply.data.schema import digest
from panoply.data.tables import PairTable, load_pairs
from panoply.files import write_json
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, read_manifest
from panoply.measure.calibration import reliability
from panoply.measure.pair_report import compare, report_pairs, weights_by_domain
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.types import Array
from workflows.cluster.embed import TextFiles
from workflows.cluster.ray_cluster import check_or_write_config, connect, run_folder
from workflows.cluster.score import Shards, TextScores, is_seen, score_texts
from workflows.cluster.tracking import git_commit, open_trackers

COMPARED = (*(("gate", rival) for rival in RIVALS), ("lower_bound", "score"))
"""Scorers whose difference is reported, of those that a model has."""
CURVES = ("gate", *RIVALS, "score", "lower_bound")
"""Scorers whose reliability is reported, of those that a model has."""


def run_evaluate(config: EvaluateConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores pairs and returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: no such model or file, unusable pairs, or a folder of another
            run.
    """
    out, folder = run_folder(config.out), Path(config.model).expanduser().absolute()
    manifest = read_manifest(folder)
    trackers = open_trackers(config, out)
    check_or_write_config(out, "config.json", asdict(config))
    limits = IngestLimits(max_rows_per_source=config.max_pairs_per_source or None)
    inputs = [Input(name) for name in config.pairs]
    board = read_board(config.board, inputs)
    ingested = ingest_pairs(inputs, out / "data", limits)
    pairs = load_pairs(ingested.path, seed=manifest.seed, num_folds=2)
    unseen = np.flatnonzero(~is_seen(pairs.split.key_N, folder))
    logger.info(f"data: {len(pairs.gap_P):,} pairs, {len(unseen):,} of prompts not trained on")

    connect(config.num_workers)
    shards = Shards.of(TextFiles(pairs=(str(ingested.path),)))
    scored = score_texts(shards, folder, config.num_workers, logger)
    margins = margins_of(pairs, scored)
    scales = scales_of(folder, manifest, margins)

    metrics: dict[str, Any] = {
        "model": str(folder),
        "num_pairs": len(pairs.gap_P),
        "num_seen": len(pairs.gap_P) - len(unseen),
        "quarantined": dict(ingested.num_quarantined),
    }
    # The factor to log odds is the model's: nothing is fitted on what is evaluated.
    rows = unseen if len(unseen) else np.arange(len(pairs.gap_P))
    metrics["only_seen"] = not len(unseen)
    if metrics["only_seen"]:
        logger.info("every prompt was trained on: these numbers say nothing about new prompts")
    metrics["pairs"] = report_pairs(margins, pairs, rows, scales)
    rivals = [(a, b) for a, b in COMPARED if {a, b} <= margins.keys()]
    metrics["comparisons"] = compare(margins, pairs, rows, rivals)
    if board is not None:
        seen_P = is_seen(board.key_P, folder)
        metrics[config.board] = board.measure(scored.row, scored.scores, seen_P)
    if isinstance(manifest, Manifest) and scored.weights_NO is not None:
        weights_PO = scored.weights_NO[scored.rows(pairs.chosen_P)]
        shares = weights_by_domain(weights_PO, manifest.objectives, pairs.domain_P, rows)
        metrics["gate"] = {"weights_by_domain": shares}
    metrics["reliability"] = {
        name: reliability(margins[name][rows] * scales[name]) for name in CURVES if name in margins
    }
    metrics["git_commit"] = git_commit()
    tags, data = {"method": "evaluate", "model": str(folder)}, data_entry(pairs, config.pairs)
    with trackers.run(asdict(config), tags, logger, data=data):
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


def data_entry(pairs: PairTable, files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns what trackers keep of the pairs that are evaluated."""
    pair_ids = [digest(a, b) for a, b in zip(pairs.chosen_P, pairs.rejected_P, strict=True)]
    return {"pairs": {"id": digest(*sorted(pair_ids)), "rows": len(pair_ids), "files": files}}


def scales_of(
    folder: Path, manifest: Manifest | ScalarManifest, names: Iterable[str]
) -> dict[str, float]:
    """Returns the factor to log odds of each scorer, as the model brings it.

    A lower bound is in the unit of its score and has the same.
    """
    if isinstance(manifest, ScalarManifest):
        return dict.fromkeys(names, 1 / manifest.temperature)
    fixed = load_file(folder / "baselines.safetensors")
    return {name: float(fixed[f"scale.{name}"]) for name in names}


def margins_of(pairs: PairTable, scored: TextScores) -> dict[str, Array]:
    """Returns margins by scorer; per-source weights apply where the source is known, else NaN."""
    chosen, rejected = scored.rows(pairs.chosen_P), scored.rows(pairs.rejected_P)
    margins = {name: score[chosen] - score[rejected] for name, score in scored.scores.items()}
    of_source = np.full(len(chosen), np.nan)
    for source in set(pairs.source_P):
        if (score := scored.per_source.get(source)) is not None:
            rows = pairs.source_P == source
            of_source[rows] = score[chosen[rows]] - score[rejected[rows]]
    if not np.isnan(of_source).all():
        margins["best_fixed_per_source"] = of_source
    return margins

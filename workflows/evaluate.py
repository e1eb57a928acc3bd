"""Scoring pairs with a finished reward model: texts -> trees -> scores -> metrics.

Prompts that the model was trained on are recognized by hash and left out of the headline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from panoply.armorm.baselines import RIVALS
from panoply.config.evaluate import EvaluateConfig
from panoply.data.boards import StyledPairs, read_styles
from panoply.data.ingest import IngestLimits, ingest_pairs
from panoply.data.read import Input
from panoply.data.tables import PairTable, load_pairs
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, read_card
from panoply.measure.boards import rmbench
from panoply.measure.calibration import reliability
from panoply.measure.pair_report import compare, report_pairs, weights_by_domain
from panoply.report.page.write import write_page
from panoply.report.progress import RunLogger
from panoply.report.report import write_plots
from panoply.types import Array
from workflows.cluster.embed import TextFiles
from workflows.cluster.ray_cluster import connect, run_folder
from workflows.cluster.score import Shards, TextScores, is_seen, score_texts
from workflows.cluster.tracking import git_commit, write_json

COMPARED = (*(("gate", rival) for rival in RIVALS), ("lower_bound", "score"))
"""Scorers whose difference is reported, of those that a model has."""
CURVES = ("gate", *RIVALS, "score", "lower_bound")
"""Scorers whose reliability is reported, of those that a model has."""


def run_evaluate(config: EvaluateConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores pairs and returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: no such model or file, or unusable pairs.
    """
    out, folder = run_folder(config.out), Path(config.model).expanduser().absolute()
    card = read_card(folder)
    limits = IngestLimits(max_rows_per_source=config.max_pairs_per_source or None)
    inputs = [Input(name) for name in config.pairs]
    styled = read_styles(inputs) if config.board == "rmbench" else None
    ingested = ingest_pairs(inputs, out / "data", limits)
    pairs = load_pairs(ingested.path, seed=card.seed, num_folds=2)
    unseen = np.flatnonzero(~is_seen(pairs.split.key_N, folder))
    logger.info(f"data: {len(pairs.gap_P):,} pairs, {len(unseen):,} of prompts not trained on")

    connect(config.num_workers)
    shards = Shards.of(TextFiles(pairs=(str(ingested.path),)))
    scored = score_texts(shards, folder, config.num_workers, logger)
    margins = margins_of(pairs, scored)
    scales = scales_of(folder, card, margins)

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
    if styled is not None:
        metrics["rmbench"] = report_rmbench(styled, scored, is_seen(styled.key_P, folder))
    if isinstance(card, Manifest) and scored.weights_NO is not None:
        weights_PO = scored.weights_NO[scored.rows(pairs.chosen_P)]
        shares = weights_by_domain(weights_PO, card.objectives, pairs.domain_P, rows)
        metrics["gate"] = {"weights_by_domain": shares}
    metrics["reliability"] = {
        name: reliability(margins[name][rows] * scales[name]) for name in CURVES if name in margins
    }
    out.mkdir(parents=True, exist_ok=True)
    metrics["git_commit"] = git_commit()
    write_json(out / "config.json", asdict(config))
    write_json(out / "metrics.json", metrics)
    write_plots(metrics, out)
    write_page(out)
    return metrics


def scales_of(
    folder: Path, card: Manifest | ScalarManifest, names: Iterable[str]
) -> dict[str, float]:
    """Returns the factor to log odds of each scorer, as the model brings it.

    A lower bound is in the unit of its score and has the same.
    """
    if isinstance(card, ScalarManifest):
        return dict.fromkeys(names, 1 / card.temperature)
    fixed = load_file(folder / "baselines.safetensors")
    return {name: float(fixed[f"scale.{name}"]) for name in names}


def margins_of(pairs: PairTable, found: TextScores) -> dict[str, Array]:
    """Returns margins by scorer; per-source weights apply where the source is known, else NaN."""
    chosen, rejected = found.rows(pairs.chosen_P), found.rows(pairs.rejected_P)
    margins = {name: score[chosen] - score[rejected] for name, score in found.scores.items()}
    own = np.full(len(chosen), np.nan)
    for source in set(pairs.source_P):
        if (scores := found.per_source.get(source)) is not None:
            rows = pairs.source_P == source
            own[rows] = scores[chosen[rows]] - scores[rejected[rows]]
    return margins | ({} if np.isnan(own).all() else {"best_fixed_per_source": own})


def report_rmbench(
    styled: StyledPairs, found: TextScores, seen_P: NDArray[np.bool_]
) -> dict[str, Any]:
    """RM-Bench's numbers of every scorer, on prompts not trained on (on all where none is left).

    A pair that was not scored, for example beyond `max_pairs_per_source`, is missing.
    """
    rows = np.flatnonzero(~seen_P) if not seen_P.all() else np.arange(len(seen_P))
    chosen, rejected = (
        np.array([found.row.get(str(name), -1) for name in ids[rows]], dtype=np.int64)
        for ids in (styled.chosen_P, styled.rejected_P)
    )
    missing = (chosen < 0) | (rejected < 0)
    columns = (styled.chosen_style_P[rows], styled.rejected_style_P[rows], styled.subset_P[rows])
    scorers = {
        name: rmbench(np.where(missing, np.nan, scores[chosen] - scores[rejected]), *columns)
        for name, scores in found.scores.items()
    }
    return {"num_pairs": len(seen_P), "num_seen": int(seen_P.sum()), "scorers": scorers}

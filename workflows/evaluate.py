"""Scoring pairs with a scorer, and others beside it: texts -> trees -> scores -> metrics.

Prompts that a model of ours was trained on are recognized by hash and left out of the headline, for
all scorers alike. Of published models, functions and other servers nothing is known as seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from panoply.armorm.baselines import RIVALS
from panoply.config import as_dict
from panoply.config.evaluate import EvaluateConfig
from panoply.data.schema import digest
from panoply.data.tables import PairTable, load_pairs
from panoply.files import write_json
from panoply.hub.artefact.manifest import Manifest
from panoply.hub.door.checkpoint import read_tensors
from panoply.measure.calibration import reliability
from panoply.measure.pair_report import compare, report_pairs, weights_by_domain
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.report.results.pairs import lead
from panoply.types import Array, Ints
from workflows.cluster.evaluated import (
    EvaluatedScorer,
    data_entry,
    ingest_evaluated,
    open_evaluated,
    score_all,
    scorer_labels,
    truncation_of,
)
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.score import TextScores
from workflows.cluster.tracking import git_commit, open_trackers

COMPARED = (*(("gate", rival) for rival in RIVALS), ("lower_bound", "score"))
"""Scorers whose difference is reported, of those that a model has."""
CURVES = ("gate", *RIVALS, "score", "lower_bound")
"""Scorers whose reliability is reported, of those that a model has."""


@one_writer
def run_evaluate(config: EvaluateConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores pairs and returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: no such model or file, unusable pairs, or a folder of another
            run.
    """
    out = run_folder(config.out)
    scorers = [open_evaluated(where) for where in (config.model, *config.beside)]
    chief = scorers[0]
    trackers = open_trackers(config, out)
    check_folder(out, config)
    ingested = ingest_evaluated(config, scorers, out / "data", logger)
    pairs = load_pairs(ingested.path, seed=chief.seed, num_folds=2)
    claim(out, config, {"pairs": digest(*pairs.chosen_P, *pairs.rejected_P)})
    unseen = np.flatnonzero(~np.any([s.is_seen(pairs.split.key_N) for s in scorers], axis=0))
    logger.info(f"data: {len(pairs.gap_P):,} pairs, {len(unseen):,} of prompts not trained on")

    tags = {"method": "evaluate", "model": str(chief.folder or chief.where)}
    with trackers.run(as_dict(config), tags, logger, data=data_entry(pairs, config.pairs)):
        results = score_all(scorers, ingested.path, config.num_workers, logger)
        metrics = measure(pairs, unseen, scorers, results, logger)
        metrics["quarantined"] = dict(ingested.num_quarantined)
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


def measure(
    pairs: PairTable,
    unseen: Ints,
    scorers: Sequence[EvaluatedScorer],
    results: Sequence[TextScores],
    logger: RunLogger,
) -> dict[str, Any]:
    """Returns the metrics of the first scorer, with the others beside it.

    Args:
        pairs: pairs that were scored.
        unseen: rows whose prompts no scorer was trained on; where there is none, all rows count.
        scorers: the scorer that is evaluated, and those beside it.
        results: their scores.
        logger: receives what a reader has to know of the numbers.
    """
    chief, scored, names = scorers[0], results[0], scorer_labels(scorers)
    margins = margins_of(pairs, scored)
    scales = scales_of(chief, margins)
    for name, scorer, result in list(zip(names, scorers, results, strict=True))[1:]:
        margins[name] = margins_of(pairs, result)[lead(result.scores)]
        scales[name] = scorer.scale

    # The factor to log odds is the model's: nothing is fitted on what is evaluated.
    rows = unseen if len(unseen) else np.arange(len(pairs.gap_P))
    if not len(unseen):
        logger.info("every prompt was trained on: these numbers say nothing about new prompts")
    rivals = [(a, b) for a, b in COMPARED if {a, b} <= margins.keys()]
    rivals += [(lead(scored.scores), name) for name in names[1:]]
    metrics: dict[str, Any] = {
        "model": str(chief.folder or chief.where),
        "truncated": truncated(names, results, logger),
        "num_pairs": len(pairs.gap_P),
        "num_seen": len(pairs.gap_P) - len(unseen),
        "only_seen": not len(unseen),
        "pairs": report_pairs(margins, pairs, rows, scales),
        "comparisons": compare(margins, pairs, rows, rivals),
        "git_commit": git_commit(),
    }
    if isinstance(chief.manifest, Manifest) and scored.weights_NO is not None:
        weights_PO = scored.weights_NO[scored.rows(pairs.chosen_P)]
        shares = weights_by_domain(weights_PO, chief.manifest.objectives, pairs.domain_P, rows)
        metrics["gate"] = {"weights_by_domain": shares}
    metrics["reliability"] = {
        name: reliability(margins[name][rows] * scales[name]) for name in CURVES if name in margins
    }
    return metrics


def truncated(
    names: Sequence[str], results: Sequence[TextScores], logger: RunLogger
) -> dict[str, Mapping[str, int]]:
    """Returns by scorer how many texts and tokens limits cut away, and says so where any did."""
    counts: dict[str, Mapping[str, int]] = {}
    for name, result in zip(names, results, strict=True):
        if (cut := truncation_of(result)) is None:
            continue
        counts[name] = cut
        if cut["texts"]:
            logger.info(
                f"truncated: {cut['texts']:,} of {len(result.row):,} texts lose {cut['tokens']:,} "
                f"tokens to the limits of {name}"
            )
    return counts


def scales_of(scorer: EvaluatedScorer, names: Iterable[str]) -> dict[str, float]:
    """Returns the factor to log odds of each of a model's scorers, as the model brings it.

    A lower bound is in the unit of its score and has the same.
    """
    if scorer.folder is None or not isinstance(scorer.manifest, Manifest):
        return dict.fromkeys(names, scorer.scale)
    fixed = read_tensors(scorer.folder / "baselines.safetensors")
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

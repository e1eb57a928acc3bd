"""Every model on every source: which reward model holds up where it was not trained.

Only prompts that none of the models has seen count, so all are judged on the same pairs. Scores of
different models are never compared raw: accuracy needs no scale, probabilities take each model's
own temperature, and the ensemble takes

    s(x, y) = 1/M sum_m s_m(x, y) / d_m

with d_m the deviation of model m's scores over all responses scored here, which needs no label. It
has no temperature, so no probabilities.

Legend: `P` pairs, `M` models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoply.config import as_dict
from panoply.config.evaluate import CrossEvalConfig
from panoply.data.schema import digest
from panoply.data.tables import PairTable, load_pairs
from panoply.files import write_json
from panoply.hub.artefact.manifest import Manifest, ScalarManifest
from panoply.measure.intervals import macro_interval
from panoply.measure.metrics import macro
from panoply.measure.pair_report import scaled_metrics
from panoply.report.progress import RunLogger
from panoply.report.report import write_pictures
from panoply.report.results.cross_eval import matrix
from panoply.report.results.pairs import lead
from panoply.types import Array, Bools, Ints
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

ENSEMBLE = "mean of standardized scores"


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A model, or the mean of several, in the matrix."""

    sources: frozenset[str]
    """Sources trained on."""
    temperature: float
    """NaN where score differences carry no probability."""
    margin_P: Array


@one_writer
def run_cross_eval(config: CrossEvalConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores pairs with all models and returns what it leaves in `OUT/matrix.json`.

    Raises:
        FileNotFoundError, ValueError: no such model or file, unusable pairs, a folder of another
            run, or no prompt that none of the models has seen.
    """
    out = run_folder(config.out)
    opened = [open_evaluated(where) for where in config.models]
    scorers = dict(zip(scorer_labels(opened), opened, strict=True))
    trackers = open_trackers(config, out)
    check_folder(out, config)
    ingested = ingest_evaluated(config, opened, out / "data", logger)
    pairs = load_pairs(ingested.path, seed=0, num_folds=2)  # all parts count: the split is theirs
    claim(out, config, {"pairs": digest(*pairs.chosen_P, *pairs.rejected_P)})
    seen = {name: scorer.is_seen(pairs.split.key_N) for name, scorer in scorers.items()}
    rows = unseen_rows(seen)
    logger.info(
        f"data: {len(pairs.gap_P):,} pairs, {len(rows):,} of prompts that no model has seen"
    )

    prompts = frozenset(pairs.prompt_P[rows])
    data = data_entry(pairs, config.pairs)
    with trackers.run(as_dict(config), {"method": "cross_eval"}, logger, data=data):
        results = score_all(opened, ingested.path, config.num_workers, logger, prompts)
        result = measure(pairs, rows, scorers, results)
        result["quarantined"] = dict(ingested.num_quarantined)
        for name, seen_P in seen.items():
            result["models"][name]["num_seen"] = int(seen_P.sum())
        write_json(out / "matrix.json", result)
        write_pictures([matrix(result)], out)
    return result


def measure(
    pairs: PairTable,
    rows: Ints,
    scorers: Mapping[str, EvaluatedScorer],
    results: Sequence[TextScores],
) -> dict[str, Any]:
    """Returns the matrix: each scorer on each source, and their ensemble.

    Args:
        pairs: pairs that were scored.
        rows: those of prompts that no scorer has seen.
        scorers: by name.
        results: their scores, in that order.
    """
    scored_rows: dict[str, ScoredRow] = {}
    deviations: dict[str, float] = {}
    models: dict[str, Any] = {}
    for (name, scorer), scored in zip(scorers.items(), results, strict=True):
        scores = scored.scores[lead(scored.scores)]
        # Sorted, so that the order of arrival changes nothing.
        deviations[name] = float(np.nanstd(np.sort(scores)))
        chosen, rejected = scored.rows(pairs.chosen_P[rows]), scored.rows(pairs.rejected_P[rows])
        margin_P = np.full(len(pairs.gap_P), np.nan)
        margin_P[rows] = scores[chosen] - scores[rejected]
        sources = trained_sources(scorer.manifest)
        scored_rows[name] = ScoredRow(sources, scorer.temperature, margin_P)
        models[name] = {
            "folder": str(scorer.folder or scorer.where),
            "temperature": scorer.temperature,
            "sources": sorted(sources),
            "truncated": truncation_of(scored),
        }
    if len(scored_rows) > 1:
        members = list(scored_rows.values())
        scored_rows[ENSEMBLE] = ensemble(members, list(deviations.values()))

    reports = {name: report_row(row, pairs, rows) for name, row in scored_rows.items()}
    sources, counts = np.unique(pairs.source_P[rows].astype(str), return_counts=True)
    return {
        "models": models,
        "num_pairs": len(pairs.gap_P),
        "num_seen": len(pairs.gap_P) - len(rows),
        "sources": dict(zip(sources.tolist(), counts.tolist(), strict=True)),
        "matrix": {name: by_source for name, (by_source, _) in reports.items()},
        "means": {name: means for name, (_, means) in reports.items()},
        "deviations": deviations,
        "git_commit": git_commit(),
    }


def unseen_rows(seen: Mapping[str, Bools]) -> Ints:
    """Returns the pairs whose prompts no model has seen.

    Raises:
        ValueError: there is none.
    """
    rows = np.flatnonzero(~np.any(list(seen.values()), axis=0))
    if not len(rows):
        counts = ", ".join(f"{name} {int(seen_P.sum())}" for name, seen_P in seen.items())
        raise ValueError(
            f"each of the {len(next(iter(seen.values())))} pairs has a prompt that one of the "
            f"models was trained on ({counts}): name pairs of other prompts, or fewer models"
        )
    return rows


def trained_sources(manifest: Manifest | ScalarManifest | None) -> frozenset[str]:
    """Returns the sources that a model was trained on; a gated one's ratings have sources too.

    Of a scorer without a record none is known.
    """
    if manifest is None:
        return frozenset()
    if isinstance(manifest, ScalarManifest):
        return frozenset(manifest.sources)
    return frozenset[str]().union(*(kind["by_source"] for kind in manifest.data.values()))


def ensemble(rows: Sequence[ScoredRow], deviations: Sequence[float]) -> ScoredRow:
    """Returns the mean of standardized scores; a model that scores all alike moves nothing.

    Args:
        rows: of the models.
        deviations: d_m of their scores.
    """
    margins = [
        row.margin_P / deviation if deviation else row.margin_P * 0
        for row, deviation in zip(rows, deviations, strict=True)
    ]
    sources = frozenset[str]().union(*(row.sources for row in rows))
    return ScoredRow(sources, float("nan"), np.mean(margins, axis=0))


def report_row(
    row: ScoredRow, pairs: PairTable, rows: Ints
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a model's metrics by source, and their means in domain, out of domain and over all.

    Args:
        row: the model.
        pairs: the pairs.
        rows: pairs that count.
    """
    margin, gap, key = row.margin_P[rows], pairs.gap_P[rows], pairs.split.key_N[rows]
    source = pairs.source_P[rows]
    per_source: dict[str, Any] = {}
    for name in sorted(set(source)):
        at = source == name
        metrics = scaled_metrics(margin[at], 1 / row.temperature, gap[at], key[at])
        per_source[str(name)] = metrics | {"trained_on": name in row.sources}
    means: dict[str, Any] = {}
    for kind, kept in (("in_domain", {True}), ("out_of_domain", {False}), ("all", {True, False})):
        selected = {
            name: metrics for name, metrics in per_source.items() if metrics["trained_on"] in kept
        }
        means[kind] = {"num_sources": len(selected), **macro(selected)}
        if selected:
            at = np.isin(source.astype(str), list(selected))
            between = macro_interval(margin[at], gap[at], source[at], key[at])
            means[kind]["ci95_length_balanced"] = between["ci95"]
    return per_source, means

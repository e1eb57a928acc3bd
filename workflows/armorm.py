"""ArmoRM (arXiv 2406.12845) from files to an artefact, top to bottom.

    ratings, pairs -> ids, one split, quarantine
    -> depth and pooling on *select* -> embed
    -> ridge per objective (stage 1) -> objective values of the pairs, out of fold
    -> length penalties -> gate (stage 2), beside all that it has to beat
    -> artefact -> metrics, plots, page, MLflow

Where this differs from the paper:
1. Ridge has an intercept, and a penalty relative to rows and feature variance.
2. r_v is the predicted log length; lambda is bisected to a rank correlation of 0, of either sign.
3. In training the gate sees out-of-fold objective values and one feature per pair, and its
   softmax runs over objectives.
4. Splits are by prompt and shared by ratings and pairs; *select* chooses, *test* only reports.
5. Every objective is divided by the deviation of its ratings, so that a weight means the same for
   a binary and for a ten-point scale; predictions keep their shrinkage.
6. The gate starts at the best fixed weights, so that it has to learn only what prompts change.
7. `preference_objectives`: a Bradley-Terry head per pair source joins the rated objectives.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.embedder import Probed
from panoply.armorm.confident_errors import report_mistakes
from panoply.armorm.debias import Penalties
from panoply.config.armorm import ArmoRMConfig
from panoply.hub.artefact.model_card import write_card
from panoply.hub.backbone.backbone import resolve
from panoply.measure.calibration import reliability
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.types import Array
from workflows.cluster.artefact import LinearParts, save_artefact
from workflows.cluster.debias import PairValues, fit_penalties, report_debias
from workflows.cluster.embed import ActorPoolSpec, EmbeddingJob, embed
from workflows.cluster.feature_selection import FeatureSpec, choose_place
from workflows.cluster.ingest import Data, ingest
from workflows.cluster.objectives import Stage1, report_objectives, run_sums, solve, sums_tasks
from workflows.cluster.pair_features import (
    pair_arrays,
    pair_features,
    pair_values,
    preference_heads,
    with_preferences,
)
from workflows.cluster.planted import oracle_weights, report_planted, weight_correlation
from workflows.cluster.ray_cluster import (
    await_workers,
    check_or_write_config,
    connect,
    run_folder,
    store_root,
)
from workflows.cluster.scorers import (
    BIASED,
    FixedWeights,
    PairArrays,
    compare,
    fit_fixed,
    fit_logit_scale,
    fixed_margins,
    gate_margins,
    gate_weights,
    head_tasks,
    leave_one_out,
    load_gate,
    load_mlp,
    mlp_margins,
    report_pairs,
    train_heads,
    weights_by_domain,
)
from workflows.cluster.tracking import git_commit, open_tracker, write_json

COMPARED = (
    ("gate", "best_fixed"),
    ("gate", "best_fixed_per_source"),
    ("gate", "gate_mean"),
    ("gate", "gate_source_mean"),
    ("gate", "linear_bt"),
    ("gate", "mlp"),
)


def run_armorm(config: ArmoRMConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe; returns the metrics that it leaves in `OUT/metrics.json`.

    Args:
        config: the run.
        logger: told the steps, and shown the progress of long ones.

    Raises:
        ValueError, FileNotFoundError: unusable input, before anything expensive starts.
    """
    out = run_folder(config.out)
    resolve(config.backbone.model)
    tracker = open_tracker(config.experiment, out)
    check_or_write_config(out, "config.json", asdict(config))
    data = ingest(config, out / "data")
    check_or_write_config(
        out, "data.json", {name: found["id"] for name, found in data.summary.items()}
    )
    logger.info(f"data: {len(data.ratings.text_N):,} ratings, {len(data.pairs.gap_P):,} pairs")
    tags = {f"data.{name}": str(found["id"]) for name, found in data.summary.items()}
    with tracker.run(asdict(config), {"method": "armorm", **tags}, logger, model="armorm"):
        return train_and_measure(config, data, out, logger)


def train_and_measure(
    config: ArmoRMConfig, data: Data, out: Path, logger: RunLogger
) -> dict[str, Any]:
    """Fits the model to data that are read; leaves all of the run in its folder."""
    connect(config.num_workers)

    stage1, embedding, tried = fit_objectives(config, data, out, logger)
    values, heads = value_pairs(config, data, stage1, out / "pairs")
    penalties = fit_penalties(values, data.pairs.split.of("train"))
    arrays = pair_arrays(values, penalties, heads.features, out / "pairs")
    logger.info(f"debias: {len(values.names)} objectives freed of predicted length")

    tasks = head_tasks(data.pairs, config.gate, config.seed, leave_one_out=config.leave_one_out)
    train_heads(tasks, out / "pairs", config.num_workers, out / "train")
    logger.info(f"gate: {len(tasks)} heads trained")

    fixed = fit_fixed(data.pairs, arrays)
    margins, gates_PO = score_pairs(config, data, values, arrays, fixed)
    scales = {name: fit_logit_scale(margin, data.pairs) for name, margin in margins.items()}
    metrics = measure(data, values, penalties, margins, scales, gates_PO)
    metrics["objectives"] = report_objectives(
        data.ratings, stage1.store, stage1.rated, stage1.prompt_alone
    )
    if config.leave_one_out:
        metrics["leave_one_out"] = leave_one_out(data.pairs, arrays, arrays.folder, config.gate)
    metrics["layer_choice"] = [asdict(p) | {"chosen": p is stage1.place} for p in tried]
    metrics["embedding"] = embedding | stage1.backbone_summary
    metrics["data"], metrics["git_commit"] = dict(data.summary), git_commit()
    parts = LinearParts(stage1, heads.weights_KF, penalties, fixed)
    metrics["artefact"] = save_artefact(config, data, parts, values, arrays, scales, out)
    write_json(out / "metrics.json", metrics)
    odds = gates_PO[1] * scales["gate"], arrays.difference_PO
    mistakes = report_mistakes(*odds, values.names, data.pairs, data.texts.pairs[0])
    write_json(out / "mistakes.json", mistakes)
    write_card(out / "model")
    write_report(out)
    return metrics


def tell_backbone(probed: Probed, logger: RunLogger) -> None:
    """Says how the backbone computes, where that is not the exact or the fast way."""
    if probed.drift:
        logger.info(f"backbone: {probed.config.dtype}, features drift {probed.drift:.1%} at most")
    if not probed.shares_prefixes:
        logger.info("backbone: takes no tree mask, so plain batches; shared prompts cost each time")


def fit_objectives(
    config: ArmoRMConfig, data: Data, out: Path, logger: RunLogger
) -> tuple[Stage1, dict[str, int], list[FeatureSpec]]:
    """Stage 1: choose where to read features, embed, sum, solve."""
    pool = ActorPoolSpec.of_cluster(config.num_workers, config.backbone.gpus)
    await_workers(pool.num_actors, pool.bundle, config.wait_minutes, logger)
    root = store_root(config.store)
    source = EmbeddingJob.open(config.backbone, root, pool, data.texts, out / "embedding")
    tell_backbone(source.probed, logger)
    place, tried = choose_place(
        data.ratings, data.texts, source, config.objectives, config.seed, logger
    )
    logger.info(f"features: layer {place.depth}, {place.pooling}")
    store, counts = embed(data.texts, source, (place.depth,), logger)
    tasks = sums_tasks(
        data.ratings,
        data.pairs,
        store,
        place.columns,
        f"gate_{place.depth}",
        config.objectives,
        str(out / "sums"),
    )
    run_sums(tasks, config.num_workers, out / "train")
    num = len(data.ratings.objectives)
    rated, length, alone = (
        solve(task, n, config.objectives) for task, n in zip(tasks, (num, 1, num), strict=True)
    )
    if config.objectives.verbosity:
        length = rated.only(data.ratings.objectives.index(config.objectives.verbosity))
    logger.info(f"objectives: {num} fitted")
    train = data.ratings.split.of("train")
    unit_O = np.nanstd(data.ratings.labels_NO[train], axis=0)
    unit_O = np.where(unit_O > 0, unit_O, 1.0)
    return Stage1(source.probed, place, store, rated, length, alone, unit_O), counts, tried


@dataclass(frozen=True, slots=True)
class PairHeads:
    """Features of the pairs and the preference objectives read from them."""

    features: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    weights_KF: Array


def value_pairs(
    config: ArmoRMConfig, data: Data, stage1: Stage1, folder: Path
) -> tuple[PairValues, PairHeads]:
    """Predicts every objective for both responses of every pair."""
    gate_column = f"gate_{stage1.place.depth}"
    features = pair_features(stage1.store, data.pairs, stage1.place.columns, gate_column, folder)
    values = pair_values(
        stage1.rated,
        stage1.length,
        stage1.store,
        data.pairs,
        data.ratings.objectives,
        stage1.unit_O,
    )
    if not config.preference_objectives:
        return values, PairHeads(features, np.empty((0, features[0].shape[1])))
    names, weights_KF, extra = preference_heads(
        data.pairs, features[0], features[1], config.objectives.num_folds
    )
    return with_preferences(values, names, extra), PairHeads(features, weights_KF)


def score_pairs(
    config: ArmoRMConfig, data: Data, values: PairValues, arrays: PairArrays, fixed: FixedWeights
) -> tuple[dict[str, Array], tuple[Array, Array]]:
    """Returns the margins `[P]` of every scorer, and g(x) `[P, O]` of the gates on r and on r'."""
    pairs, difference = data.pairs, arrays.difference_PO
    gate, biased = (load_gate(arrays.folder, n, arrays, config.gate) for n in ("gate", BIASED))
    weights_PO, scale = gate_weights(gate, arrays.gate_PD), float(gate.scale)
    margins = fixed_margins(fixed, arrays, pairs.source_P)
    margins |= gate_margins(weights_PO, scale, difference, pairs.source_P, pairs.split.of("train"))
    margins["mlp"] = mlp_margins(load_mlp(arrays.folder, arrays), arrays)
    if data.truth is not None:
        oracle_PO = oracle_weights(data.truth, values.names, pairs.domain_P)
        margins["oracle"] = (oracle_PO * difference).sum(1)
    biased_PO = gate_weights(biased, arrays.gate_PD) * float(biased.scale)
    return margins, (biased_PO, weights_PO * scale)


def measure(
    data: Data,
    values: PairValues,
    penalties: Penalties,
    margins: dict[str, Array],
    scales: dict[str, float],
    gates_PO: tuple[Array, Array],
) -> dict[str, Any]:
    """Metrics of debiasing, of all scorers and of the gate, on *test*."""
    pairs, names = data.pairs, values.names
    train, test = pairs.split.of("train"), pairs.split.of("test")
    weights_PO = gates_PO[1]
    share_PO = weights_PO / weights_PO.sum(1, keepdims=True)
    metrics: dict[str, Any] = {
        "left_out": dict(data.left_out),
        "debias": report_debias(values, penalties, pairs, gates_PO),
        "pairs": report_pairs(margins, pairs, test, scales),
        "comparisons": compare(margins, pairs, test, COMPARED),
        "gate": {
            "scale": float(weights_PO[0].sum()),
            "weights_by_domain": weights_by_domain(share_PO, names, pairs.domain_P, test),
        },
        "reliability": {
            name: reliability(margins[name][test] * scales[name])
            for name in ("gate", "best_fixed", "linear_bt", "mlp")
        },
    }
    if data.truth is not None:
        deviation_O = values.debiased(penalties)[:, train].reshape(-1, len(names)).std(0)
        correlation = weight_correlation(
            data.truth, names, share_PO[test], pairs.domain_P[test], deviation_O
        )
        metrics["planted"] = report_planted(metrics["pairs"], correlation)
    return metrics

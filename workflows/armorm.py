"""ArmoRM (arXiv 2406.12845) from files to an artefact, top to bottom.

    ratings, pairs -> ids, one split, quarantine
    -> depth and pooling on *select* -> embed
    -> stage 1, a ridge per objective:   r_i = w_i . f(x, y) + b_i
    -> objective values of the pairs, out of fold
    -> length taken out:                 r'_i = r_i / u_i - lambda_i r_v
    -> stage 2, the gate:                R(x, y) = sum_i g_i(x) r'_i,  Bradley-Terry on pairs
    -> artefact -> metrics, plots, page, MLflow, beside all that the gate has to beat

`panoply.armorm` holds every step's mathematics; here they run on a cluster. Differences from the
paper:
1. Ridge has an intercept, and a penalty relative to rows and feature variance.
2. r_v is the predicted log length; lambda is bisected to a rank correlation of 0, of either sign.
3. In training the gate sees out-of-fold objective values and one feature per pair, and its
   softmax runs over objectives.
4. Splits are by prompt and shared by ratings and pairs; *select* chooses, *test* only reports.
5. Every objective is divided by the deviation u of its ratings, so that a weight means the same for
   a binary and for a ten-point scale; predictions keep their shrinkage.
6. The gate starts at the best fixed weights, so that it has to learn only what prompts change.
7. `preference_objectives`: a Bradley-Terry head per pair source joins the rated objectives.

Legend: `P` pairs, `O` objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from actors.fitters import fit_heads, write_sums
from panoply.armorm.baselines import (
    CONTROLS,
    RIVALS,
    FittedBaselines,
    PairInputs,
    accuracy_left_out,
    gate_margins,
    gate_weights,
)
from panoply.armorm.blocks import BlockSums, plan_blocks
from panoply.armorm.confident_errors import report_mistakes
from panoply.armorm.debias import length_penalties
from panoply.armorm.evaluation import report_debias, report_objectives
from panoply.armorm.feature_selection import FeatureSpec, rate_spec, sample_rows
from panoply.armorm.gated_head import assemble_head
from panoply.armorm.head_training import (
    HeadTask,
    apply_head,
    head_tasks,
    left_out_tasks,
    make_mlp,
)
from panoply.armorm.oracle import oracle_weights, report_planted, weight_correlation
from panoply.armorm.out_of_fold import FoldedRidge, Objectives, rating_units, training_folds
from panoply.armorm.pair_features import (
    PairFeatures,
    PairValues,
    fit_preferences,
    predict_pairs,
)
from panoply.armorm.training_data import TrainingData, read_training_data
from panoply.config.armorm import ArmoRMConfig
from panoply.data.features import StoredFeatures
from panoply.files import reading, whole_file, write_json
from panoply.hub.artefact.model_card import write_card
from panoply.hub.backbone.pretrained import load_renderer, resolve
from panoply.hub.door.checkpoint import read_tensors
from panoply.measure.calibration import reliability
from panoply.measure.pair_report import compare, fit_logit_scale, report_pairs, weights_by_domain
from panoply.model.gate import Gate, ScalarHead, make_gate
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.types import Array
from workflows.cluster.actor_pool import ActorPool
from workflows.cluster.artefact import FittedModel, save_artefact
from workflows.cluster.embed import EmbeddingJob, Workers, embed, open_workers
from workflows.cluster.local_pool import LocalPool
from workflows.cluster.ray_cluster import store_root
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers
from workflows.cluster.train import cpus_of_worker, run_train


@one_writer
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
    trackers = open_trackers(config, out)
    check_folder(out, config)
    renderer = load_renderer(config.backbone.model, config.backbone.rendering)
    data = read_training_data(config, out / "data", renderer.refusal, logger.info)
    ids = {name: str(summary["id"]) for name, summary in data.summary.items()}
    claim(out, config, ids)
    logger.info(f"data: {len(data.ratings.text_N):,} ratings, {len(data.pairs.gap_P):,} pairs")
    logger.info(data.pairs.split.describe("test", "pairs"))
    tags = {"method": "armorm", **{f"data.{name}": digest for name, digest in ids.items()}}
    files = {"ratings": config.ratings, "pairs": config.pairs}
    inputs = {kind: {**summary, "files": files[kind]} for kind, summary in data.summary.items()}
    with trackers.run(asdict(config), tags, logger, data=inputs, model=config.model_name):
        gpus, minutes = config.backbone.gpus, config.wait_minutes
        with open_workers(config.num_workers, logger, gpus, minutes) as workers:
            job = open_backbone(config, data, workers, out, logger)
            # Ray Train's workers start for longer than a run without a cluster computes: it trains
            # in this process and the pool, to the same results, to the bit for the ridges.
            is_local = isinstance(workers, LocalPool)
            training = replace(config, num_workers=0) if is_local else config
            return train_and_measure(training, data, job, out, logger)


def train_and_measure(
    config: ArmoRMConfig, data: TrainingData, job: EmbeddingJob, out: Path, logger: RunLogger
) -> dict[str, Any]:
    """Fits the model to data that are read; leaves all of the run in its folder."""
    pairs, train = data.pairs, data.pairs.split.of("train")

    # Stage 1: features from where objectives are predicted best, then a ridge per objective.
    spec, candidates = choose_features(config, data, job, logger)
    logger.stage(2, 5, "embed all texts")
    store, embedded = embed(data.texts, job, (spec.depth,), logger)
    if isinstance(job.workers, ActorPool):
        job.workers.free()  # Ray Train needs their CPUs
    texts = store.features("texts", data.ratings.text_N, spec.columns)
    prompts = store.features("prompts", data.ratings.prompt_N, (spec.gate_column,))
    objectives, prompt_alone = fit_objectives(config, data, texts, prompts, out, logger)
    logger.info(f"objectives: {len(objectives.names)} fitted")

    # Objective values of the pairs, by ridges that have not seen their prompts; length taken out.
    folder = out / "pairs"
    features = PairFeatures.read(store, pairs, spec.columns, spec.gate_column, folder)
    values, preferences = predict_pairs(objectives, features, pairs.split.fold_N), None
    if config.preference_objectives:
        preferences = fit_preferences(pairs, features, config.objectives.num_folds)
        values = preferences.beside(values)
    penalties = length_penalties(*values.stacked(train))
    inputs = PairInputs(features, values.debiased(penalties).difference())
    logger.info(f"debiased {len(values.names)} objectives against length")

    # Stage 2: the gate, beside everything that it is compared with.
    heads = train_heads(config, data, values, inputs, job, out, logger)
    logger.stage(5, 5, "save the model, measure and report")
    baselines = FittedBaselines.fit(pairs, inputs)
    margins = score_pairs(data, values.names, inputs, baselines, heads)
    scales = {name: fit_logit_scale(margin_P, pairs) for name, margin_P in margins.items()}
    head = assemble_head(objectives, preferences, penalties, heads.gate, values, train)
    model = FittedModel(spec, job.profile.config, values.names, head, baselines, heads.mlp)
    artefact = save_artefact(config, data, model, margins["gate"], scales, out / "model")

    gate_PO = gate_weights(heads.gate, features.gate_PD)
    gate_biased_PO = gate_weights(heads.gate_biased, features.gate_PD)
    scorers = report_scorers(data, margins, scales)
    metrics: dict[str, Any] = {
        **scorers,
        **report_gate(data, values.debiased(penalties), gate_PO, scorers["pairs"]),
        "left_out": dict(data.left_out),
        "debias": report_debias(values, penalties, pairs, gate_biased_PO, gate_PO),
        "objectives": report_objectives(
            data.ratings, texts, prompts, objectives.rated, prompt_alone
        ),
        "layer_choice": [asdict(each) | {"chosen": each is spec} for each in candidates],
        "embedding": embedded | job.profile.summary,
        "artefact": artefact,
        "data": dict(data.summary),
        "git_commit": git_commit(),
    }
    if config.leave_one_out:
        metrics["leave_one_out"] = accuracy_left_out(pairs, inputs, heads.without_source)
    write_json(out / "metrics.json", metrics)
    odds_PO = gate_PO * scales["gate"]
    mistakes = report_mistakes(
        odds_PO, inputs.difference_PO, values.names, pairs, data.texts.pairs[0]
    )
    write_json(out / "mistakes.json", mistakes)
    write_card(out / "model")
    write_report(out)
    return metrics


def open_backbone(
    config: ArmoRMConfig,
    data: TrainingData,
    workers: Workers,
    out: Path,
    logger: RunLogger,
) -> EmbeddingJob:
    """Measures how the backbone computes: on a worker of the cluster, or here."""
    logger.stage(1, 5, "choose depth and pooling")
    root, plans = store_root(config.store), out / "embedding"
    job = EmbeddingJob.open(config.backbone, root, workers, data.texts, plans)
    if job.profile.drift:
        dtype, drift = job.profile.config.dtype, job.profile.drift
        logger.info(f"backbone: {dtype}, features drift {drift:.1%} at most from float32")
    if not job.profile.shares_prefixes:
        logger.info(
            "backbone: model rejects tree masks, falling back to padded batches (no prefix sharing)"
        )
    return job


def choose_features(
    config: ArmoRMConfig, data: TrainingData, job: EmbeddingJob, logger: RunLogger
) -> tuple[FeatureSpec, list[FeatureSpec]]:
    """Returns the best of the candidate depths and poolings, and all of them with their ratings.

    A third of the sampled prompts is from *select*, the others from *train*.
    """
    depths, poolings = job.profile.depths, config.backbone.poolings
    candidates = [FeatureSpec(depth, pooling) for depth, pooling in product(depths, poolings)]
    if len(candidates) > 1:
        ratings, num_prompts = data.ratings, config.backbone.sample_prompts
        train, select = sample_rows(ratings, num_prompts, config.seed)
        prompts = frozenset(ratings.prompt_N[np.concatenate([train, select])])
        store, _ = embed(data.texts, job, depths, logger, prompts=prompts)
        strengths = config.objectives.strengths
        rate = partial(
            rate_spec, ratings=ratings, train=train, select=select, store=store, strengths=strengths
        )
        # Two at most, since each holds the sums of its features.
        with ThreadPoolExecutor(min(2, cpus_of_worker(config.num_workers))) as pool:
            candidates = list(pool.map(rate, candidates))
    best = candidates[0] if len(candidates) == 1 else max(candidates, key=lambda c: c.spearman)
    logger.info(f"features: layer {best.depth}, {best.pooling}")
    return best, candidates


def fit_objectives(
    config: ArmoRMConfig,
    data: TrainingData,
    texts: StoredFeatures,
    prompts: StoredFeatures,
    out: Path,
    logger: RunLogger,
) -> tuple[Objectives, FoldedRidge]:
    """Fits stage 1: sums per block on Ray Train, then all ridges.

    Log length needs no raters, so it is learned from the texts of ratings and pairs alike.

    Args:
        config: the run.
        data: its data.
        texts: features of the rated responses.
        prompts: features of their prompts.
        out: folder of the run.
        logger: receives the stage.

    Returns:
        The objectives, and the same fitted to the prompts' features alone.
    """
    logger.stage(3, 5, "fit a ridge per objective")
    ratings, pairs, settings = data.ratings, data.pairs, config.objectives
    fold_N, fold_P = training_folds(ratings.split), training_folds(pairs.split)
    all_ids = np.concatenate([ratings.text_N, pairs.chosen_P, pairs.rejected_P])
    all_texts = texts.store.features("texts", all_ids, texts.columns)
    lengths = np.concatenate([ratings.length_N, pairs.chosen_length_P, pairs.rejected_length_P])
    log_length_N1 = np.log1p(lengths)[:, None]
    length_fold_N = np.concatenate([fold_N, fold_P, fold_P])

    rows, folder = settings.block_rows, str(out / "sums")
    rated_sums = BlockSums(plan_blocks(ratings.labels_NO, fold_N, texts, rows), folder)
    prompt_sums = BlockSums(plan_blocks(ratings.labels_NO, fold_N, prompts, rows), folder)
    length_sums = BlockSums(plan_blocks(log_length_N1, length_fold_N, all_texts, rows), folder)
    all_sums = (rated_sums, length_sums, prompt_sums)
    if unsolved := [sums for sums in all_sums if not sums.solution_file(settings).exists()]:
        planned = {"sums": unsolved, "num_cpus": cpus_of_worker(config.num_workers)}
        run_train(write_sums, planned, config.num_workers, out / "train", "sums")

    num_rated = len(ratings.objectives)
    with ThreadPoolExecutor(cpus_of_worker(config.num_workers)) as pool:
        solve = partial(BlockSums.solve, config=settings)
        rated, length, prompt_alone = pool.map(solve, all_sums, (num_rated, 1, num_rated))
    if settings.verbosity:
        length = rated.only(ratings.objectives.index(settings.verbosity))
    unit_O = rating_units(ratings.labels_NO[ratings.split.of("train")])
    return Objectives(ratings.objectives, rated, length, unit_O), prompt_alone


@dataclass(frozen=True, slots=True)
class TrainedHeads:
    """The gate and the heads that it is compared with."""

    gate: Gate
    gate_biased: Gate
    """Trained on r, which still holds length."""
    mlp: ScalarHead
    without_source: Mapping[str, Gate]
    """Gates trained without one pair source each."""


def train_heads(
    config: ArmoRMConfig,
    data: TrainingData,
    values: PairValues,
    inputs: PairInputs,
    job: EmbeddingJob,
    out: Path,
    logger: RunLogger,
) -> TrainedHeads:
    """Trains all heads, data-parallel on Ray Train or side by side in local processes.

    What is already saved is kept.
    """
    logger.stage(4, 5, "train the gate and what it is compared with")
    folder = out / "pairs"
    arrays = {"difference": inputs.difference_PO, "biased": values.difference()}
    for name, array in arrays.items():
        with whole_file(folder / f"{name}.npy") as partial:
            np.save(partial, array.astype(np.float32))
    tasks = head_tasks(data.pairs, config.gate, config.seed)
    left_out: dict[str, HeadTask] = {}
    if config.leave_one_out:
        left_out = left_out_tasks(data.pairs, config.gate, config.seed)
    all_tasks = [*tasks.values(), *left_out.values()]
    heads = {
        "folder": str(folder.absolute()),
        "tasks": all_tasks,
        "pool": job.workers if isinstance(job.workers, LocalPool) else None,
    }
    run_train(fit_heads, heads, config.num_workers, out / "train", "heads-pairs")
    logger.info(f"gate: {len(all_tasks)} heads trained")

    def load_gate(task: HeadTask) -> Gate:
        gate = make_gate(inputs.features.gate_PD.shape[1], len(values.names), config.gate)
        file = folder / f"{task.name}.safetensors"
        with reading(file):
            gate.load_state_dict(read_tensors(file))
        return gate.eval().requires_grad_(False)

    mlp, file = make_mlp(inputs.features.chosen_PF.shape[1]), folder / "mlp.safetensors"
    with reading(file):
        mlp.load_state_dict(read_tensors(file))
    return TrainedHeads(
        gate=load_gate(tasks["gate"]),
        gate_biased=load_gate(tasks["gate-biased"]),
        mlp=mlp.eval().requires_grad_(False),
        without_source={source: load_gate(task) for source, task in left_out.items()},
    )


def score_pairs(
    data: TrainingData,
    names: tuple[str, ...],
    inputs: PairInputs,
    baselines: FittedBaselines,
    heads: TrainedHeads,
) -> dict[str, Array]:
    """Returns the margins `[P]` of every scorer."""
    pairs, features = data.pairs, inputs.features
    margins = baselines.margins(inputs, pairs.source_P)
    gate_PO = gate_weights(heads.gate, features.gate_PD)
    train = pairs.split.of("train")
    margins |= gate_margins(gate_PO, inputs.difference_PO, pairs.source_P, train)
    chosen_P = apply_head(heads.mlp, features.chosen_PF)
    margins["mlp"] = chosen_P - apply_head(heads.mlp, features.rejected_PF)
    if data.truth is not None:
        oracle_PO = oracle_weights(data.truth, names, pairs.domain_P)
        margins["oracle"] = (oracle_PO * inputs.difference_PO).sum(1)
    return margins


def report_scorers(
    data: TrainingData, margins: Mapping[str, Array], scales: Mapping[str, float]
) -> dict[str, Any]:
    """Returns the metrics of all scorers on *test*, and those of the gate beside its rivals."""
    test = data.pairs.split.of("test")

    def beside(names: Iterable[str]) -> list[tuple[str, str]]:
        return [("gate", name) for name in names]

    return {
        "pairs": report_pairs(margins, data.pairs, test, scales),
        "comparisons": compare(margins, data.pairs, test, beside((*RIVALS, *CONTROLS))),
        "reliability": {
            name: reliability(margins[name][test] * scales[name]) for name in ("gate", *RIVALS)
        },
    }


def report_gate(
    data: TrainingData, debiased: PairValues, gate_PO: Array, pair_metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the gate's weights by domain, and in the planted world how near they are to it."""
    pairs, names, test = data.pairs, debiased.names, data.pairs.split.of("test")
    share_PO = gate_PO / gate_PO.sum(1, keepdims=True)
    domains = weights_by_domain(share_PO, names, pairs.domain_P, test)
    metrics: dict[str, Any] = {
        "gate": {"scale": float(gate_PO[0].sum()), "weights_by_domain": domains}
    }
    if data.truth is not None:
        deviation_O = debiased.stacked(pairs.split.of("train"))[0].std(0)
        correlation = weight_correlation(
            data.truth, names, share_PO[test], pairs.domain_P[test], deviation_O
        )
        metrics["planted"] = report_planted(pair_metrics, correlation)
    return metrics

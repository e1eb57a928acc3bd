"""Preference training from files to a calibrated reward model, top to bottom.

    1. pairs (x, y+, y-) of sources s = 1..K -> ids, one split, quarantine -> token trees
    2. in each step, on a batch of pairs, with heads R on the backbone pi:
           L_s = mean over the pairs of s of  L_BT + alpha L_policy     (HaF-RM, arXiv 2407.04185)
           L_BT = -log sigma( R(x, y+) - R(x, y-) ),   L_policy = DPO or SFT
           g_s = grad of L_s with respect to the head,   m_s <- (1 - a) m_s + a g_s
           lambda = argmin over the simplex || sum_s lambda_s m_s / ||m_s|| ||^2
           L = sum_s lambda_s L_s,   AdamW on grad L                    (MORE, arXiv 2312.07401)
    3. temperature T on *calibrate*:  P(y+ > y- | x) = sigma( (R(x, y+) - R(x, y-)) / T )
    4. artefact; metrics on *test*, plots, MLflow

Where this differs from the papers' code:
1. Rewards are read at the last token of each response's own render, never at a pad position.
2. lambda is solved from the gradients of all pairs of a step, over all workers; momentum is real.
3. The best step, if any is kept, is chosen on *select*; *test* only reports.
4. The head does not start at zero, so that the backbone has a gradient from the first step on.
5. Plain mixing, with the same pairs, steps and rates, is trained beside MORE, and both are shown
   raw and with a temperature: a smaller margin alone also lowers a calibration error.
6. The model before training stands beside the trained one: its head, and, where it is a language
   model, its log-probability of the response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.reward_trainer import PairRows, TrainTask, train_reward_models
from actors.training_loop import DONE, PROGRESS, STOPPED
from panoply.armorm.confident_errors import report_mistakes
from panoply.config import as_dict
from panoply.config.members import pooled_rule
from panoply.config.preference import Mixed, More, PreferenceConfig
from panoply.files import read_json, write_json
from panoply.hub.artefact.manifest import ScalarManifest
from panoply.hub.artefact.members import load_adapter_members, save_adapter_members
from panoply.hub.artefact.model_card import write_card
from panoply.hub.artefact.round_trip import check_round_trip
from panoply.hub.artefact.scalar import load_scalar_model, save_scalar_model
from panoply.hub.backbone.pretrained import resolve
from panoply.hub.policy.trainable import load_trainable
from panoply.measure.pair_report import compare
from panoply.preference.checkpoint import CHECKPOINTS, load_tensors
from panoply.report.progress import RunError, RunLogger
from panoply.report.report import write_report
from panoply.report.results.preference import EQUAL_MIXING
from workflows.cluster.polled_bar import polled_bar
from workflows.cluster.preference_results import (
    MAIN,
    PLAIN,
    TRAIN_AGAIN,
    TrainedRun,
    baselines,
    calibrate,
    fitted_scale,
    measure,
    measured_rows,
    summary,
)
from workflows.cluster.prepare_pairs import Preferences, read_pairs, tokenize, training_rows
from workflows.cluster.ray_cluster import (
    await_workers,
    bundle_of_worker,
    connect,
    store_root,
)
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers
from workflows.cluster.train import run_train


@one_writer
def run_preference(config: PreferenceConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        ValueError, FileNotFoundError: unusable input, before anything expensive starts.
        RunError: a loss or gradient was not finite; the batch is saved.
    """
    out = run_folder(config.out)
    resolve(config.backbone.model)
    trackers = open_trackers(config, out)
    check_folder(out, config)
    preferences = read_pairs(config, out / "data", logger)
    claim(out, config, {"pairs": preferences.summary["id"]})
    tags = {"method": "preference", "data.pairs": str(preferences.summary["id"])}
    data = {"pairs": {**preferences.summary, "files": config.pairs}}
    run = trackers.run(
        as_dict(config), tags, logger, data=data, model=config.model_name, steps=MAIN
    )
    with run:
        return train_and_measure(config, preferences, out, logger)


def train_and_measure(
    config: PreferenceConfig, preferences: Preferences, out: Path, logger: RunLogger
) -> dict[str, Any]:
    """Trains the models on pairs that are read; leaves all of the run in its folder.

    Raises:
        ValueError: no pair is left to train on.
        RunError: a loss or gradient was not finite; the batch is saved.
    """
    # 1. Pairs to token trees.
    logger.stage(1, 3, "render the pairs")
    tokens, cut = tokenize(config, preferences, out / "data" / "tokens.parquet", logger)
    rows, sources, statistics = training_rows(config, preferences, tokens)
    num_train, num_pairs = len(rows.train), len(rows.source_P)
    logger.info(f"data: {num_train:,} of {num_pairs:,} pairs to train on: {', '.join(sources)}")
    logger.info(preferences.table.split.describe("test", "pairs"))
    if isinstance(config.weighting, More) and config.weighting.is_equal_mixing(len(sources)):
        logger.info(EQUAL_MIXING)

    # 2. The model of the configuration, and plain mixing beside MORE.
    logger.stage(2, 3, "train")
    tasks = make_tasks(config, rows, preferences, out)
    train(tasks, config, statistics["num_steps"], out / "train", logger)
    trained = {name: TrainedRun.read(Path(task.folder)) for name, task in tasks.items()}

    # 3. and 4. Temperatures on *calibrate*; metrics on *test*, and the artefact.
    logger.stage(3, 3, "calibrate, measure and save the model")
    models = ensembles(config, trained)
    scales, margins = calibrate(models, preferences)
    margins |= (others := baselines(tasks[MAIN], preferences))
    scales |= {name: fitted_scale(margin_P, preferences) for name, margin_P in others.items()}
    metrics = measure(margins, scales, preferences)
    rivals = [(MAIN, name) for name in (PLAIN, *others) if name in margins]
    test = preferences.table.split.of("test")
    metrics["comparisons"] = compare(margins, preferences.table, test, rivals)
    metrics["training"] = {name: summary(model, sources) for name, model in trained.items()}
    metrics["data"] = {"pairs": dict(preferences.summary) | cut | statistics}
    metrics["git_commit"] = git_commit()
    if config.loss.reward:
        metrics["artefact"] = save_artefact(
            config, tasks, models[MAIN], scales[MAIN], sources, preferences, out
        )

    write_json(out / "metrics.json", metrics)
    history = {name: model.history for name, model in trained.items()}
    write_json(out / "history.json", history)
    odds_P1 = margins[MAIN][:, None]
    mistakes = report_mistakes(
        np.full_like(odds_P1, scales[MAIN]), odds_P1, [MAIN], preferences.table, preferences.path
    )
    write_json(out / "mistakes.json", mistakes)
    if config.loss.reward:
        write_card(out / "model")
    write_report(out)
    return metrics


def make_tasks(
    config: PreferenceConfig, rows: PairRows, preferences: Preferences, out: Path
) -> dict[str, TrainTask]:
    """Returns the models to train, that of the configuration first; plain mixing beside MORE.

    Members with adapters or layers of their own are a model each: they differ by the seed of what
    is drawn and of the order of the pairs.
    """
    task = TrainTask(
        config=config,
        pairs=rows,
        tokens=str(out / "data" / "tokens.parquet"),
        names=preferences.names,
        folder=str(out / "train" / MAIN),
        store=store_root(config.store),
        threads=0 if config.num_workers <= 1 else 1,
        untrained=measured_rows(preferences),
        keeps_scores=config.rule != "mean",
    )
    if config.members != "heads":
        members: dict[str, TrainTask] = {}
        for k in range(config.num_heads):
            name = f"member-{k + 1}" if k else MAIN
            members[name] = replace(
                task,
                config=replace(config, num_heads=1, rule="mean", seed=config.seed + k),
                folder=str(out / "train" / name),
                is_member=config.num_heads > 1,
                untrained=np.arange(0) if k else task.untrained,
            )
        return members
    if not isinstance(config.weighting, More):
        return {MAIN: task}
    # Before training, both are the same model.
    plain = replace(
        task,
        config=replace(config, weighting=Mixed()),
        folder=str(out / "train" / PLAIN),
        untrained=np.arange(0),
    )
    return {MAIN: task, PLAIN: plain}


def train(
    tasks: Mapping[str, TrainTask],
    config: PreferenceConfig,
    num_steps: int,
    run: Path,
    logger: RunLogger,
) -> None:
    """Trains the models on Ray Train, on as many workers as there are.

    Raises:
        RunError: a loss or gradient was not finite.
    """
    folders = [Path(task.folder) for task in tasks.values()]
    for folder in folders:
        (folder / STOPPED).unlink(missing_ok=True)
    total = num_steps * len(folders)

    def saved() -> int:
        return sum(_steps_saved(folder, num_steps) for folder in folders)

    logger.resume_point = lambda: f"step {saved():,} of {total:,}"
    if saved():
        logger.info(f"training: going on from step {saved():,} of {total:,}")
    gpus = 0.0
    if config.num_workers:
        connect(config.num_workers)
        bundle = bundle_of_worker(config.num_workers, config.gpus)
        await_workers(config.num_workers, bundle, config.wait_minutes, logger)
        gpus = bundle["GPU"]

    progress = [Progress.of(name, Path(task.folder)) for name, task in tasks.items()]

    def steps_done() -> int:
        return sum(model.read(num_steps, logger) for model in progress)

    with polled_bar(logger, "training", total, steps_done):
        loop = {"tasks": list(tasks.values())}
        run_train(train_reward_models, loop, config.num_workers, run, "preference", gpus=gpus)
    for folder in folders:
        if (folder / STOPPED).exists():
            reason = read_json(folder / STOPPED)["reason"]
            raise RunError(
                f"{reason}: training stopped before it changed a parameter. The batch is in "
                f"{folder}/nonfinite-*.json; lower `schedule.lr`, or look at those pairs"
            )


@dataclass(slots=True)
class Progress:
    """The progress of a model that workers train, as its folder shows it."""

    name: str
    folder: Path
    num_logged: int
    """Steps that trackers have."""
    is_over: bool = False

    @classmethod
    def of(cls, name: str, folder: Path) -> Progress:
        """Returns the progress of an earlier try, whose steps trackers have."""
        return cls(name, folder, _progress_of(folder).get("step", 0))

    def read(self, num_steps: int, logger: RunLogger) -> int:
        """Returns the number of steps done, and logs those that are new.

        Where patience ended training early, all steps count as done.
        """
        if self.is_over:
            return num_steps
        rows: list[dict[str, Any]]
        if (file := self.folder / DONE).exists():
            rows, self.is_over = read_json(file)["history"], True
        else:
            rows = _progress_of(self.folder).get("rows", [])
        new = [row for row in rows if row["step"] >= self.num_logged]
        logger.log_steps(self.name, new)
        self.num_logged = max([self.num_logged, *(row["step"] + 1 for row in new)])
        return num_steps if self.is_over else self.num_logged


def _progress_of(folder: Path) -> dict[str, Any]:
    """Returns the steps of a model that trains; none where the file is absent or damaged.

    Nothing but the bar and the trackers' live steps reads that file.
    """
    try:
        return read_json(folder / PROGRESS)
    except (FileNotFoundError, ValueError):
        return {}


def _steps_saved(folder: Path, num_steps: int) -> int:
    """Returns the step from which a model would be trained on."""
    if (folder / DONE).exists():
        return num_steps
    numbers = [int(file.stem.rpartition("-")[2]) for file in folder.glob(CHECKPOINTS)]
    return max(numbers, default=0)


def ensembles(config: PreferenceConfig, trained: Mapping[str, TrainedRun]) -> dict[str, TrainedRun]:
    """Returns the models that runs are of: members that are trained apart are one model."""
    rule = pooled_rule(config.rule, config.caution)
    models = dict(trained)
    if config.members != "heads":
        models = {MAIN: TrainedRun.joined(list(trained.values()))}
    return {name: replace(model, rule=rule) for name, model in models.items()}


def save_artefact(
    config: PreferenceConfig,
    tasks: Mapping[str, TrainTask],
    model: TrainedRun,
    scale: float,
    sources: Sequence[str],
    preferences: Preferences,
    out: Path,
) -> dict[str, Any]:
    """Saves `OUT/model` with its temperature; compares its scores with those of training.

    Raises:
        RuntimeError: the saved model scores differently.
    """
    split = preferences.table.split
    trainable = load_trainable(config.backbone, num_heads=config.num_heads, seed=config.seed)
    settings = as_dict(config)
    manifest = ScalarManifest(
        rendering=config.backbone.rendering,
        temperature=1 / scale if scale else float("inf"),
        seed=config.seed,
        template_hash=trainable.renderer.template_hash,
        bos=tuple(trainable.renderer.bos),
        backbone=config.backbone.model,
        depth=trainable.num_layers,
        dtype=str(trainable.dtype).removeprefix("torch."),
        sources=tuple(sources),
        data={"pairs": dict(preferences.summary)},
        method={name: settings[name] for name in ("loss", "weighting", "schedule", "backbone")},
        centers=model.centers,
        scales=model.scales,
        members=config.members,
        rule=config.rule,
        caution=config.caution,
    )

    folder, drift = out / "model", 0.0
    seen = list(split.key_N[split.part_N != "test"])
    apart = config.members != "heads"
    folders = [Path(task.folder) for task in tasks.values()] if apart else [model.folder]
    # A torn file is told also where the model was saved before.
    params = [load_tensors(each / "trained.pt", TRAIN_AGAIN) for each in folders]
    if folder.exists():
        pass
    elif apart:
        save_adapter_members(trainable, params, manifest, folder, seen)
    else:
        # A frozen language-model head, which a policy loss had beside it, is no part of the model.
        names = {name for name, _ in trainable.net.named_parameters()}
        kept = {name: value for name, value in params[0].items() if name in names}
        trainable.net.load_state_dict(kept, strict=False)
        heads_KD = trainable.net.head.weight.detach()
        drift = save_scalar_model(
            trainable.backbone(), trainable.renderer, heads_KD, manifest, folder, seen
        )
    # In bfloat16 what lies below the trained part was rounded: the bound finds wrong parameters.
    bound = 1e-3 if trainable.dtype == torch.float32 else 0.5
    load = load_scalar_model if config.members == "heads" else load_adapter_members
    saved, test = load(folder), split.of("test")
    round_trip = check_round_trip(folder, saved, preferences.path, test, model.margin_P, bound)
    return {
        "drift": drift,
        "temperature": manifest.temperature,
        "round_trip_drift": round_trip,
    }

"""LASeR (arXiv 2410.01735): a policy is trained by the reward models that a bandit chooses.

    for round m = 1 .. M:
      select   arm of each prompt x <- the bandit, from x's context and its state at the start
      sample   y_1 .. y_n ~ pi_m(. | x)
      score    the chosen arm, on samples that are there while others are drawn
      pair     i-th best against i-th worst response of the same prompt, i = 1 .. P
      train    pi_m+1 <- one pass over the pairs:  L = L_DPO(pi, pi_ref) + alpha L_NLL
      reward   a signal of the pass (-L in the paper)
      update   the bandit, by the reward
    evaluate on held-out prompts before, every few rounds, and after

All files of a round are in OUT/STRATEGY/NNN, decisions and rewards in OUT/STRATEGY/log. A step
whose file is there is read and not repeated, so the same command goes on after any death, to the
numbers of a run that nothing disturbed.

Where this differs from the paper and its code:
1. Winner and loser answer the same prompt, and the loss is DPO with a reference that differs from
   the policy: the policy at the start of an iteration of several rounds.
2. Quantiles of the reward are over a window, and other signals than -L can be applied; all are
   logged.
3. The context is of a frozen model, the policy's start, so it does not drift while it learns.
4. A held-out verdict decides what is better. Baselines have the same prompts, samples, updates.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.policy_round import PolicyRound, PolicyTask, RankedPrompt
from actors.server_sampler import check_server
from panoply.config import as_dict
from panoply.config.laser import CLASSIFIER, NEEDS_CALIBRATION, ORACLE, ROUTER, LaserConfig
from panoply.data.schema import digest
from panoply.data.tasks import Task, rounds_of, split_held_out
from panoply.hub.backbone.pretrained import load_renderer, resolve
from panoply.laser.ensembles import best_arms, chosen_scores
from panoply.laser.log import Log
from panoply.laser.pairs import build_pairs
from panoply.laser.rollout import Rollout
from panoply.laser.signals import PromptOutcome
from panoply.report.progress import RunLogger
from panoply.types import Array
from workflows.cluster.bandit_actor import BanditHandle, bandit_actor
from workflows.cluster.calibration import Calibration, calibrate
from workflows.cluster.gold_pairs import judged_gold_pairs, read_gold_pairs
from workflows.cluster.keys import endpoint_variables
from workflows.cluster.laser_results import StrategyRun, finish
from workflows.cluster.policy import ROUND_FILE, train_round
from workflows.cluster.prompt_contexts import prompt_contexts
from workflows.cluster.ray_cluster import aborts_when_stopped, connect
from workflows.cluster.rollouts import (
    RolloutCollector,
    model_cpus,
    open_collector,
    ranked_prompts,
    read_prompts,
    resolved_scorers,
)
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import open_trackers
from workflows.cluster.train import cpus_of_worker


@dataclass(frozen=True, slots=True)
class RunContext:
    """Parts of a run that all strategies share."""

    config: LaserConfig
    out: Path
    train: list[Task]
    held_out: list[Task]
    contexts: Mapping[str, Array]
    """Contexts of unit length, by prompt id."""
    collector: RolloutCollector
    calibration: Calibration
    gold_pairs: tuple[RankedPrompt, ...]
    logger: RunLogger

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms."""
        return self.config.arms.names

    def rounds(self) -> list[list[Task]]:
        """Returns the prompts of all rounds, which are the same for all strategies."""
        c = self.config
        return list(rounds_of(self.train, c.prompts_per_round, c.num_rounds, c.seed))


@one_writer
def run_laser(config: LaserConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        ValueError, OSError: unusable input, before anything expensive starts.
        RunError: a loss or gradient was not finite.
    """
    # Everything that can be wrong is looked up first.
    out = run_folder(config.out)
    resolve(config.backbone.model)
    check_server(config.server)
    trackers = open_trackers(config, out)
    scorers = resolved_scorers(config.arms, config.prompts)
    train, calibration_tasks, held_out = split_prompts(config)
    next(rounds_of(train, config.prompts_per_round, 1, config.seed))
    check_folder(out, config)
    gold_pairs: tuple[RankedPrompt, ...] = ()
    if config.gold_pairs:
        refusal = load_renderer(config.backbone.model, config.backbone.rendering).refusal
        gold_pairs = read_gold_pairs(config, out, [*train, *held_out], refusal, logger)
    first = config.strategies[0]  # its policy is exported, so it stays the first
    labels = [str(task.label) for task in [*train, *calibration_tasks, *held_out]]
    data_ids = {
        "first strategy": first,
        "labels": digest(*labels),
        "gold texts": digest(*(text for pair in gold_pairs for text in pair.responses)),
        "train": [task.prompt_id for task in train],
        "calibration": [task.prompt_id for task in calibration_tasks],
        "held_out": [task.prompt_id for task in held_out],
        "gold_pairs": [pair.prompt_id for pair in gold_pairs],
    }
    claim(out, config, data_ids)
    logger.info(
        f"prompts: {len(train):,} to train on, {len(calibration_tasks):,} to calibrate on, "
        f"{len(held_out):,} held out, {sorted({task.source for task in train})}"
    )

    tags, model = {"method": "laser"}, config.model_name
    with trackers.run(as_dict(config), tags, logger, model=model, steps=first):
        num_cpus = model_cpus(scorers) + config.num_samplers + config.num_workers + 1
        keys = [*endpoint_variables(scorers), config.server.key_variable]
        is_alone = connect(num_cpus, keys) and not ray.cluster_resources().get("GPU")
        num_stages = 2 + len(config.strategies)
        logger.stage(1, num_stages, "compute the prompts' contexts")
        prompts = [*train, *calibration_tasks, *held_out]
        contexts = prompt_contexts(config, prompts, out, is_alone=is_alone)
        with aborts_when_stopped(), open_collector(config, scorers, str(out)) as collector:
            logger.stage(2, num_stages, "sample and score the calibration prompts")
            calibration = calibrate(config, out, calibration_tasks, train, contexts, collector)
            if not gold_pairs:
                gold_pairs = judged_gold_pairs(config, calibration.rollouts)
            if gold_pairs:
                num_pairs = sum(len(ranked.pairs) for ranked in gold_pairs)
                logger.info(f"gold pairs: {num_pairs:,}")
            context = RunContext(
                config, out, train, held_out, contexts, collector, calibration, gold_pairs, logger
            )
            runs: dict[str, StrategyRun] = {}
            for number, strategy in enumerate(config.strategies, 3):
                logger.stage(number, num_stages, f"train a policy by {strategy}")
                runs[strategy] = run_strategy(strategy, context)
        return finish(config, runs, train, out)


def run_strategy(strategy: str, context: RunContext) -> StrategyRun:
    """Trains the policy of one strategy; rounds that are done already are only read."""
    config, folder = context.config, context.out / strategy.replace(":", "-")
    run = StrategyRun(strategy, context.arms, folder)
    run.num_scored = context.calibration.num_scores if strategy in NEEDS_CALIBRATION else 0
    run.add_evaluation(0, evaluate(context, context.out / "start", 0, "", context.arms))
    earlier: list[Rollout] = []
    adapter = reference = ""
    with open_bandit(strategy, context, folder) as bandit:
        for round, tasks in enumerate(context.rounds()):
            round_folder = folder / f"{round:03d}"
            point = f"round {round + 1} of {config.num_rounds} of {strategy}"
            context.logger.resume_point = partial(str, point)
            if round % config.rounds_per_iteration == 0:
                reference = adapter
            if bandit is not None and (alarm := bandit.stop_request(round)):
                run.stopped = f"round {round}: {alarm.name}: {alarm.message}"
                context.logger.info(f"{strategy}: stopped before {run.stopped}")
                break

            # Select an arm for each prompt, then sample and score.
            selected = select(strategy, context, bandit, round, tasks)
            samples = round_folder / "samples.parquet"
            sampled = context.collector.collect(
                samples,
                selected,
                config.num_samples,
                round,
                adapter,
                used=(round_folder / ROUND_FILE).exists(),
            )

            # Pair, and train on the pairs. A round of ties leaves the policy as it is.
            rollouts = rank_and_pair(strategy, context, sampled, earlier)
            earlier += sampled
            update = train_on_pairs(context, round_folder, round, rollouts, adapter, reference)
            adapter = str(update.adapter) if update else adapter

            # Evaluate, since the gain on held-out prompts can be the reward.
            is_last = round + 1 == config.num_rounds
            if is_last or (round + 1) % config.evaluate_every == 0:
                scorers = context.arms if is_last else ()
                run.add_evaluation(
                    round + 1, evaluate(context, folder, round + 1, adapter, scorers)
                )

            # Reward the bandit, which updates it.
            if bandit is not None:
                gain = run.held_out_gain(round)
                bandit.end(round, outcomes(rollouts, context.arms, update, gain))
            run.add_round(round, rollouts, update)
            context.logger.log_steps(strategy, run.rows[-1:])
            context.logger.info(f"{strategy}: {run.line}")
    run.adapter = adapter
    return run


def split_prompts(config: LaserConfig) -> tuple[list[Task], list[Task], list[Task]]:
    """Returns the prompts to train on, those to calibrate on, and those held out.

    Raises:
        ValueError: nothing is left to train on.
    """
    tasks, num = read_prompts(config), config.num_calibration_prompts
    rest, held_out = split_held_out(tasks, config.prompts.num_held_out, config.seed)
    if num >= len(rest):
        raise ValueError(
            f"`num_calibration_prompts` is {num}, but {len(rest)} prompts are not held out"
        )
    return rest[num:], rest[:num], held_out  # in the order of a hash


def evaluate(
    context: RunContext, folder: Path, num_rounds: int, adapter: str, scorers: tuple[str, ...]
) -> list[Rollout]:
    """Returns judged samples of the held-out prompts, scored by some arms, after some rounds."""
    if not context.held_out:
        return []
    config = context.config
    return context.collector.collect(
        folder / f"held-out-{num_rounds:03d}.parquet",
        [Rollout(task=task, scorers=scorers) for task in context.held_out],
        config.num_samples,
        config.num_rounds + 1,  # the same random numbers at every evaluation
        adapter,
        used=any(context.out.glob("*/log/rewards-*")),
    )


@contextmanager
def open_bandit(strategy: str, context: RunContext, folder: Path) -> Generator[BanditHandle | None]:
    """Starts the bandit of a strategy, yields it, and ends it; yields None where it has none."""
    selector = context.config.selector_of(strategy)
    if selector is None:
        yield None
        return
    log, num_features = str(folder / "log"), len(next(iter(context.contexts.values())))
    prior_KD = context.calibration.prior_KD if strategy == ROUTER else None
    with bandit_actor(selector, context.arms, num_features, log, prior_KD) as actor:
        alarms = context.config.alarms
        yield BanditHandle(actor, Log(log, context.arms), alarms, context.contexts)


def select(
    strategy: str,
    context: RunContext,
    bandit: BanditHandle | None,
    round: int,
    tasks: Sequence[Task],
) -> list[Rollout]:
    """Returns the prompts of a round with the arm of each, and the arms that score its samples."""
    chosen: Mapping[str, str] = {}
    if bandit is not None:
        chosen = bandit.begin(round, tasks)
    elif strategy == CLASSIFIER:
        chosen = context.calibration.routes
    rollouts: list[Rollout] = []
    for task in tasks:
        arm = chosen.get(task.prompt_id, "")
        alone = bool(arm) and not context.config.score_with_all_arms
        rollouts.append(Rollout(task=task, arm=arm, scorers=(arm,) if alone else context.arms))
    return rollouts


def rank_and_pair(
    strategy: str, context: RunContext, rollouts: Sequence[Rollout], earlier: Sequence[Rollout]
) -> list[Rollout]:
    """Returns the rollouts with the scores that the strategy ranks by, and the pairs by them.

    Args:
        strategy: name of the strategy.
        context: parts of the run.
        rollouts: rollouts of the round.
        earlier: rollouts of the rounds before, from which the oracle learns too.
    """
    best: dict[str, int] = {}
    if strategy == ORACLE:
        judged = [*earlier, *rollouts]
        best = best_arms([r.source for r in judged], [r.arm_aucs() for r in judged])
    ranked: list[Rollout] = []
    for rollout in rollouts:
        if rollout.arm:
            ranking_n = rollout.score_Kn[context.arms.index(rollout.arm)]
        elif strategy == ORACLE:
            ranking_n = rollout.score_Kn[best[rollout.source]]
        else:
            ranking_n = chosen_scores(strategy, rollout.score_Kn)
        pairs = build_pairs(rollout.responses, ranking_n, context.config.pairs_per_prompt)
        ranked.append(replace(rollout, ranking_n=ranking_n, pairs=pairs))
    return ranked


def train_on_pairs(
    context: RunContext,
    folder: Path,
    round: int,
    rollouts: Sequence[Rollout],
    start: str,
    reference: str,
) -> PolicyRound | None:
    """Returns the update by one pass over the pairs; None where there is no pair.

    Args:
        context: parts of the run.
        folder: folder of the round.
        round: number of the round.
        rollouts: prompts with their pairs.
        start: folder of the adapters that training goes on from; empty: new ones.
        reference: folder of the adapters of DPO's reference; empty: the model without any.
    """
    config, prompts = context.config, ranked_prompts(rollouts)
    if not prompts:
        return None
    task = PolicyTask(
        backbone=config.backbone,
        config=config.policy,
        prompts=prompts,
        seed=config.seed,
        round=round,
        start=start,
        reference=reference,
        folder=str(folder),
        threads=cpus_of_worker(config.num_workers),
        gold_pairs=context.gold_pairs,
    )
    return train_round(task, config.num_workers, config.gpus)


def outcomes(
    rollouts: Sequence[Rollout],
    arms: tuple[str, ...],
    update: PolicyRound | None,
    held_out_gain: float,
) -> list[PromptOutcome]:
    """Returns the measurements of each prompt of a round, for the bandit's reward."""
    by_prompt: dict[str, dict[str, float]] = {}
    if update:
        by_prompt = {name: update.by_prompt(name) for name in ("loss", "loss_after", "kl")}
    measured: list[PromptOutcome] = []
    for rollout in rollouts:
        training = {
            name: values[rollout.prompt_id]
            for name, values in by_prompt.items()
            if rollout.prompt_id in values
        }
        training["held_out_gain"] = held_out_gain
        if update:
            training["gold_margin_gain"] = update.gold_margin_gain(rollout.source)
        measured.append(rollout.outcome(arms, training))
    return measured

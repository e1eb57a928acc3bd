"""LASeR (arXiv 2410.01735): a policy is trained by the reward models that a bandit chooses.

    round by round, m of M:
      arms   <- the bandit, from the prompts' contexts and its state at the start of the round
      y_1..n ~  pi_m(. | x), scored by the chosen arm while others are still drawn
      pairs  =  i-th best against i-th worst response of the same prompt, i = 1 .. P
      pi_m+1 <- one pass over the pairs:  L = L_DPO(pi, pi_ref) + alpha L_NLL
      reward <- a signal of the pass (-L in the paper), to the bandit
    held-out prompts before, every few rounds, and behind all

Everything of a round stands in OUT/STRATEGY/NNN, decisions and rewards in OUT/STRATEGY/log. A step
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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.dpo_task import PolicyRound, PolicyTask, RankedPrompt
from actors.prompt_embeddings import prompt_states, unit_contexts
from actors.server_sampler import check_server
from panoply.config.laser import (
    CLASSIFIER,
    ORACLE,
    ROUTER,
    TAUGHT,
    VERIFIER,
    LaserConfig,
    PromptsConfig,
)
from panoply.config.serve import ServedModelConfig
from panoply.data.tasks import Task, read_tasks, rounds_of, split_held_out, synthetic_prompts
from panoply.hub.backbone.backbone import resolve
from panoply.laser.ensembles import best_arms, chosen_scores
from panoply.laser.log import Log
from panoply.laser.monitor import Alarm, alarms, orders, pauses, series
from panoply.laser.pairs import build_pairs
from panoply.laser.rewards import agreement, disagreement, verified
from panoply.laser.rounds import RoundPrompt
from panoply.laser.scored import ScoredPrompt
from panoply.laser.signals import PromptOutcome
from panoply.report.progress import RunLogger
from panoply.types import Array
from workflows.cluster.arms import asking
from workflows.cluster.bandit_actor import selecting
from workflows.cluster.gold_pairs import judged_probe, read_probe
from workflows.cluster.labeled import Labeled, labeled_of
from workflows.cluster.laser_results import StrategyRun, finish
from workflows.cluster.policy import train_round
from workflows.cluster.ray_cluster import (
    aborts_when_stopped,
    check_or_write_config,
    connect,
    run_folder,
)
from workflows.cluster.rollouts import sampler_pool
from workflows.cluster.samples import Rollouts
from workflows.cluster.tracking import open_tracker
from workflows.serve import pinned

CONTEXTS = "contexts.npz"
FREE = ("strategies", "watch", "num_samplers", "server", "num_workers", "gpus", "experiment")
"""Settings that a run may be continued with other values of; the first strategy is exported, and
stays."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all strategies of a run share."""

    config: LaserConfig
    out: Path
    arms: tuple[str, ...]
    train: list[Task]
    held_out: list[Task]
    contexts: Mapping[str, Array]
    """By prompt id, of unit length."""
    rollouts: Rollouts
    labeled: Labeled
    probe: tuple[RankedPrompt, ...]
    logger: RunLogger

    def rounds(self) -> list[list[Task]]:
        """Returns the prompts of all rounds, which are the same for all strategies."""
        c = self.config
        return list(rounds_of(self.train, c.prompts_per_round, c.num_rounds, c.seed))


def run_laser(config: LaserConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        ValueError, OSError: unusable input, before anything expensive starts.
        RuntimeError: a loss or gradient was not finite.
    """
    out = run_folder(config.out)
    resolve(config.backbone.model)
    check_server(config.server)
    tracker = open_tracker(config.experiment, out)
    arms = [pinned(arm) for arm in config.arms.arms()]
    judges = [*arms, *verifier_of(config.prompts)]
    train, labeled, held_out = tasks_of(config)
    next(rounds_of(train, config.prompts_per_round, 1, config.seed))
    own = {name: value for name, value in asdict(config).items() if name not in FREE}
    check_or_write_config(out, "config.json", own | {"first strategy": config.strategies[0]})
    probe = read_probe(config, out, [*train, *held_out]) if config.probe else ()
    parts = {"train": train, "labeled": labeled, "held_out": held_out, "probe": probe}
    check_or_write_config(
        out, "data.json", {n: [one.prompt_id for one in part] for n, part in parts.items()}
    )
    sizes = f"{len(train):,} to train on, {len(labeled):,} labeled, {len(held_out):,} held out"
    logger.info(f"prompts: {sizes}, {sorted({task.source for task in train})}")
    strategy = config.strategies[0]
    with tracker.run(asdict(config), {"method": "laser"}, logger, model="policy", steps=strategy):
        connect(cpus_of(arms) + config.num_samplers + config.num_workers + 1)
        contexts = contexts_of(config, [*train, *labeled, *held_out], out / CONTEXTS)
        with ExitStack() as stack:
            stack.enter_context(aborts_when_stopped())
            asked = stack.enter_context(asking(judges, config.arms.timeout, str(out)))
            backbone = config.backbone
            pool = stack.enter_context(
                sampler_pool(
                    config.num_samplers,
                    backbone.model,
                    config.sampling,
                    backbone.rendering,
                    dtype=backbone.dtype,
                    gpus=config.gpus,
                    server=config.server,
                )
            )
            rows, verifies = config.sampling.rows, bool(config.prompts.verifier)
            rollouts = Rollouts(pool, rows, asked, config.arms.names, verifies, config.seed)
            taught = labeled_of(config, out, labeled, train, contexts, rollouts)
            probe = probe or judged_probe(config, labeled, taught.scored)
            if probe:
                logger.info(f"probe: {sum(len(one.pairs) for one in probe):,} trusted pairs")
            arms = config.arms.names
            world = RunContext(
                config, out, arms, train, held_out, contexts, rollouts, taught, probe, logger
            )
            courses = {name: run_strategy(name, world) for name in config.strategies}
        return finish(config, courses, world.train, out)


def run_strategy(strategy: str, world: RunContext) -> StrategyRun:
    """Trains the policy of one strategy; what it has done already is only read."""
    config = world.config
    folder = world.out / strategy.replace(":", "-")
    course = StrategyRun(strategy, world.arms, folder)
    course.num_scored = world.labeled.num_scores if strategy in TAUGHT else 0
    adapter = reference = ""
    course.look(0, held_out(world, world.out / "start", 0, ""))
    with choosing(strategy, world, folder) as choose:
        known = Known(world.arms)
        for round, tasks in enumerate(world.rounds()):
            if round % config.rounds_per_iteration == 0:
                reference = adapter
            if choose is not None and (stop := choose.asks_to_stop(round)):
                course.paused = f"round {round}: {stop.name}: {stop.message}"
                world.logger.info(f"{strategy}: paused before {course.paused}")
                break
            chosen = choose.begin(round, tasks) if choose is not None else {}
            if strategy == CLASSIFIER:
                chosen = {task.prompt_id: world.labeled.routes[task.prompt_id] for task in tasks}
            place = folder / f"{round:03d}"
            scored = world.rollouts.scored(
                place / "samples.parquet",
                tasks,
                config.n,
                arms_asked(chosen, world),
                round,
                adapter,
            )
            ranking = ranked(strategy, scored, chosen, known)
            prompts = paired(scored, ranking, tasks, config.num_pairs)
            trained = train(world, place, round, prompts, adapter, reference) if prompts else None
            adapter = str(trained.adapter) if trained else adapter
            last = round + 1 == config.num_rounds
            if last or (round + 1) % config.evaluate_every == 0:
                course.look(round + 1, held_out(world, folder, round + 1, adapter, last=last))
            if choose is not None:
                gain = course.gain(round)
                choose.end(round, outcomes(scored, chosen, ranking, trained, gain, world))
            course.add(round, scored, chosen, prompts, trained)
            world.logger.info(f"{strategy}: {course.line}")
    course.adapter = adapter
    return course


def tasks_of(config: LaserConfig) -> tuple[list[Task], list[Task], list[Task]]:
    """Returns the prompts to train on, those that are labeled, and those held out.

    Raises:
        ValueError: nothing is left to train on.
    """
    tasks, num = all_tasks(config.prompts, config.seed), config.num_labeled
    rest, held_out = split_held_out(tasks, config.prompts.num_held_out, config.seed)
    if num >= len(rest):
        raise ValueError(f"`num_labeled` is {num}, but {len(rest)} prompts are not held out")
    return rest[num:], rest[:num], held_out  # in the order of a hash


def all_tasks(config: PromptsConfig, seed: int) -> list[Task]:
    """Returns the prompts of a file, or made ones."""
    return read_tasks(config.file) if config.file else synthetic_prompts(config.num_made, seed)


def cpus_of(arms: Sequence[ServedModelConfig]) -> int:
    """Returns the CPUs that the models among the arms may take."""
    scaled = [arm.scaling for arm in arms if arm.kind == "model"]
    return int(np.ceil(sum(one.cpus * one.max_replicas for one in scaled)))


def verifier_of(config: PromptsConfig) -> list[ServedModelConfig]:
    """Returns the verifier as an arm, where there is one."""
    return (
        [pinned(ServedModelConfig(name=VERIFIER, where=config.verifier))] if config.verifier else []
    )


def contexts_of(config: LaserConfig, tasks: Sequence[Task], file: Path) -> dict[str, Array]:
    """Returns the context of each prompt, computed once in a run."""
    if not file.exists():
        backbone = config.backbone
        embed = ray.remote(prompt_states).options(num_cpus=1, num_gpus=config.gpus)
        prompts = [task.prompt for task in tasks]
        asked = embed.remote(
            backbone.model, config.context_depth, backbone.rendering, backbone.dtype, prompts
        )
        states = ray.get(asked)
        center = states.mean(0)
        partial = file.with_suffix(".part.npz")
        np.savez(partial, contexts=unit_contexts(states, center), center=center)
        partial.replace(file)
    found = np.load(file, allow_pickle=False)["contexts"]
    return {task.prompt_id: row for task, row in zip(tasks, found, strict=True)}


def held_out(
    world: RunContext, folder: Path, looks: int, adapter: str, *, last: bool = False
) -> list[ScoredPrompt]:
    """Returns samples of the held-out prompts; all arms score them before and behind all."""
    arms = world.arms if last or not looks else ()
    return (
        world.rollouts.scored(
            folder / f"held-out-{looks:03d}.parquet",
            world.held_out,
            world.config.n,
            lambda _: arms,
            world.config.num_rounds + 1,  # the same random numbers at every look
            adapter,
        )
        if world.held_out
        else []
    )


@dataclass(slots=True)
class BanditHandle:
    """A bandit's actor, and the watch over its log."""

    world: RunContext
    actor: Any
    log: Log
    told: list[Alarm] = field(default_factory=list[Alarm])

    def asks_to_stop(self, round: int) -> Alarm | None:
        """Returns the alarm that asks for the run to stop before a round that has not begun."""
        status: Any = ray.get(self.actor.status.remote())
        self.told = []
        if status.round == round and not status.is_open:
            curves = series(self.log.read())
            self.told = alarms(curves, self.world.arms, self.world.config.alarms)
        return next(iter(pauses(self.told)), None)

    def begin(self, round: int, tasks: Sequence[Task]) -> dict[str, str]:
        """Returns the arm of each prompt."""
        contexts = self.world.contexts
        prompts = [RoundPrompt(t.prompt_id, t.source, contexts[t.prompt_id]) for t in tasks]
        asked = self.actor.begin_round.remote(round, prompts, orders(self.told))
        return {decision.prompt_id: decision.arm for decision in ray.get(asked)}

    def end(self, round: int, outcomes: Sequence[PromptOutcome]) -> None:
        """Tells what came of the round."""
        ray.get(self.actor.end_round.remote(round, outcomes))


@contextmanager
def choosing(strategy: str, world: RunContext, folder: Path) -> Generator[BanditHandle | None]:
    """Yields the bandit of a strategy, or None where it has none."""
    selector = world.config.selector_of(strategy)
    if selector is None:
        yield None
        return
    size, log = len(next(iter(world.contexts.values()))), str(folder / "log")
    prior_KD = world.labeled.prior_KD if strategy == ROUTER else None
    with selecting(selector, world.arms, size, log, prior_KD) as actor:
        yield BanditHandle(world, actor, Log(log, world.arms))


@dataclass(slots=True)
class Known:
    """What an oracle has been told of the arms: how well each ordered right above wrong so far."""

    arms: tuple[str, ...]
    sources: list[str] = field(default_factory=list[str])
    verified: list[list[float]] = field(default_factory=list[list[float]])

    def best(self, scored: Sequence[ScoredPrompt]) -> dict[str, int]:
        """Takes in a round, and returns the best arm of each source."""
        for one in scored:
            self.sources.append(one.source)
            self.verified.append([verified(row, one.verdict_n) for row in one.score_Kn])
        return best_arms(self.sources, self.verified)


def arms_asked(chosen: Mapping[str, str], world: RunContext) -> Any:
    """Returns what says which arms score the responses to a prompt."""
    if not chosen or world.config.score_all:
        return lambda _: world.arms
    return lambda prompt_id: (chosen[prompt_id],)


def ranked(
    strategy: str, scored: Sequence[ScoredPrompt], chosen: Mapping[str, str], known: Known
) -> dict[str, Array]:
    """Returns what each prompt's responses are ranked by."""
    if chosen:
        return {s.prompt_id: s.score_Kn[known.arms.index(chosen[s.prompt_id])] for s in scored}
    if strategy == ORACLE:
        best = known.best(scored)
        return {s.prompt_id: s.score_Kn[best[s.source]] for s in scored}
    return {s.prompt_id: chosen_scores(strategy, s.score_Kn) for s in scored}


def paired(
    scored: Sequence[ScoredPrompt],
    ranking: Mapping[str, Array],
    tasks: Sequence[Task],
    num_pairs: int,
) -> list[RankedPrompt]:
    """Returns the prompts that have a pair, in the order of their ids."""
    prompts = {task.prompt_id: task.prompt for task in tasks}
    found: list[RankedPrompt] = []
    for one in scored:
        pairs = build_pairs(one.responses, ranking[one.prompt_id], num_pairs).pairs
        if pairs:
            prompt = prompts[one.prompt_id]
            found.append(RankedPrompt(one.prompt_id, prompt, one.responses, one.ended, pairs))
    return found


def train(
    world: RunContext,
    place: Path,
    round: int,
    prompts: Sequence[RankedPrompt],
    start: str,
    reference: str,
) -> PolicyRound:
    """Returns what one pass over the pairs left, which starts from the adapters of `start`."""
    config = world.config
    task = PolicyTask(
        backbone=config.backbone,
        config=config.policy,
        prompts=tuple(prompts),
        seed=config.seed,
        round=round,
        start=start,
        reference=reference,
        folder=str(place),
        threads=1 if config.num_workers > 1 else 0,
        probe=world.probe,
    )
    return train_round(task, config.num_workers, config.gpus)


def outcomes(
    scored: Sequence[ScoredPrompt],
    chosen: Mapping[str, str],
    ranking: Mapping[str, Array],
    trained: PolicyRound | None,
    gain: float,
    world: RunContext,
) -> list[PromptOutcome]:
    """Returns what was measured of each prompt of a round, as the selector is told."""
    columns = ("loss", "loss_after", "kl")
    of = {n: trained.by_prompt(n) for n in columns} if trained else {}
    found: list[PromptOutcome] = []
    for one in scored:
        arm, name = world.arms.index(chosen[one.prompt_id]), one.prompt_id
        score_n = ranking[name]
        known = score_n[np.isfinite(score_n)]
        alone = {n: values[name] for n, values in of.items() if name in values}
        together = world.config.score_all
        found.append(
            PromptOutcome(
                prompt_id=name,
                **alone,
                probe_gain=trained.probe_gain(one.source) if trained else float("nan"),
                held_out_gain=gain,
                verifier=verified(score_n, one.verdict_n),
                agreement=agreement(one.score_Kn, arm) if together else float("nan"),
                disagreement=disagreement(one.score_Kn) if together else float("nan"),
                proxy=float(known.mean()) if len(known) else float("nan"),
                length=float(np.mean([len(text) for text in one.responses])),
                well_formed=float(np.mean(one.ended)),
                failure="" if len(known) else one.failures.get(chosen[name], ""),
            )
        )
    return found

"""LASeR's whole loop among four reward models of ours: `python -m evidence.laser_loop --json F`.

    prompts that can be checked  -> half for the arms, half for the policy
    arms    <- four Bradley-Terry reward models, each on right against wrong responses of its own
               domains alone (`ARMS`), so that each is right there and has no reason to be elsewhere
    policy  <- SmolLM2-135M-Instruct by `workflows.laser`, once for each strategy and seed, on the
               same prompts with the same number of rounds, samples and steps
    figures <- share of right responses to held-out prompts, before and after

The bandit is rewarded as in the paper, by the negative loss; `laser_verified` is the same bandit
rewarded by the verifier, and no other strategy reads a verdict. A seed moves which prompts are held
out, their order, the samples and every draw; the arms are the same.

How well each arm orders right above wrong responses is measured on the held-out prompts before
training. `replayed` takes the loop's bandit through those prompts in many orders, with that as its
reward: what it learns of these arms where nothing else is in the way. Everything stands in
`--folder`, and what is there is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.harness import run, write_figures
from jobs.recipes import FUNCTIONS, PREFERENCE
from panoply.bandit.bandits import LinUCB
from panoply.config import Rendering
from panoply.config.bandit import SelectorConfig
from panoply.config.laser import (
    ArmsConfig,
    BestOfNConfig,
    LaserConfig,
    PromptsConfig,
    SampledPolicyConfig,
)
from panoply.config.policy import PolicyConfig, SamplingConfig
from panoply.config.preference import (
    LastLayers,
    PreferenceConfig,
    ScheduleConfig,
    TrainedBackboneConfig,
)
from panoply.synthetic.verifiable import DOMAINS, verifiable_prompts
from panoply.types import Array

ARMS: dict[str, tuple[str, ...]] = {
    "terse": ("brief", "plain"),
    "wordy": ("long",),
    "listing": ("list",),
    "asking": ("question", "words"),
}
"""What each reward model was trained on."""
NUM_PROMPTS = 480
NUM_SAMPLES = 8
"""Of each prompt of the arms."""
MOST_PAIRS = 4
"""Of a prompt of the arms."""
ARMS_SEED = 3
"""The first with which each part of each arm's pairs, which are of few prompts, has at least 8."""
BANDIT = LinUCB(alpha=1.0, max_features=16)
NUM_ORDERS = 200
"""Of the held-out prompts, in `replayed`."""
SAMPLING = SamplingConfig(max_tokens=80, batch_size=24)
RENDERING = Rendering(max_prompt_tokens=64, max_response_tokens=96)
STRATEGIES = ("laser", "laser_verified", "random", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Args(harness.Options):
    """What is run."""

    folder: str = "runs/laser-loop"
    seeds: tuple[int, ...] = (0, 1, 2)
    num_rounds: int = 6
    prompts_per_round: int = 12
    n: int = 4
    num_held_out: int = 36
    strategies: tuple[str, ...] = STRATEGIES


def write_prompts(folder: Path) -> tuple[Path, Path]:
    """Writes the prompts of the arms and those of the policy, as many of each domain in both."""
    made = verifiable_prompts(NUM_PROMPTS, seed=0)
    num = len(DOMAINS)
    files = folder / "prompts-arms.jsonl", folder / "prompts-policy.jsonl"
    for half, file in enumerate(files):
        own = [one for i, one in enumerate(made) if i // num % 2 == half]
        rows = [{"prompt": o.prompt, "label": o.label, "source": o.domain} for o in own]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def sampled(prompts: Path, folder: Path) -> list[dict[str, Any]]:
    """Returns samples of the start policy with the verifier's word, a row a prompt."""
    from panoply.report.progress import RunLogger
    from workflows.best_of_n import run_best_of_n

    out = folder / "samples"
    config = BestOfNConfig(
        out=str(out),
        prompts=PromptsConfig(file=str(prompts), num_held_out=0),
        arms=FUNCTIONS,
        num_samples=(1, NUM_SAMPLES),
        backbone=SampledPolicyConfig(rendering=RENDERING),
        sampling=SAMPLING,
        num_samplers=2,
        experiment="laser-loop",
    )
    if not (out / "metrics.json").exists():
        run_best_of_n(config, RunLogger())
    turns = {one.prompt_id: one.prompt for one in verifiable_prompts(NUM_PROMPTS, seed=0)}
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    return [row | {"prompt": turns[row["prompt_id"]]} for row in rows]


def write_pairs(rows: Sequence[Mapping[str, Any]], domains: Sequence[str], file: Path) -> int:
    """Writes pairs of a right and a wrong response to each prompt of some domains."""
    pairs: list[dict[str, Any]] = []
    for row in rows:
        if row["source"] not in domains:
            continue
        told = dict(zip(row["responses"], row["verdicts"], strict=True))  # each text once
        right = [text for text, verdict in told.items() if verdict == 1]
        wrong = [text for text, verdict in told.items() if verdict == 0]
        both = [(a, b) for a in right for b in wrong]
        rng = np.random.default_rng(len(pairs))
        for place in sorted(rng.permutation(len(both))[:MOST_PAIRS]):
            a, b = both[place]
            common = {"prompt": row["prompt"], "source": row["source"]}
            pairs.append(common | {"chosen": a, "rejected": b})
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return len(pairs)


def arm_config(file: Path, out: Path, store: Path) -> PreferenceConfig:
    """Returns how an arm is trained: the last layers of a half backbone, and a head."""
    return replace(
        PREFERENCE["pairs"][1],
        out=str(out),
        pairs=(str(file),),
        seed=ARMS_SEED,
        backbone=TrainedBackboneConfig(
            trained=LastLayers(num_last=2), depth=0.6, rendering=RENDERING
        ),
        schedule=ScheduleConfig(
            pairs_per_step=16, num_epochs=4, lr=2e-4, head_lr=1e-3, keep_best=True
        ),
        num_workers=0,
        store=str(store),
        experiment="laser-loop",
    )


def train_arms(rows: Sequence[Mapping[str, Any]], folder: Path) -> ArmsConfig:
    """Trains the arms, and returns where they are."""
    from panoply.report.progress import RunLogger
    from workflows.preference import run_preference

    places: list[str] = []
    for name, domains in ARMS.items():
        file, out = folder / f"pairs-{name}.jsonl", folder / f"arm-{name}"
        num = write_pairs(rows, domains, file)
        if not (out / "metrics.json").exists():
            print(f"{name}: {num} pairs of {', '.join(domains)}")
            run_preference(arm_config(file, out, folder / "store"), RunLogger())
        places.append(f"{name}={out / 'model'}")
    return ArmsConfig(models=tuple(places))


def loop_config(args: Args, seed: int, arms: ArmsConfig, prompts: Path) -> LaserConfig:
    """Returns the run of a seed: one pair of each prompt, two steps a round."""
    return LaserConfig(
        out=str(Path(args.folder) / f"seed-{seed}"),
        prompts=PromptsConfig(file=str(prompts), num_held_out=args.num_held_out),
        arms=arms,
        num_samples=args.n,
        pairs_per_prompt=1,
        num_rounds=args.num_rounds,
        prompts_per_round=args.prompts_per_round,
        rounds_per_iteration=2,
        evaluate_every=args.num_rounds,
        selector=SelectorConfig(bandit=BANDIT, seed=seed),
        backbone=TrainedBackboneConfig(rendering=RENDERING),
        policy=PolicyConfig(lr=2e-4, prompts_per_step=6),
        sampling=SAMPLING,
        strategies=args.strategies,
        num_samplers=2,
        seed=seed,
        experiment="laser-loop",
    )


def by_prompt(args: Args, seed: int, strategy: str, looks: int) -> dict[str, float]:
    """Returns the share of right responses to each held-out prompt after some rounds."""
    from panoply.laser.rollout import read_rollouts

    place = Path(args.folder) / f"seed-{seed}" / strategy
    scored = read_rollouts(place / f"held-out-{looks:03d}.parquet", tuple(ARMS))
    return {one.prompt_id: one.quality for one in scored}


def outcomes(args: Args) -> dict[str, Any]:
    """Returns what each strategy came to: by seed, in all, and against the others."""
    from panoply.measure.intervals import percentiles, resampled_sums

    names = args.strategies
    quality: dict[str, list[float]] = {name: [] for name in ("start", *names)}
    prompts: list[str] = []
    for seed in args.seeds:
        start = by_prompt(args, seed, "start", 0)
        prompts += start
        quality["start"] += start.values()
        for name in names:
            after = by_prompt(args, seed, name, args.num_rounds)
            quality[name] += [after[prompt] for prompt in start]
    seeds = np.repeat(args.seeds, args.num_held_out)

    def told(values: Sequence[float]) -> dict[str, Any]:
        terms = np.column_stack([np.asarray(values), np.ones(len(values))])
        sums = resampled_sums(terms, prompts)
        return {
            "value": float(np.mean(values)),
            "ci95": percentiles(sums[:, 0] / sums[:, 1]),
            "by_seed": [float(np.mean(np.asarray(values)[seeds == seed])) for seed in args.seeds],
        }

    def less(name: str, other: str) -> dict[str, Any]:
        return told(np.subtract(quality[name], quality[other]).tolist())

    return {
        "quality": {name: told(values) for name, values in quality.items()},
        "gain": {name: less(name, "start") for name in names},
        "laser_less": {name: less("laser", name) for name in names if name != "laser"},
    }


class Known(NamedTuple):
    """What is known of a held-out prompt before any training."""

    prompt_id: str
    domain: str
    context_H: Array
    order_K: list[float]
    """How well each arm orders right above wrong responses; NaN where all are alike."""


def known_of_arms(args: Args) -> list[Known]:
    """Returns what is known of the held-out prompts of all seeds, whose samples differ."""
    from panoply.laser.rollout import read_rollouts
    from workflows.cluster.prompt_contexts import CONTEXTS

    found: list[Known] = []
    for seed in args.seeds:
        run = Path(args.folder) / f"seed-{seed}"
        parts = json.loads((run / "data.json").read_text())
        ids = [id for part in ("train", "calibration", "held_out") for id in parts[part]]
        contexts = dict(zip(ids, np.load(run / CONTEXTS)["contexts"], strict=True))
        for one in read_rollouts(run / "start" / "held-out-000.parquet", tuple(ARMS)):
            found.append(Known(one.prompt_id, one.source, contexts[one.prompt_id], one.arm_aucs()))
    return found


def by_domain(known: Sequence[Known]) -> dict[str, dict[str, float]]:
    """Returns how well each arm orders in each domain."""
    of = {d: np.nanmean([one.order_K for one in known if one.domain == d], 0) for d in DOMAINS}
    return {arm: {d: float(of[d][k]) for d in DOMAINS} for k, arm in enumerate(ARMS)}


def replayed(known: Sequence[Known]) -> dict[str, Any]:
    """Returns how well the arms that bandits choose order, each prompt once, in many orders."""
    from evidence.planted_arms import figure, walk
    from panoply.bandit.bandits import Uniform
    from panoply.laser.ensembles import best_arms

    told = [one for one in known if np.isfinite(one.order_K).all()]
    order_NK, domains = np.array([one.order_K for one in told]), [one.domain for one in told]
    rng = np.random.default_rng(0)
    orders_RN = np.stack([rng.permutation(len(told)) for _ in range(NUM_ORDERS)])
    policies = {"linucb": (BANDIT, None), "uniform": (Uniform(), None)}
    contexts_NH = np.stack([one.context_H for one in told])
    walked, _ = walk(policies, order_NK, contexts_NH, orders_RN)
    best = best_arms(domains, order_NK)
    of_best_N = np.array([row[best[d]] for row, d in zip(order_NK, domains, strict=True)])
    walked["best arm of the domain, in hindsight"] = np.stack([of_best_N, of_best_N], 1)
    keys = [one.prompt_id for one in told]
    return {name: figure([own_N2], key_N=keys) for name, own_N2 in walked.items()}


def order_of_chosen(args: Args) -> dict[str, list[float]]:
    """Returns by seed how well the arms that were chosen order right above wrong in training."""
    from panoply.laser.log import Log, column

    found: dict[str, list[float]] = {}
    for name in args.strategies:
        logs = [Path(args.folder) / f"seed-{seed}" / name / "log" for seed in args.seeds]
        if all(log.is_dir() for log in logs):  # an ensemble chooses no arm
            records = [Log(str(log), tuple(ARMS)).read() for log in logs]
            found[name] = [float(np.nanmean(column(r.rewards, "verifier"))) for r in records]
    return found


def mean_shares(choices: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns each arm's share of the prompts of each domain, the mean over seeds."""
    return {
        domain: {
            arm: float(np.mean([one["shares_by_source"][domain][arm] for one in choices]))
            for arm in ARMS
        }
        for domain in DOMAINS
    }


def show(found: Mapping[str, Any]) -> None:
    """Prints what came out."""
    from rich.console import Console

    from panoply.report.section import interval, number
    from panoply.report.terminal import add_row, empty_table

    console = Console()
    table = empty_table("How well an arm orders right above wrong", "arm", tuple(DOMAINS))
    for arm, own in found["arms"].items():
        add_row(table, arm, *(number(own[domain], 2) for domain in DOMAINS))
    console.print(table)
    columns = ("right", "gain", "95 %", "by seed", "laser less this", "95 %")
    table = empty_table("Held-out prompts after training", "strategy", columns)
    add_row(table, "start", number(found["quality"]["start"]["value"]), *[""] * 5)
    for name, gain in found["gain"].items():
        less = found["laser_less"].get(name)
        add_row(
            table,
            name,
            number(found["quality"][name]["value"]),
            number(gain["value"], signed=True),
            interval(gain["ci95"], signed=True),
            ", ".join(number(value, signed=True) for value in gain["by_seed"]),
            number(less["value"], signed=True) if less else "",
            interval(less["ci95"], signed=True) if less else "",
        )
    console.print(table)
    for name, order in found["order_of_chosen"].items():
        told = ", ".join(number(value) for value in order)
        console.print(f"{name}: its chosen arms order right above wrong, by seed: {told}")
    columns = ("order", "95 %", "second half", "95 %")
    table = empty_table("Replayed with the order as the reward", "who chooses", columns)
    for name, own in found["replayed"].items():
        both = number(own["value"]), interval(own["ci95"])
        late = number(own["second_half"]), interval(own["second_half_ci95"])
        add_row(table, name, *both, *late)
    console.print(table)
    for name, shares in found["shares"].items():
        table = empty_table(
            f"Share of the prompts that got each arm ({name})", "domain", tuple(ARMS)
        )
        for domain, own in shares.items():
            add_row(table, domain, *(number(own[arm], 2) for arm in ARMS))
        console.print(table)


def main(args: Args) -> None:
    """Runs what is not there, and prints and writes the figures."""
    from panoply.report.progress import RunLogger
    from workflows.laser import run_laser

    folder = Path(args.folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for_arms, for_policy = write_prompts(folder)
    arms = train_arms(sampled(for_arms, folder), folder)
    runs = {
        seed: run_laser(loop_config(args, seed, arms, for_policy), RunLogger())
        for seed in args.seeds
    }
    known = known_of_arms(args)
    found: dict[str, Any] = outcomes(args) | {
        "arms": by_domain(known),
        "replayed": replayed(known),
        "order_of_chosen": order_of_chosen(args),
        "shares": {
            name: mean_shares([run["choices"][name] for run in runs.values()])
            for name in args.strategies
            if all(name in run["choices"] for run in runs.values())
        },
        "runs": {str(seed): run for seed, run in runs.items()},
    }
    show(found)
    write_figures(args.json, found)


if __name__ == "__main__":
    run(main, Args)

"""Members of one recipe in best of n, judged by gold: `python -m evidence.members --json FILE`.

Two worlds, five members each. In the *planted* one gold is standard normal and a member's score is
gold and an error of its own, of deviation 3 on a tenth of the responses and .5 on the others. In
the *trained* one members are Bradley-Terry heads (`panoply.preference.in_memory`), fitted to pairs
of the planted world (20 % of the labels are wrong) that are drawn anew with replacement for each
member, with an initialization of its own. A head reads the attributes of a response in its domain,
which are all that gold depends on, and 32 surface features, which say nothing and are six times as
large on a tenth of the responses: there a head is far from what it was fitted to. A single member
is the mean over the members, each by itself.

For each rule and n the figure is the expected gold of the best of n, in deviations of gold
(`panoply.measure.best_of_n`). Figures are means over draws of a world with their 95 % intervals.
`turn` is gold at the largest n less its maximum over n: below 0, more samples made the choice
worse.

Shapes: K members, N responses, P pairs, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from benchmarks import harness
from benchmarks.harness import run, setting, write_figures
from panoply.config.composite import LowerBound, Mean, Median, Minimum, PooledRule, VariancePenalty
from panoply.data.schema import text_id
from panoply.measure.best_of_n import expected_best
from panoply.scorers.composite.rules import pooled, scaled
from panoply.synthetic.planted import ATTRIBUTES, PlantedWorld, make_world
from panoply.types import Array

RULES: Mapping[str, PooledRule] = {
    "mean": Mean(),
    "median": Median(),
    "LCB, beta 1": LowerBound(),
    "UWO, lambda .5": VariancePenalty(),
    "WCO": Minimum(),
}
SINGLE = "single member"
NUM_MEMBERS, NUM_RESPONSES = 5, 2000
ODD_SHARE, ODD_SIZE, NUM_SURFACE = 0.1, 6.0, 32
Curve: TypeAlias = dict[str, Array]
"""Gold by rule, at each n."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    draws: int = 100
    """Draws of the planted world."""
    worlds: int = 5
    """Draws of the trained world, each with members of its own."""
    num_prompts: int = 150
    """Prompts of a trained world's pairs, each with four responses and six pairs."""
    sizes: tuple[int, ...] = (1, 4, 16, 64, 256, 1000)
    """Samples of which the best is taken."""


def curves(scores_KN: Array, gold_N: Array, sizes: Sequence[int]) -> Curve:
    """Returns the gold of each rule on the members' scores, and of a member alone."""
    weights_K = np.ones(len(scores_KN))
    single = np.mean([expected_best(scores_N, gold_N, sizes) for scores_N in scores_KN], axis=0)
    result = {SINGLE: single}
    for name, rule in RULES.items():
        result[name] = expected_best(pooled(rule, scores_KN, weights_K), gold_N, sizes)
    return result


def planted(seed: int, sizes: Sequence[int]) -> Curve:
    """Returns the curves of members whose errors are drawn by themselves."""
    rng = np.random.default_rng(seed)
    gold_N = rng.normal(size=NUM_RESPONSES)
    deviation_N = np.where(rng.random(NUM_RESPONSES) < ODD_SHARE, 3.0, 0.5)
    errors_KN = deviation_N * rng.normal(size=(NUM_MEMBERS, NUM_RESPONSES))
    return curves(gold_N + errors_KN, gold_N, sizes)


def surface(rng: np.random.Generator, num: int) -> Array:
    """Returns features `[N, 32]` that say nothing of gold, large on a tenth of the responses."""
    size_N1 = np.where(rng.random((num, 1)) < ODD_SHARE, ODD_SIZE, 1.0)
    return size_N1 * rng.normal(size=(num, NUM_SURFACE))


def features(attributes_NA: Array, domain: int, num_domains: int, surface_NF: Array) -> Array:
    """Returns attributes at the place of their domain, and surface features, `[N, F]`."""
    num, size = attributes_NA.shape
    placed = np.zeros((num, num_domains * size))
    placed[:, domain * size : (domain + 1) * size] = 2 * attributes_NA - 1
    return np.concatenate([placed, surface_NF], axis=1)


def pair_features(world: PlantedWorld, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns the features of the chosen and of the rejected responses, `[P, F]` each."""
    truth = world.truth
    rows = truth.responses.to_pylist()
    surface_NF = surface(rng, len(rows))
    by_id: dict[str, Array] = {}
    for row, surface_F in zip(rows, surface_NF, strict=True):
        attributes = np.array([[row[name] for name in ATTRIBUTES]])
        domain = truth.domains.index(row["domain"])
        by_id[row["text_id"]] = features(attributes, domain, len(truth.domains), surface_F[None])[0]
    chosen, rejected = [
        np.array([by_id[text_id(pair["prompt"], pair[side])] for pair in world.pairs.to_pylist()])
        for side in ("chosen", "rejected")
    ]
    return chosen, rejected


def trained(seed: int, num_prompts: int, sizes: Sequence[int]) -> Curve:
    """Returns the curves of heads of one recipe, means over the domains of a world."""
    # Torch loads only where a head is fitted.
    from panoply.preference.in_memory import fit

    rng = np.random.default_rng([seed, 1])
    world = make_world(seed, num_prompts=num_prompts)
    chosen_PF, rejected_PF = pair_features(world, rng)
    members = []
    for member in range(NUM_MEMBERS):
        drawn = rng.integers(len(chosen_PF), size=len(chosen_PF))
        members.append(fit(chosen_PF[drawn], rejected_PF[drawn], seed=member))
    others = make_world(seed + 1000).truth.responses
    attributes_NA = np.stack([others[name].to_numpy() for name in ATTRIBUTES], axis=1)
    attributes_NA = attributes_NA[:NUM_RESPONSES]
    by_domain: list[Curve] = []
    for domain, weights_A in enumerate(world.truth.weights):
        gold_N = attributes_NA @ weights_A
        gold_N = (gold_N - gold_N.mean()) / gold_N.std()
        surface_NF = surface(rng, len(gold_N))
        x_NF = features(attributes_NA, domain, len(world.truth.weights), surface_NF)
        scores = [member.score(x_NF) for member in members]
        z_KN = np.array([scaled(s, "frozen", float(s.mean()), float(s.std())) for s in scores])
        by_domain.append(curves(z_KN, gold_N, sizes))
    return {name: np.mean([curve[name] for curve in by_domain], axis=0) for name in by_domain[0]}


def summary(draws: Sequence[Curve], sizes: Sequence[int]) -> dict[str, Any]:
    """Returns mean and half of the 95 % interval by rule and n, and how far the mean turns down."""
    figures: dict[str, Any] = {}
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        mean = values.mean(0)
        half = 1.96 * values.std(0, ddof=1) / np.sqrt(len(values))
        figures[name] = {
            "gold": dict(zip(map(str, sizes), mean.tolist(), strict=True)),
            "half": dict(zip(map(str, sizes), half.tolist(), strict=True)),
            "turn": float(mean[-1] - mean.max()),
        }
    return figures


def main(options: Options) -> None:
    """Draws both worlds and prints a table for RESULTS."""
    import torch

    sizes = options.sizes
    worlds = {
        "planted": [planted(seed, sizes) for seed in range(options.draws)],
        "trained": [trained(s, options.num_prompts, sizes) for s in range(options.worlds)],
    }
    figures: dict[str, Any] = {"setting": setting(np, torch, sizes=list(sizes))}
    print(f"| world | rule | {' | '.join(f'n = {n}' for n in sizes)} | turn |")
    print("| --- " * (len(sizes) + 3) + "|")
    for world, draws in worlds.items():
        figures[world] = summary(draws, sizes)
        for name, figure in figures[world].items():
            cells = [
                f"{gold:.2f} ± {half:.2f}"
                for gold, half in zip(figure["gold"].values(), figure["half"].values(), strict=True)
            ]
            print(f"| {world} | {name} | {' | '.join(cells)} | {figure['turn']:+.2f} |")
    write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)

"""Specialized arms that conflict: `python -m evidence.planted_arms --json FILE`.

Responses vary along three axes a_1 .. a_3, standard normal, and each domain d of prompts wants

    q_d = a_d - c / 2 sum_{j != d} a_j,

its own axis and, by the conflict c, less of what the others want. Two arms score each axis, as
reward models of one source do: scale_k (a + .3 e), e normal, on scales that are drawn log-uniformly
from .1 to 10. With c = .5 an arm is right on .42 of the pairs of another domain, as models trained
on helpful and tested on harmless dialogues are (.40 and .41); with c = 0 the errors of arms are
independent. An item has four responses, an arm is right where its first one is the best one, and
a bandit sees that of the arm it chose alone. Contexts are features of the prompt, a noisy place of
its domain; the domain is not told. BayesianRouter's prior is fitted on 300 other items with every
arm's verdict: that costs K scores and a label for each.

Of each world there are four versions: as it is; with noise of .3 on every score, as LASeR adds it,
which drowns arms of small scale; with noise of .3 of each arm's deviation, which hits all alike;
with a seventh arm that is noise alone. Figures are means over seeds and orders, in the second half
of the items where they say so; intervals resample items.

Shapes: N items, C candidates, K arms, H size of a context, R orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from benchmarks.harness import run, write_figures
from evidence.bandit_replay import replay
from evidence.preference_results import mean_interval
from evidence.replay import TUNED_NOISE, Recorded, arm_rewards, ensembles
from panoply.bandit.bandits import MOSS, Bandit, LinUCB, Sequential, Thompson, Uniform
from panoply.bandit.router import fit_router
from panoply.types import Array, Ints

NUM_ITEMS, NUM_LABELED, NUM_CANDIDATES, NUM_AXES, NUM_ARMS = 1500, 300, 4, 3, 6
NUM_FEATURES = 16
OWN_NOISE = 0.3
SIGMA = 0.3
CONTEXTUAL = ("linucb", "thompson", "bayesian_router")


@dataclass(frozen=True, slots=True)
class World:
    """Items with the scores of the arms, contexts `[N, H]` and domains `[N]`."""

    data: Recorded
    contexts_NH: Array
    domain_N: NDArray[np.int64]


def draw(seed: int, conflict: float) -> World:
    """Draws a world; the same seed has the same responses and scores whatever the conflict."""
    rng, num = np.random.default_rng(seed), NUM_ITEMS + NUM_LABELED
    domain = rng.integers(NUM_AXES, size=num)
    axes = rng.standard_normal((num, NUM_CANDIDATES, NUM_AXES))
    scale = 10 ** rng.uniform(-1, 1, NUM_ARMS)
    own = axes[:, :, np.arange(NUM_ARMS) % NUM_AXES]
    scores = scale * (own + OWN_NOISE * rng.standard_normal(own.shape))
    place = rng.standard_normal((NUM_AXES, NUM_FEATURES))
    features = place[domain] + 0.5 * rng.standard_normal((num, NUM_FEATURES))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    contexts = np.concatenate([np.ones((num, 1)), features], axis=1) / np.sqrt(2)
    wanted = np.take_along_axis(axes, domain[:, None, None], 2)[..., 0]
    quality = wanted - conflict / 2 * (axes.sum(2) - wanted)
    correct = quality == quality.max(1, keepdims=True)
    arms = tuple(f"axis {k % NUM_AXES}, scale {scale[k]:.2g}" for k in range(NUM_ARMS))
    return World(Recorded(arms, scores, correct, np.ones_like(correct)), contexts, domain)


def versions(data: Recorded, seed: int) -> dict[str, Recorded]:
    """Returns the world as it is, with noise of both kinds, and with a useless arm."""
    rng, scores = np.random.default_rng((seed, 1)), data.scores_NCK
    noise = SIGMA * rng.standard_normal(scores.shape)
    nothing = rng.standard_normal((*scores.shape[:2], 1))
    more = np.concatenate([scores, nothing], axis=2)
    return {
        "plain": data,
        "noisy": changed(data, scores_NCK=scores + noise),
        "noisy_alike": changed(data, scores_NCK=scores + noise * scores.std((0, 1))),
        "useless": changed(data, arms=(*data.arms, "useless"), scores_NCK=more),
    }


def right_of_policies(
    data: Recorded, world: World, orders: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns how often each policy was right `[N, 2]`, and the arms' shares `[K]`.

    The two columns are the items' means over all orders, and their part in the second halves,
    scaled so that its mean is the accuracy there.
    """
    verdicts, labeled = arm_rewards(data), NUM_LABELED
    wins, contexts, domain = (
        verdicts[labeled:],
        world.contexts_NH[labeled:],
        world.domain_N[labeled:],
    )
    num_items, num_arms = wins.shape
    rng = np.random.default_rng(0)
    orders_RN = np.stack([rng.permutation(num_items) for _ in range(orders)])
    own = [int(wins[domain == d].mean(0).argmax()) for d in range(NUM_AXES)]
    still = {name: right_N[labeled:] for name, right_N in ensembles(data).items()} | {
        "best_single_in_hindsight": wins[:, wins.mean(0).argmax()],
        "best_of_each_domain_told": wins[np.arange(num_items), np.take(own, domain)],
    }
    found = {name: np.stack([right_N, right_N], axis=1) for name, right_N in still.items()}
    thompson = Thompson(reward_std=TUNED_NOISE)
    prior = fit_router(world.contexts_NH[:labeled], verdicts[:labeled])
    policies: dict[str, tuple[Bandit, Array | None]] = {
        "uniform": (Uniform(), None),
        "sequential": (Sequential(), None),
        "moss_without_context": (MOSS(horizon=num_items), None),
        "linucb": (LinUCB(), None),
        "thompson": (thompson, None),
        "bayesian_router": (thompson, prior),
    }
    walked, arms = walk(policies, wins, contexts, orders_RN)
    shares: dict[str, Array] = {}
    for name, arms_RN in arms.items():
        later = arms_RN[:, num_items // 2 :]
        shares[name] = np.bincount(later.ravel(), minlength=num_arms) / later.size
    return found | walked, shares


def walk(
    policies: Mapping[str, tuple[Bandit, Array | None]],
    wins_NK: Array,
    contexts_NH: Array,
    orders_RN: Ints,
) -> tuple[dict[str, Array], dict[str, Ints]]:
    """Takes policies, with Thompson's prior where there is one, through the items in all orders.

    Returns:
        how often each was right `[N, 2]`, see `right_of_policies`, and the arms that it chose at
        each step `[R, N]`.
    """
    orders, num_items = orders_RN.shape
    late_N = 2 * (np.arange(num_items) >= num_items // 2)
    found: dict[str, Array] = {}
    chosen: dict[str, Ints] = {}
    for name, (policy, told) in policies.items():
        arms = replay(policy, wins_NK, orders_RN, contexts_NH=contexts_NH, prior_KD=told)
        got = np.take_along_axis(wins_NK[orders_RN], arms[..., None], 2)[..., 0]
        sums = [np.bincount(orders_RN.ravel(), x.ravel(), num_items) for x in (got, got * late_N)]
        found[name], chosen[name] = np.stack(sums, axis=1) / orders, arms
    return found, chosen


def figure(
    of_seeds: list[Array], cell_N: Any = None, key_N: Any = None
) -> dict[str, float | list[float]]:
    """Returns the mean over all items with its interval, the second half, and seeds' extremes.

    Args:
        of_seeds: `[N, 2]` as of `right_of_policies`.
        cell_N: of the items of all seeds; the mean is that over cells. None: one cell.
        key_N: items that are resampled together. None: each by itself.
    """
    items = np.concatenate(of_seeds)
    cell = np.zeros(len(items)) if cell_N is None else cell_N
    key = np.arange(len(items)) if key_N is None else key_N
    whole, half = (mean_interval(column_N, cell, key) for column_N in items.T)
    means = [float(seed[:, 0].mean()) for seed in of_seeds]
    return whole | {
        "second_half": half["value"],
        "second_half_ci95": half["ci95"],
        "min": min(means),
        "max": max(means),
    }


def compare(seeds: tuple[int, ...], orders: int, conflict: float) -> dict[str, Any]:
    """Returns accuracies, gains of contextual bandits, and costs of noise and a useless arm."""
    got: dict[str, dict[str, list[Array]]] = {}
    useless: dict[str, list[float]] = {}
    for seed in seeds:
        world = draw(seed, conflict)
        for version, data in versions(world.data, seed).items():
            found, shares = right_of_policies(data, world, orders)
            for name, right_N2 in found.items():
                got.setdefault(version, {}).setdefault(name, []).append(right_N2)
            if version == "useless":
                for name, share_K in shares.items():
                    useless.setdefault(name, []).append(float(share_K[-1]))

    def minus(a: list[Array], b: list[Array]) -> dict[str, Any]:
        return figure([x - y for x, y in zip(a, b, strict=True)])

    plain = got["plain"]
    figures: dict[str, Any] = {"accuracy": {name: figure(v) for name, v in plain.items()}}
    for mine in CONTEXTUAL:
        figures[f"{mine}_minus"] = {n: minus(plain[mine], plain[n]) for n in plain if n != mine}
    for version in ("noisy", "noisy_alike", "useless"):
        figures[f"cost_of_{version}"] = {n: minus(plain[n], got[version][n]) for n in plain}
    share = {name: float(np.mean(v)) for name, v in useless.items()}
    return figures | {"share_of_useless_in_second_half": share}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the experiment."""

    seeds: tuple[int, ...] = tuple(range(6))
    """One world per seed."""
    orders: int = 3
    """Random orders of the items of a world."""


def main(options: Options) -> None:
    """Runs the experiment and prints tables."""
    figures: dict[str, Any] = {}
    for conflict in (0.5, 0.0):
        figures[f"conflict_{conflict}"] = compare(options.seeds, options.orders, conflict)
        print_table(conflict, figures[f"conflict_{conflict}"])
    figures["setting"] = {
        "seeds": list(options.seeds),
        "orders": options.orders,
        "items": NUM_ITEMS,
    }
    write_figures(options.json, figures)


def print_table(conflict: float, figures: dict[str, Any]) -> None:
    """Prints accuracies, what a contextual bandit gains, and what noise and a useless arm cost."""
    from rich.console import Console
    from rich.table import Table

    costs = [f"cost_of_{version}" for version in ("noisy", "noisy_alike", "useless")]
    table = Table("policy", "accuracy", "2nd half", "linucb minus", *costs, "useless arm")
    for name, found in figures["accuracy"].items():
        gain = figures["linucb_minus"].get(name)
        share = figures["share_of_useless_in_second_half"].get(name)
        table.add_row(
            name,
            f"{found['value']:.3f}",
            f"{found['second_half']:.3f}",
            "" if gain is None else show(gain),
            *(show(figures[cost][name]) for cost in costs),
            "" if share is None else f"{share:.1%}",
        )
    Console(width=160).print(f"conflict {conflict}", table)


def show(found: Mapping[str, Any]) -> str:
    """Returns a figure with its interval."""
    low, high = found["ci95"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    run(main, Options)

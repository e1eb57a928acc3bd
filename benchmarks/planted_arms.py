"""Specialized arms in the planted world: `python -m benchmarks.planted_arms --json FILE`.

Each of four scorers is reliable in its own domains and mostly noise elsewhere
(`panoply.data.planted`). An item is a prompt with four responses; an arm is right where the best
one has its highest score, and a bandit sees that of the arm it chose alone. Contexts are the words
of the prompt, hashed, which the bandit projects; the domain is not told. BayesianRouter's prior is
fitted on another world of the same scorers, where every arm's verdict is known: that costs K scores
and a label for each prompt there.

Three worlds of each seed: as it is; with noise of .3 of each arm's deviation on every score; with a
fifth arm that is noise alone. Figures are means over seeds and orders; intervals resample items.

Shapes: N items, C candidates, K arms, H words, R orders.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.replay import TUNED_NOISE, Recorded, arm_rewards, ensembles
from panoply.choose.bandit import projection
from panoply.choose.policies import MOSS, LinUCB, Policy, Sequential, Thompson, Uniform
from panoply.choose.replay import replay
from panoply.choose.router import fit_router
from panoply.data.planted import plant
from panoply.data.schema import text_id
from panoply.measure.intervals import percentiles, resampled_sums

Array: TypeAlias = NDArray[np.float64]

NUM_PROMPTS = 1200
NUM_RESPONSES = 4
NUM_WORDS = 256
SIGMA = 0.3
WORLDS = ("plain", "noisy", "useless")


def contexts_of(prompts: list[str]) -> Array:
    """Returns `[N, H]` which hashed words a prompt has, and a constant, of unit length."""
    contexts = np.zeros((len(prompts), NUM_WORDS))
    for row, prompt in zip(contexts, prompts, strict=True):
        for word in prompt.lower().replace("?", " ").replace(".", " ").split():
            row[int.from_bytes(hashlib.blake2b(word.encode()).digest()[:4], "little") % 255] = 1
    contexts /= np.linalg.norm(contexts, axis=1, keepdims=True)
    contexts[:, -1] = 1
    return contexts / np.sqrt(2)


def world(seed: int) -> tuple[Recorded, Array, NDArray[np.str_]]:
    """Returns the scores of a world, its contexts and the domains of its prompts."""
    made = plant(seed, num_prompts=NUM_PROMPTS, num_responses=NUM_RESPONSES)
    reward_NC = made.truth.responses["reward"].to_numpy().reshape(-1, NUM_RESPONSES)
    arms = tuple(made.scorers.column_names[1:])
    scores = np.stack([made.scorers[arm].to_numpy() for arm in arms], axis=1)
    rows = made.ratings.select(["prompt", "response"]).to_pylist()
    prompt_of = {text_id(r["prompt"], r["response"]): r["prompt"][-1]["content"] for r in rows}
    first = made.scorers["text_id"].to_pylist()[::NUM_RESPONSES]
    correct = reward_NC >= reward_NC.max(1, keepdims=True) - 1e-9
    data = Recorded(arms, scores.reshape(*reward_NC.shape, -1), correct, np.ones_like(correct))
    domains = np.array(made.truth.responses["domain"].to_pylist()[::NUM_RESPONSES])
    return data, contexts_of([prompt_of[i] for i in first]), domains


def variants(data: Recorded, seed: int) -> dict[str, Recorded]:
    """Returns the world as it is, with noise on every score, and with a useless arm."""
    rng, scores = np.random.default_rng(seed), data.scores_NCK
    noise = SIGMA * scores.std((0, 1)) * rng.standard_normal(scores.shape)
    useless = np.concatenate([scores, rng.standard_normal((*scores.shape[:2], 1))], axis=2)
    return {
        "plain": data,
        "noisy": changed(data, scores_NCK=scores + noise),
        "useless": changed(data, arms=(*data.arms, "useless"), scores_NCK=useless),
    }


def of_policies(
    data: Recorded, contexts: Array, domains: NDArray[np.str_], prior_KD: Array, orders: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns of each policy how often it was right on each item `[N]`, and its shares `[K]`."""
    wins = arm_rewards(data)
    num_items, num_arms = wins.shape
    rng = np.random.default_rng(0)
    orders_RN = np.stack([rng.permutation(num_items) for _ in range(orders)])
    own = {d: int(wins[domains == d].mean(0).argmax()) for d in np.unique(domains)}
    found = ensembles(data) | {
        "best single, in hindsight": wins[:, wins.mean(0).argmax()],
        "best of each domain, told": wins[np.arange(num_items), [own[d] for d in domains]],
    }
    shares: dict[str, Array] = {}
    thompson = Thompson(noise=TUNED_NOISE)
    prior = np.zeros((num_arms, prior_KD.shape[1]))
    prior[: len(prior_KD)] = prior_KD
    policies: dict[str, tuple[Policy, Array | None]] = {
        "uniform": (Uniform(), None),
        "sequential": (Sequential(), None),
        "MOSS, no context": (MOSS(horizon=num_items), None),
        "LinUCB": (LinUCB(), None),
        "Thompson": (thompson, None),
        "BayesianRouter": (thompson, prior),
    }
    for name, (policy, told) in policies.items():
        arms = replay(policy, wins, orders_RN, contexts_NH=contexts, prior_KD=told)
        got = np.take_along_axis(wins[orders_RN], arms[..., None], 2)[..., 0]
        found[name] = np.bincount(orders_RN.ravel(), got.ravel(), num_items) / orders
        shares[name] = np.bincount(arms.ravel(), minlength=num_arms) / arms.size
    return found, shares


def figure(of_seeds: list[Array]) -> dict[str, Any]:
    """Returns the mean over all items, its interval, and the extremes of the seeds."""
    items = np.concatenate(of_seeds)
    drawn = resampled_sums(items[:, None], np.arange(len(items)))[:, 0] / len(items)
    means = [float(seed.mean()) for seed in of_seeds]
    return {
        "value": float(items.mean()),
        "ci95": percentiles(drawn),
        "min": min(means),
        "max": max(means),
    }


def main(json: Path, seeds: tuple[int, ...] = (0, 1, 2, 3, 4), orders: int = 5) -> None:
    """Runs the benchmark and prints tables.

    Args:
        json: where the figures go.
        seeds: one world each.
        orders: of the prompts of a world.
    """
    from workflows.tracking import write_json

    got: dict[str, dict[str, list[Array]]] = {name: {} for name in WORLDS}
    useless: dict[str, list[float]] = {}
    offline, labelled, _ = world(1000)
    prior = fit_router(labelled @ projection(NUM_WORDS, 64), arm_rewards(offline))
    for seed in seeds:
        data, contexts, domains = world(seed)
        for kind, variant in variants(data, seed).items():
            found, shares = of_policies(variant, contexts, domains, prior, orders)
            for name, right_N in found.items():
                got[kind].setdefault(name, []).append(right_N)
            if kind == "useless":
                for name, share in shares.items():
                    useless.setdefault(name, []).append(float(share[-1]))
    plain = got["plain"]
    figures: dict[str, Any] = {"accuracy": {n: figure(v) for n, v in plain.items()}}
    for name in ("LinUCB", "Thompson", "BayesianRouter"):
        figures[f"{name} minus"] = {
            rival: figure([a - b for a, b in zip(plain[name], plain[rival], strict=True)])
            for rival in plain
            if rival != name
        }
    for kind in ("noisy", "useless"):
        figures[f"cost of {kind}"] = {
            name: figure([a - b for a, b in zip(plain[name], got[kind][name], strict=True)])
            for name in plain
        }
    figures["share of the useless arm"] = {n: float(np.mean(v)) for n, v in useless.items()}
    figures["setting"] = {"seeds": list(seeds), "orders": orders, "prompts": NUM_PROMPTS}
    write_json(json, figures)
    print_tables(figures)


def print_tables(figures: dict[str, Any]) -> None:
    """Prints accuracies, what a contextual bandit gains, and what noise and a useless arm cost."""
    from rich.console import Console
    from rich.table import Table

    columns = ("accuracy", "LinUCB minus", "Thompson minus", "cost of noisy", "cost of useless")
    table = Table("policy", *columns)
    for name in figures["accuracy"]:
        cells = [figures[column].get(name) for column in columns]
        table.add_row(name, *("" if cell is None else show(cell) for cell in cells))
    console = Console()
    console.print(table)
    console.print(figures["share of the useless arm"])


def show(cell: dict[str, Any]) -> str:
    """Returns a figure with its interval."""
    low, high = cell["ci95"]
    return f"{cell['value']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.planted_arms")

"""The constants of `evidence.replay`, fixed: `python -m evidence.synthetic_arms --json FILE`.

Tables of right and wrong answers that share nothing with any recorded one:

    P(arm k is right on item n) = sigmoid(m + s a_k + d_n),   a_k, d_n normal, d_n of deviation 1.5

m is drawn anew for each table from U(-2.5, 1) and s from U(.3, 1.2), so the arms of a table are
all weak or all strong, near each other or far apart, and right on the same easy items. Sizes are
those in `SIZES`. A policy's figure is the part of the way from uniform choice to the best arm of
the table that it makes, over the pass and in its second half. The constants of a policy are those
of its best mean over the pass, and of the second half where these are equal to .01;
`evidence.replay` and the defaults of `panoply.bandit.bandits` have them for every table alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks import harness
from benchmarks.harness import run, write_figures
from evidence.bandit_replay import exp3_gamma, replay
from panoply.bandit.bandits import (
    MOSS,
    UCB1,
    Bandit,
    EpsilonGreedy,
    Exp3,
    LinUCB,
    Thompson,
)

SIZES = ((250, 3), (500, 6), (500, 12), (1500, 8))
"""Items and arms of the tables."""


def draw_tables(seed: int, num_tables: int, items: int, arms: int) -> NDArray[np.float64]:
    """Returns right (1) and wrong (0) answers `[tables, N, K]`."""
    rng = np.random.default_rng((seed, items, arms))
    level = rng.uniform(-2.5, 1, (num_tables, 1, 1))
    spread = rng.uniform(0.3, 1.2, (num_tables, 1, 1))
    ability = rng.standard_normal((num_tables, 1, arms))
    ease = 1.5 * rng.standard_normal((num_tables, items, 1))
    return (rng.random((num_tables, items, arms)) < expit(level + spread * ability + ease)) * 1.0


def candidates(items: int, arms: int) -> dict[str, Bandit]:
    """Returns the constants that were compared."""
    exp3 = exp3_gamma(arms, items)
    found: dict[str, Bandit] = {
        f"MOSS({s})": MOSS(horizon=items, scale=s) for s in (0.55, 0.7, 0.85, 1.0, 1.4, 2.0)
    }
    found |= {f"UCB1({a:.2f})": UCB1(alpha=a) for a in (0.1, 0.2, 0.3, 0.4, 0.6, 2**0.5)}
    found |= {f"LinUCB({a})": LinUCB(alpha=a) for a in (0.1, 0.3, 0.6, 1.0)}
    found |= {f"Thompson({n})": Thompson(reward_std=n) for n in (0.15, 0.25, 0.35, 0.5)}
    found |= {f"EpsilonGreedy({e})": EpsilonGreedy(epsilon=e) for e in (0.02, 0.05, 0.1, 0.2)}
    found |= {f"Exp3({c} x rate)": Exp3(gamma=min(1.0, c * exp3)) for c in (0.5, 1.0, 2.0)}
    return found


def way_to_the_best(policy: Bandit, tables: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the mean part of the way made over the pass, and in its second half."""
    num_tables, items, arms = tables.shape
    orders = np.arange(num_tables * items).reshape(num_tables, items)
    flat = tables.reshape(-1, arms)
    chosen = replay(policy, flat, orders, contexts_NH=np.ones((len(flat), 1)))
    means = tables.mean(1)
    even, best = means.mean(1), means.max(1)
    # Expected reward of the choice, as of its arm on the table: less noise than what was received.
    gained = np.take_along_axis(means, chosen, 1)
    whole, half = (
        float((part.mean(1) - even).mean() / (best - even).mean())
        for part in (gained, gained[:, items // 2 :])
    )
    return whole, half


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the comparison."""

    num_tables: int = 100
    """Tables of each size."""
    seed: int = 0
    """Seed of the tables."""


def main(options: Options) -> None:
    """Compares constants on synthetic tables and prints a table."""
    made: dict[str, list[tuple[float, float]]] = {}
    for items, arms in SIZES:
        tables = draw_tables(options.seed, options.num_tables, items, arms)
        for name, policy in candidates(items, arms).items():
            made.setdefault(name, []).append(way_to_the_best(policy, tables))
    figures = {
        name: {"pass": float(np.mean(found, 0)[0]), "second_half": float(np.mean(found, 0)[1])}
        for name, found in made.items()
    }
    write_figures(options.json, figures)
    print_table(figures, made)


def print_table(
    figures: Mapping[str, Mapping[str, float]], made: Mapping[str, list[tuple[float, float]]]
) -> None:
    """Prints the figures, each size's pass behind them."""
    from rich.console import Console
    from rich.table import Table

    table = Table("policy", "pass", "second half", *(f"{n} x {k}" for n, k in SIZES))
    for name, figure in figures.items():
        sizes = (f"{way:.3f}" for way, _ in made[name])
        table.add_row(name, f"{figure['pass']:.3f}", f"{figure['second_half']:.3f}", *sizes)
    Console().print(table)


if __name__ == "__main__":
    run(main, Options)

"""Bandits on recorded reward models: `python -m evidence.replay --scores FILE --json OUT`.

FILE is a Parquet table with one row per candidate answer: `item, candidate, is_correct` and one
column `score_*` per arm. An arm is right on an item where its score of a correct candidate is
strictly above those of all wrong ones. An arm that misses a score on an item gives no answer there:
a single arm counts as wrong, a bandit gets no reward, and an ensemble does without that arm.

A bandit goes through the items in 200 random orders. It sees 0 or 1 of the arm it chose, or a
signal without labels where one is named, then the next item. OUT is
`{policy: {accuracy, second_half, ci95, shares}}`: the mean over the orders, of all items and of the
later half, the interval over resampled items, and the share of decisions of each arm. What needs
the scores of all arms on every item has `costs_k` in its name.

Constants are equal for every table. Where theory gives them, they are theory's (the horizon is the
number of items); the rest was fixed by `python -m evidence.synthetic_arms`.

Shapes: N items, C candidates of an item (padded), K arms, R orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
    Sequential,
    Thompson,
    Uniform,
)
from panoply.measure.intervals import percentiles, resampled_sums
from panoply.types import Array, Ints

Flags: TypeAlias = NDArray[np.bool_]

TUNED_ALPHA = 0.3
"""UCB1's best in `evidence.synthetic_arms`, as are the defaults of MOSS, LinUCB and epsilon."""
TUNED_NOISE = 0.25
"""Thompson's best there."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Scores of every arm on every candidate."""

    arms: tuple[str, ...]
    scores_NCK: Array
    """NaN where missing, and behind an item's last candidate."""
    correct_NC: Flags
    given_NC: Flags
    """False behind an item's last candidate."""

    @property
    def answered_NK(self) -> Flags:
        """Whether the arm scored all candidates of the item."""
        return np.all(np.isfinite(self.scores_NCK) | ~self.given_NC[..., None], axis=1)


def read_scores(path: Path) -> Recorded:
    """Reads a table of recorded scores.

    Raises:
        ValueError: a column is missing, or an item has fewer than two candidates.
    """
    table = pq.read_table(path)
    names = [name for name in table.column_names if name.startswith("score_")]
    lacking = {"item", "candidate", "is_correct"} - set(table.column_names)
    if lacking or not names:
        raise ValueError(
            f"{path} has columns {table.column_names!r}; it needs item, candidate, is_correct and "
            f"at least one score_*"
        )
    items, item, count = np.unique(
        table["item"].to_numpy(), return_inverse=True, return_counts=True
    )
    if count.min() < 2:
        raise ValueError(f"item {items[count.argmin()]!r} of {path} has fewer than two candidates")
    rows = np.argsort(item, kind="stable")
    place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    at = (item[rows], place)
    scores = np.full((len(items), count.max(), len(names)), np.nan)
    correct = np.zeros(scores.shape[:2], np.bool_)
    columns = [table[name].cast("float64").to_numpy(zero_copy_only=False) for name in names]
    scores[at] = np.stack(columns, axis=1)[rows]
    correct[at] = table["is_correct"].to_numpy(zero_copy_only=False).astype(np.bool_)[rows]
    given = np.arange(count.max()) < count[:, None]
    arms = tuple(name.removeprefix("score_") for name in names)
    return Recorded(arms, scores, correct, given)


def right(data: Recorded, scores_NCX: Array) -> Array:
    """Returns `[N, X]` 1 where a correct candidate is strictly above all wrong ones, else 0."""
    shown = np.where(data.given_NC[..., None], scores_NCX, -np.inf)
    best_correct = np.where(data.correct_NC[..., None], shown, -np.inf).max(1)
    best_wrong = np.where(data.correct_NC[..., None], -np.inf, shown).max(1)
    return (best_correct > best_wrong) * 1.0


def arm_rewards(data: Recorded) -> Array:
    """Returns `[N, K]` whether each arm is right, NaN where it gives no answer."""
    return np.where(data.answered_NK, right(data, data.scores_NCK), np.nan)


def votes(data: Recorded) -> Array:
    """Returns `[N, C, K]`: an arm's vote, split evenly between candidates that share its top."""
    answered = data.answered_NK[:, None]
    shown = np.where(data.given_NC[..., None] & answered, data.scores_NCK, -np.inf)
    top = (shown == shown.max(1, keepdims=True)) & answered & data.given_NC[..., None]
    return top / np.maximum(top.sum(1, keepdims=True), 1)


def standardized(data: Recorded) -> Array:
    """Returns scores `[N, C, K]` with mean 0 and deviation 1 within item and arm; NaN stays."""
    usable = data.given_NC[..., None] & data.answered_NK[:, None]
    count = np.maximum(usable.sum(1, keepdims=True), 1)
    scores = np.where(usable, data.scores_NCK, 0)
    centered = np.where(usable, scores - scores.sum(1, keepdims=True) / count, 0)
    spread = np.sqrt((centered**2).sum(1, keepdims=True) / count)
    z = np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 0)
    return np.where(usable, z, np.nan)


def ensembles(data: Recorded) -> dict[str, Array]:
    """Returns `[N]` whether each ensemble of all arms is right."""
    raw = np.where(data.answered_NK[:, None], data.scores_NCK, 0)
    mixed = {
        "ensemble_raw_sum_costs_k": np.nansum(raw, 2),
        "ensemble_z_score_costs_k": np.nansum(standardized(data), 2),
        "ensemble_agreement_costs_k": votes(data).sum(2),
    }
    return {name: right(data, scores[..., None])[:, 0] for name, scores in mixed.items()}


def margins(data: Recorded) -> Array:
    """Returns `[N, K]` how far an arm's first candidate is above its second, in [0, 1).

    m / (1 + m), m in units of the arm's deviation within items (root mean square over the table),
    which needs no labels. NaN where the arm gives no answer.
    """
    usable = data.given_NC[..., None] & data.answered_NK[:, None]
    shown = np.sort(np.where(usable, data.scores_NCK, -np.inf), axis=1)
    gap = np.where(data.answered_NK, shown[:, -1] - np.where(usable[:, 1], shown[:, -2], 0), np.nan)
    count = np.maximum(usable.sum(1), 1)
    scores = np.where(usable, data.scores_NCK, 0)
    centered = np.where(usable, scores - (scores.sum(1) / count)[:, None], 0)
    unit = np.sqrt((centered**2).sum((0, 1)) / np.maximum(usable.sum((0, 1)), 1))
    m = np.divide(gap, unit, out=np.zeros_like(gap), where=unit > 0)
    return np.where(data.answered_NK, m / (1 + m), np.nan)


def agreement(data: Recorded) -> Array:
    """Returns `[N, K]` the share of other arms that take the same candidate; costs K scores."""
    vote = votes(data)
    others = vote.sum(2, keepdims=True) - vote
    shared = (vote * others).sum(1) / max(len(data.arms) - 1, 1)
    return np.where(data.answered_NK, shared, np.nan)


def policies(num_items: int, num_arms: int) -> dict[str, Bandit]:
    """Returns the policies without context, the same for every table."""
    return {
        "uniform": Uniform(),
        "sequential": Sequential(),
        "epsilon_greedy": EpsilonGreedy(),
        "exp3": Exp3(gamma=exp3_gamma(num_arms, num_items)),
        "ucb1": UCB1(),
        "ucb1_tuned": UCB1(alpha=TUNED_ALPHA),
        "moss": MOSS(horizon=num_items),
        "linucb": LinUCB(),
        "thompson": Thompson(),
        "thompson_tuned": Thompson(reward_std=TUNED_NOISE),
    }


def follow_the_leader(rewards_NK: Array, orders_RN: Ints, seed: int) -> Ints:
    """Returns the arms `[R, N]` that were right most often before, with every arm's reward seen."""
    seen = np.nan_to_num(rewards_NK)[orders_RN]
    before = np.cumsum(seen, axis=1) - seen
    tie = np.random.default_rng(seed).random(before.shape)
    return (before + 0.5 * tie).argmax(2)


def summary(right_RN: Array, orders_RN: Ints, shares: dict[str, float]) -> dict[str, Any]:
    """Returns a policy's figures from what it got at each step of each order."""
    num_orders, num_items = orders_RN.shape
    of_item = np.bincount(orders_RN.ravel(), right_RN.ravel(), num_items) / num_orders
    drawn = resampled_sums(of_item[:, None], np.arange(num_items))[:, 0] / num_items
    return {
        "accuracy": float(of_item.mean()),
        "second_half": float(right_RN[:, num_items // 2 :].mean()),
        "ci95": percentiles(drawn),
        "shares": shares,
    }


def replay_all(data: Recorded, num_orders: int, seed: int) -> dict[str, dict[str, Any]]:
    """Returns the figures of every policy."""
    rewards = arm_rewards(data)
    wins = np.nan_to_num(rewards)
    num_items, num_arms = wins.shape
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(num_items) for _ in range(num_orders)])
    found: dict[str, dict[str, Any]] = {}

    def chosen(name: str, arms_RN: Ints) -> None:
        share = np.bincount(arms_RN.ravel(), minlength=num_arms) / arms_RN.size
        shares = dict(zip(data.arms, share.tolist(), strict=True))
        found[name] = summary(wins[orders, arms_RN], orders, shares)

    def fixed(name: str, right_N: Array, shares: dict[str, float]) -> None:
        found[name] = summary(right_N[orders], orders, shares)

    for k, arm in enumerate(data.arms):
        fixed(f"arm:{arm}", wins[:, k], {arm: 1.0})
    best = int(wins.mean(0).argmax())
    fixed("best_single_in_hindsight", wins[:, best], {data.arms[best]: 1.0})
    for name, right_N in ensembles(data).items():
        fixed(name, right_N, {})
    chosen("full_information_costs_k", follow_the_leader(rewards, orders, seed))
    constant = np.ones((num_items, 1))
    for name, policy in policies(num_items, num_arms).items():
        chosen(name, replay(policy, rewards, orders, contexts_NH=constant, seed=seed))
    margin = margins(data)
    for name, signal in (("margin", margin), ("agreement_costs_k", agreement(data))):
        policy = MOSS(horizon=num_items)
        chosen(f"moss_on_{name}", replay(policy, signal, orders, seed=seed))
    # The margins of all arms are known only after all of them have scored.
    contexts = np.concatenate([constant, np.nan_to_num(margin)], axis=1) / np.sqrt(1 + num_arms)
    for name, policy in (
        ("linucb_margins_costs_k", LinUCB()),
        ("thompson_margins_costs_k", Thompson(reward_std=TUNED_NOISE)),
    ):
        chosen(name, replay(policy, rewards, orders, contexts_NH=contexts, seed=seed))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the replay."""

    scores: Path
    """Table of recorded scores."""
    orders: int = 200
    """Random orders of the items."""
    seed: int = 0
    """Seed of the orders and the draws."""


def main(options: Options) -> None:
    """Replays a table and prints the figures."""
    data = read_scores(options.scores)
    found = replay_all(data, options.orders, options.seed)
    write_figures(options.json, found)
    print_table(data, found)


def print_table(data: Recorded, found: dict[str, dict[str, Any]]) -> None:
    """Prints the figures in percent."""
    from rich.console import Console
    from rich.table import Table

    table = Table("policy", "accuracy", "95 %", "second half", "most chosen")
    for name, figure in found.items():
        low, high = figure["ci95"]
        most = sorted(figure["shares"].items(), key=lambda share: -share[1])[:3]
        table.add_row(
            name,
            f"{100 * figure['accuracy']:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{100 * figure['second_half']:.1f}",
            ", ".join(f"{arm} {share:.0%}" for arm, share in most),
        )
    num_items, num_missing = len(data.given_NC), int((~data.answered_NK).sum())
    console = Console()
    console.print(table)
    console.print(f"{num_items} items, {len(data.arms)} arms, {num_missing} answers missing")


if __name__ == "__main__":
    run(main, Options)

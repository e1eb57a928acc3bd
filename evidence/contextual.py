"""Contextual choice on arms that truly conflict: `python -m evidence.contextual --json FILE`.

Arms are reward models of one source each: Bradley-Terry heads on one frozen backbone, whose
features are computed once. An item is a pair of any source, its candidates in random order; a
bandit sees the item's context, chooses an arm, and sees 0 or 1: whether that arm ranks the
preferred response above the other. The context is the backbone's state at the end of the prompt, as
in `jobs.laser`, behind a constant, as in `evidence.planted_arms`. The source is not told.

One split by prompt serves all sources: half of *train* trains the arms, *select* and *calibrate*
give labeled items, the other half of *train* and *test* give the items. As many items are drawn of
each source whose preferred response is longer as of those whose is shorter, for all sources alike:
every accuracy is length-balanced, and so is what a bandit learns from. Seeds move the split, the
heads' start, the draw of items and their orders.

What needs more than the rewards of chosen arms says so in its name: `told` knows each item's
source, `hindsight` the items' labels, `labeled` is fitted on other items whose K verdicts are
known, `other_half` on those and on half of the items, to choose on the rest, `costs_k` has all arms
score each item. Intervals resample prompts with all their items.

Shapes: P pairs, N items, K arms (arm k is trained on source k), H size of a context, R orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from actors.prompt_embeddings import prompt_states
from benchmarks import harness
from benchmarks.harness import run, write_figures
from evidence.planted_arms import figure, show, walk
from evidence.preference import FIVE, HEAD
from evidence.preference_models import Bench
from evidence.preference_results import mean_interval
from evidence.replay import TUNED_NOISE, Recorded, arm_rewards, ensembles, right
from panoply.bandit.bandits import MOSS, Bandit, LinUCB, Sequential, Thompson, Uniform
from panoply.bandit.contexts import unit_contexts
from panoply.bandit.router import fit_router
from panoply.bandit.update import projection
from panoply.config.laser import LaserConfig
from panoply.config.preference import PreferenceConfig, ScheduleConfig
from panoply.data.tables import Split
from panoply.laser.ensembles import best_arms
from panoply.types import Array, Ints

PAIRS = {
    "hh_helpful": 750,
    "hh_harmless": 750,
    "alpacaeval_gpt4": 1000,
    "ukp_convarg": 1500,
    "truthfulqa": 900,
}
"""Pairs of each source, all parts together: more where one length is rare and texts are cheap."""
PER_CELL = 30
"""Labeled items of a source and length: 300 in all, as many as in `evidence.planted_arms`."""
INVERSE_PENALTY = 10.0
"""C of the logistic regressions, for contexts of unit length."""
DEPTH = LaserConfig.__dataclass_fields__["context_depth"].default
SCHEDULE = ScheduleConfig(pairs_per_step=20, num_epochs=6, head_lr=3e-3)
"""As `evidence.preference smoothing` trains heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is run."""

    data: Path = Path("../shared/data")
    """Folder with `pairs/*.parquet`."""
    work: Path = Path("runs/benchmark-contextual")
    """Folder of features, arms and contexts; what is there is not computed again."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    orders: int = 10
    """Random orders of the items of a seed."""
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Items:
    """Pairs with the margins of all arms: score(chosen) - score(rejected)."""

    margin_NK: Array
    contexts_NH: Array
    source_N: Ints
    longer_N: NDArray[np.bool_]
    """Whether the chosen response is the longer one."""
    key_N: NDArray[np.object_]
    """Split key: the prompt."""

    @property
    def cell_N(self) -> Ints:
        """Source and length, as one number."""
        return 2 * self.source_N + self.longer_N

    def take(self, rows: Ints) -> Items:
        """Returns some of the items."""
        return Items(
            self.margin_NK[rows],
            self.contexts_NH[rows],
            self.source_N[rows],
            self.longer_N[rows],
            self.key_N[rows],
        )


@dataclass(frozen=True, slots=True)
class Seed:
    """What one seed gave."""

    items: Items
    wins_NK: Array
    right: Mapping[str, Array]
    """How often each policy was right, `[N, 2]` as of `evidence.planted_arms.walk`."""
    shares: Mapping[str, Array]
    """Share of each arm in the decisions on each source `[K, K]`, of policies that choose one."""
    taken_for: Array
    """Share of the items of each source that a classifier of prompts takes for each `[K, K]`."""


def main(options: Options) -> None:
    """Trains the arms, lets all policies choose, writes the figures and prints tables."""
    from panoply.hub.backbone.pretrained import silence_libraries

    silence_libraries()
    torch.set_num_threads(options.threads)
    seeds: list[Seed] = []
    sizes: list[dict[str, Any]] = []
    for seed in options.seeds:
        labeled, items, trained = draw(options, seed)
        seeds.append(compete(labeled, items, options.orders, seed))
        told = {"seed": seed, "labeled": len(labeled.key_N), "items": len(items.key_N)}
        sizes.append(told | {"pairs_trained_on": trained})
    figures = report(seeds)
    figures["setting"] = {"pairs": PAIRS, "orders": options.orders, "seeds": sizes}
    write_figures(options.json, figures)
    print_tables(figures)


# Arms and items


def divide(split: Split) -> dict[str, Ints]:
    """Returns the rows of pairs that train arms, are labeled, and are chosen on.

    No prompt has rows in two of them. *test* alone would be a tenth, too few items.
    """
    half_P = (split.part_N == "train") & (split.fold_N == 0)
    return {
        "arms": np.flatnonzero((split.part_N == "train") & ~half_P),
        "labeled": np.union1d(split.of("select"), split.of("calibrate")),
        "items": np.flatnonzero((split.part_N == "test") | half_P),
    }


def thinned(options: Options) -> list[Path]:
    """Returns the files of the pairs that are used, drawn once for all seeds."""
    folder = options.work / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for source, most in PAIRS.items():
        table = pq.read_table(options.data / "pairs" / f"{source}.parquet")
        rows = np.random.default_rng(0).permutation(table.num_rows)[:most]
        found.append(folder / f"{source}.parquet")
        pq.write_table(table.take(np.sort(rows)), found[-1])
    return found


def draw(options: Options, seed: int) -> tuple[Items, Items, dict[str, int]]:
    """Trains the arms of a seed.

    Returns:
        labeled items and those to choose on, both balanced, and how many pairs trained each arm.
    """
    config = PreferenceConfig(
        pairs=tuple(str(path) for path in thinned(options)),
        seed=seed,
        backbone=HEAD,
        schedule=SCHEDULE,
        num_workers=0,
        store=str(options.work / "store"),
    )
    bench = Bench(config, options.work / f"seed-{seed}")
    table, rows = bench.found.table, divide(bench.found.table.split)
    train = np.intersect1d(bench.rows.train, rows["arms"])
    asked = np.union1d(rows["labeled"], rows["items"])
    bench.rows = replace(bench.rows, train=train, scored=asked)
    margins = [bench.fit(f"arm-{source}", config, (source,)).margin_P for source in FIVE]
    everything = Items(
        margin_NK=np.stack(margins, axis=1),
        contexts_NH=contexts(options, bench, np.union1d(rows["arms"], rows["labeled"])),
        source_N=np.array([FIVE.index(source) for source in table.source_P]),
        longer_N=table.gap_P > 0,
        key_N=table.split.key_N,
    )
    usable_P = ~bench.alike_P & (table.gap_P != 0)
    rng = np.random.default_rng((seed, 1))
    found: list[Items] = []
    for part, most in (("labeled", PER_CELL), ("items", len(usable_P))):
        given = everything.take(rows[part][usable_P[rows[part]]])
        found.append(given.take(balanced(given.cell_N, rng, most, 2 * len(FIVE))))
    trained = {source: int((table.source_P[train] == source).sum()) for source in FIVE}
    return found[0], found[1], trained


def contexts(options: Options, bench: Bench, known: Ints) -> Array:
    """Returns the contexts `[P, H]` of all pairs: a constant and a direction, half each.

    Args:
        options: where states are kept.
        bench: the pairs.
        known: rows whose mean state is the center; no item is among them.
    """
    ids, first, place_P = np.unique(
        bench.found.table.prompt_P.astype(str), return_index=True, return_inverse=True
    )
    file = options.work / "states.npz"
    if not file.exists():
        prompts = pq.read_table(bench.found.path, columns=["prompt"]).take(first).to_pylist()
        texts = [row["prompt"] for row in prompts]
        backbone = bench.config.backbone
        states = prompt_states(backbone.model, DEPTH, backbone.rendering, backbone.dtype, texts)
        np.savez(file, ids=ids, states=states)
    kept = np.load(file, allow_pickle=False)
    if not np.array_equal(kept["ids"], ids):
        raise ValueError(f"{file} has the states of other pairs: take another `--work`")
    states_PD = kept["states"][place_P]
    return unit_contexts(states_PD, states_PD[known].mean(0))


def balanced(cell_N: Ints, rng: np.random.Generator, most: int, num_cells: int) -> Ints:
    """Returns as many rows of each cell, as the smallest has and at most `most`, shuffled.

    Raises:
        ValueError: a cell is empty.
    """
    count = np.bincount(cell_N, minlength=num_cells)
    if not count.all():
        raise ValueError(f"the cells of source and length have {count.tolist()} items: take more")
    size = min(int(count.min()), most)
    drawn = [rng.permutation(np.flatnonzero(cell_N == c))[:size] for c in range(num_cells)]
    return rng.permutation(np.concatenate(drawn))


def recorded(margin_NK: Array, rng: np.random.Generator) -> Recorded:
    """Returns items of two candidates, of which either may be the preferred one."""
    preferred_N = rng.integers(2, size=len(margin_NK))
    correct = preferred_N[:, None] == np.arange(2)
    scores = np.where(correct[..., None], 0.5, -0.5) * margin_NK[:, None]
    arms = FIVE[: margin_NK.shape[1]]
    return Recorded(arms, scores, correct, np.ones_like(correct))


# Policies


def compete(labeled: Items, items: Items, orders: int, seed: int) -> Seed:
    """Lets every policy choose on the items."""
    rng = np.random.default_rng((seed, 2))
    data = recorded(items.margin_NK, rng)
    wins, known = arm_rewards(data), arm_rewards(recorded(labeled.margin_NK, rng))
    num_items, num_arms = wins.shape
    still = fixed_choices(labeled, known, items, wins, rng)
    rights = {name: wins[np.arange(num_items), arm_N] for name, arm_N in still.items()}
    rights |= ensembles(data)
    # A pair's z-scores are -1 and 1, which is a vote; in units of the arm's own deviation they
    # are not. That takes scores of other items, without their labels.
    z_NC = (data.scores_NCK / labeled.margin_NK.std(0)).sum(2)
    rights["ensemble_z_of_arm_costs_k"] = right(data, z_NC[..., None])[:, 0]
    size = items.contexts_NH.shape[1]
    thompson = Thompson(reward_std=TUNED_NOISE)
    seen = labeled.contexts_NH @ projection(size, min(size, thompson.max_features))
    policies: dict[str, tuple[Bandit, Array | None]] = {
        "linucb": (LinUCB(), None),
        "thompson": (thompson, None),
        "bayesian_router_labeled": (thompson, fit_router(seen, known)),
        "moss_without_context": (MOSS(horizon=num_items), None),
        "uniform": (Uniform(), None),
        "sequential": (Sequential(), None),
    }
    orders_RN = np.stack([rng.permutation(num_items) for _ in range(orders)])
    walked, arms = walk(policies, wins, items.contexts_NH, orders_RN)
    told_NK = np.eye(num_arms)[items.source_N]
    told, told_arms = walk({"linucb_told": (LinUCB(), None)}, wins, told_NK, orders_RN)
    shares = {name: by_source(items.source_N, arm_N, num_arms) for name, arm_N in still.items()}
    for name, arms_RN in (arms | told_arms).items():
        shares[name] = by_source(items.source_N[orders_RN], arms_RN, num_arms)
    twice = {name: np.stack([right_N, right_N], axis=1) for name, right_N in rights.items()}
    guessed = by_source(items.source_N, still["source_classifier_labeled"], num_arms)
    return Seed(items, wins, twice | told | walked, shares, guessed)


def fixed_choices(
    labeled: Items, known_MK: Array, items: Items, wins_NK: Array, rng: np.random.Generator
) -> dict[str, Ints]:
    """Returns the arms `[N]` of choices that do not learn on the way."""
    hindsight = best_arms(items.source_N.astype(str).tolist(), wins_NK)
    half_N = np.isin(items.key_N, rng.permutation(np.unique(items.key_N))[::2])
    other_half = np.empty(len(wins_NK), np.int64)
    for half in (half_N, ~half_N):
        seen = np.concatenate([labeled.contexts_NH, items.contexts_NH[~half]])
        verdicts = np.concatenate([known_MK, wins_NK[~half]])
        other_half[half] = likeliest(seen, verdicts, items.contexts_NH[half])
    by_prompt = classifier(labeled.contexts_NH, labeled.source_N).predict(items.contexts_NH)
    return {
        "best_of_each_told_hindsight": np.array([hindsight[str(s)] for s in items.source_N]),
        "own_source_told": items.source_N,
        "source_classifier_labeled": by_prompt,
        "arm_classifier_labeled": likeliest(labeled.contexts_NH, known_MK, items.contexts_NH),
        "arm_classifier_other_half": other_half,
        "best_single_hindsight": np.full(len(wins_NK), wins_NK.mean(0).argmax()),
        "best_single_labeled": np.full(len(wins_NK), known_MK.mean(0).argmax()),
    }


def classifier(contexts_NH: Array, labels_N: Any) -> Any:
    """Returns a logistic regression on contexts."""
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=2000).fit(contexts_NH, labels_N)


def likeliest(contexts_NH: Array, verdicts_NK: Array, asked_MH: Array) -> Ints:
    """Returns the arm `[M]` that is the most likely to be right, by a classifier of each arm."""
    fitted = [classifier(contexts_NH, right_N) for right_N in verdicts_NK.T]
    return np.argmax([one.predict_proba(asked_MH)[:, 1] for one in fitted], axis=0)


def by_source(source: Ints, arms: Ints, num: int) -> Array:
    """Returns the share of each arm in the choices on each source, `[num, num]`."""
    count = np.bincount((num * source + arms).ravel(), minlength=num * num).reshape(num, num)
    return count / count.sum(1, keepdims=True)


# Figures


def report(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Returns accuracies, gains of LinUCB, accuracies and shares by source, arms by source."""
    cell = np.concatenate([seed.items.cell_N for seed in seeds])
    key = np.concatenate([seed.items.key_N for seed in seeds])
    source = np.concatenate([seed.items.source_N for seed in seeds])
    wins = np.concatenate([seed.wins_NK for seed in seeds])
    names = list(seeds[0].right)
    own = {name: [seed.right[name] for seed in seeds] for name in names}

    def minus(mine: str, other: str) -> dict[str, Any]:
        apart = [x - y for x, y in zip(own[mine], own[other], strict=True)]
        return figure(apart, cell, key)

    def of_source(name: str, s: int) -> float:
        return float(np.concatenate(own[name])[source == s, 0].mean())

    def means(found: Sequence[Array]) -> list[list[float]]:
        return np.mean(found, axis=0).tolist()

    return {
        "sources": list(FIVE),
        "accuracy": {name: figure(of, cell, key) for name, of in own.items()},
        "linucb_minus": {name: minus("linucb", name) for name in names if name != "linucb"},
        "by_source": {n: [of_source(n, s) for s in range(wins.shape[1])] for n in names},
        "shares": {name: means([seed.shares[name] for seed in seeds]) for name in seeds[0].shares},
        "prompts_taken_for": means([seed.taken_for for seed in seeds]),
        "arms": [
            [
                mean_interval(wins[source == s, arm], cell[source == s], key[source == s])
                for s in range(wins.shape[1])
            ]
            for arm in range(wins.shape[1])
        ],
    }


def print_tables(figures: Mapping[str, Any]) -> None:
    """Prints the policies, the arms on every source, and what is chosen there."""
    from rich.console import Console
    from rich.table import Table

    console, sources = Console(width=200), figures["sources"]
    table = Table("policy", "accuracy", "seeds", "2nd half", "linucb minus", *sources)
    for name, found in figures["accuracy"].items():
        gain = figures["linucb_minus"].get(name)
        table.add_row(
            name,
            show(found),
            f"{found['min']:.3f} to {found['max']:.3f}",
            f"{found['second_half']:.3f}",
            "" if gain is None else show(gain),
            *(f"{value:.3f}" for value in figures["by_source"][name]),
        )
    console.print(table)
    table = Table("arm", *sources, title="arms on each source")
    for name, row in zip(sources, figures["arms"], strict=True):
        table.add_row(name, *(show(found) for found in row))
    console.print(table)
    console.print(figures["setting"])
    given = {"prompts are taken for": figures["prompts_taken_for"]} | figures["shares"]
    for name in ("prompts are taken for", "linucb", "bayesian_router_labeled"):
        table = Table("source", *sources, title=name)
        for source, row in zip(sources, given[name], strict=True):
            table.add_row(source, *(f"{share:.0%}" for share in row))
        console.print(table)


if __name__ == "__main__":
    run(main, Options)

"""Preference training as one worker sees it: its part of every step.

The steps are a function of the configuration alone, and what they compute is a sum over all
workers, so their number changes nothing.

Legend: `P` pairs of a part, `K` heads, `S` sources.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.reward_task import TrainTask
from panoply.data.tokens import TokenPairs
from panoply.hub.policy.activation_cache import ActivationCache
from panoply.hub.policy.trainable import TrainableModel, load_trainable
from panoply.preference.batch_sampler import BatchSampler
from panoply.preference.distributed import Group
from panoply.preference.losses import updated_labels
from panoply.preference.more import MoreState, weigh
from panoply.preference.pair_loss import PairLabels, pair_loss
from panoply.preference.step import (
    PairOutputs,
    PairTree,
    SourceSums,
    SourceWeights,
    StepOutput,
    compute_gradients,
    margins,
)
from panoply.preference.train_state import TrainState
from panoply.types import Array

BLOCK = 512
"""Pairs whose forwards are planned together."""


class NonFinite(FloatingPointError):
    """A loss or gradient is not a finite number; the batch was saved."""


class RewardTrainer:
    """One worker of a run: its part of the pairs, and a replica or shard of the weights."""

    def __init__(self, task: TrainTask, group: Group) -> None:
        self.task, self.config, self.group = task, task.config, group
        loss, backbone = self.config.loss, self.config.backbone
        self.trainable: TrainableModel = load_trainable(
            backbone,
            num_heads=self.config.num_heads,
            seed=self.config.seed,
            policy=loss.policy != "none",
            uniform=self.config.parallel == "fsdp",
        )
        self.net = self.trainable.net
        self.tokens = TokenPairs.open(Path(task.tokens))
        rows = task.pairs
        schedule = self.config.schedule
        balanced = self.config.weighting.sources != "mixed"
        self.plan = BatchSampler(
            rows.source_P[rows.train], schedule.pairs_per_step, self.config.seed, balanced
        )
        self.num_sources = len(self.plan.rows_K)
        per_step = self.tokens.column("num_tokens")[rows.train].mean() * schedule.pairs_per_step
        self.delayed = bool(per_step > schedule.token_budget)
        """Whether MORE's weights are those of the step before. A rule on the data alone: a step
        that fits one forward is weighed by itself."""
        self.weighting = MoreState.begin(self.num_sources)
        self.labels_P = rows.label_P.copy()
        self.inputs: ActivationCache | None = None
        if self.trainable.lower is not None:
            self.inputs = ActivationCache.of(self.trainable, backbone, task.store)
            self.inputs.fill(self.trainable, self.tokens, task.names, group)
        uses_reference = loss.policy == "dpo" and loss.alpha > 0
        self.frozen = deepcopy(self.net) if uses_reference and loss.reference == "copy" else None
        self.weights = TrainState.of(
            self.net,
            group,
            lr=schedule.lr,
            head_lr=schedule.head_lr,
            weight_decay=schedule.weight_decay,
            parallel=self.config.parallel,
        )
        precomputed = uses_reference and loss.reference == "precomputed"
        self.reference_P = self._reference() if precomputed else None

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.plan.steps_per_epoch * self.config.schedule.num_epochs

    def comparisons(self, rows: Sequence[int]) -> list[PairTree]:
        """Returns the trees of some pairs, with what goes into the trained part."""
        store, names = self.inputs, self.task.names
        return [
            PairTree(self.tokens.tree(row), inputs=store.read(row, names) if store else None)
            for row in rows
        ]

    def compare(
        self, rows: Sequence[int], *, policy: bool = False, as_saved: bool = False
    ) -> PairOutputs:
        """Returns both sides of some pairs, without gradients.

        Args:
            rows: of the pairs.
            policy: with log-probabilities.
            as_saved: with the trained weights as they are, which is how a saved model scores. A
                forward in bfloat16 rounds them, and loses what is small beside the weight that it
                changed: margins of a model trained for 50 steps came out a fifth smaller.
        """
        budget, idle = self.config.schedule.token_budget, self.weights.idle
        comparisons = self.comparisons(rows)
        if as_saved:
            comparisons = [
                replace(item, inputs=None if item.inputs is None else item.inputs.float())
                for item in comparisons
            ]
        with nullcontext() if as_saved else self.trainable.autocast():
            return margins(self.net, comparisons, budget, idle, policy=policy)

    def _reference(self) -> Array:
        """Returns the reference's log-probability ratio of every pair that needs it.

        It is kept beside the checkpoints, so that a run that goes on need not compute it again.
        """
        path = Path(self.task.folder) / "reference.npy"
        known = path.exists()
        self.group.wait()
        if known:
            return np.load(path, allow_pickle=False)
        rows = self.group.mine(np.union1d(self.task.pairs.train, self.task.pairs.scored))
        spoken = [self.compare(block, policy=True) for block in self._blocks(rows)]
        found = np.concatenate([log_ratio(compared).double().numpy() for compared in spoken])
        whole = self.group.spread(rows, found, len(self.tokens.table))
        if self.group.rank == 0:
            np.save(path.with_suffix(".part.npy"), whole, allow_pickle=False)
            path.with_suffix(".part.npy").rename(path)
        return whole

    def _blocks(self, rows: list[int]) -> list[list[int]]:
        """Returns rows in blocks, as many for every worker, if need be with nothing in them."""
        count = self.group.most(-(-len(rows) // BLOCK))
        return [rows[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]

    def targets(self, rows: Sequence[int], comparisons: Sequence[PairTree]) -> PairLabels:
        """Returns what is known of some pairs besides their texts."""
        own = self.task.pairs
        reference_P: Tensor | None = None
        if self.reference_P is not None:
            reference_P = torch.from_numpy(self.reference_P[list(rows)]).float()
        elif self.config.loss.policy == "dpo" and self.config.loss.alpha > 0:
            reference_P = self._reference_now(comparisons)
        at = list(rows)
        label_P, margin_P, weight_P = (
            torch.from_numpy(column[at]).float()
            for column in (self.labels_P, own.margin_P, own.weight_P)
        )
        bag_PK = self.bag(at) if self.config.bagging else None
        return PairLabels(label_P, margin_P, weight_P, reference_P, bag_PK)

    def bag(self, rows: Sequence[int]) -> Tensor:
        """Returns how often each head has each pair in its bag, `[P, K]`: a function of the pair.

        A draw from Poisson(1), which is what drawing with replacement comes to.
        """
        seed, num_heads = self.config.seed, self.config.num_heads
        drawn = [np.random.default_rng((seed, row)).poisson(1.0, num_heads) for row in rows]
        return torch.from_numpy(np.array(drawn).reshape(-1, num_heads)).float()

    def _reference_now(self, comparisons: Sequence[PairTree]) -> Tensor:
        budget = self.config.schedule.token_budget
        if not comparisons:
            return torch.zeros(0)
        with self.trainable.autocast():
            if self.frozen is not None:
                return log_ratio(margins(self.frozen, comparisons, budget, policy=True))
            with self.trainable.adapters_off():
                return log_ratio(margins(self.net, comparisons, budget, policy=True))

    def step(self, number: int) -> dict[str, Any]:
        """Takes a step and returns what is logged of it.

        Raises:
            NonFinite: the loss or a gradient is not finite; no weight has changed.
        """
        began = time.perf_counter()
        places = self.plan.ids(number)
        rows = self.task.pairs.train[places]
        mine = self.group.mine(rows)
        comparisons = self.comparisons(mine)
        targets = self.targets(mine, comparisons)
        sizes_S = np.bincount(
            self.task.pairs.source_P[rows],
            weights=self.task.pairs.weight_P[rows],
            minlength=self.num_sources,
        ).astype(np.float64)
        done = self._gradients(comparisons, targets, mine, sizes_S)
        norm = self.weights.clip(self.config.schedule.max_norm)
        loss = float(self.group.sum(np.array([done.loss]))[0])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._save_batch(number, mine, done)
            raise NonFinite(f"step {number}: loss {loss}, gradient norm {norm}")
        self.weights.step(self.rate(number))
        tokens = float(sum(item.tree.num_tokens for item in comparisons))
        logged: dict[str, Any] = {"step": number, "loss": loss, "gradient_norm": norm}
        logged["tokens"] = float(self.group.sum(np.array([tokens]))[0])
        logged["seconds"] = time.perf_counter() - began
        if self.config.weighting.sources == "more":
            logged["weights"] = self.weighting.weights_K.tolist()
        return logged

    def _gradients(
        self, comparisons: Sequence[PairTree], targets: PairLabels, mine: list[int], sizes_S: Array
    ) -> StepOutput:
        source_P = self.task.pairs.source_P[mine]
        more, delayed = self.config.weighting.sources == "more", self.delayed
        solved: list[Tensor] = []  # once a step, also where memory ran out after it

        def shares() -> Tensor:
            if self.config.weighting.sources == "mixed":
                return torch.full((len(mine),), 1 / float(sizes_S.sum()))
            return torch.from_numpy(self.weighting.weights_K / sizes_S)[source_P].float()

        def solve(sums: SourceSums) -> Tensor:
            if not solved:
                grad_SD = self.group.sum(sums.grad_SD) / sizes_S[:, None]
                loss_S = self.group.sum(sums.loss_S) / sizes_S
                # What is not finite ends the step before it counts: see `step`.
                if np.isfinite(grad_SD).all() and np.isfinite(loss_S).all():
                    self.weighting = weigh(self.weighting, grad_SD, loss_S, self.config.weighting)
                solved.append(shares())
            return solved[0]

        with self.trainable.autocast():
            done = compute_gradients(
                self.net,
                comparisons,
                budget=self.config.schedule.token_budget,
                shares_P=shares(),
                loss=lambda compared: pair_loss(compared, targets, self.config.loss),
                weigh=SourceWeights(source_P, self.num_sources, solve) if more else None,
                ahead=more and not delayed,
                idle=self.weights.idle,
            )
        if more and delayed and done.sums is not None:
            solve(done.sums)
        return done

    def rate(self, step: int) -> float:
        """Returns the share of the peak learning rate: linear warm-up, then a cosine to zero."""
        rising = self.config.schedule.warmup * self.num_steps
        if step < rising:
            return (step + 1) / (rising + 1)
        along = (step - rising) / max(1.0, self.num_steps - rising)
        return 0.5 * (1 + math.cos(math.pi * along))

    def smooth_labels(self) -> None:
        """Moves the training labels toward the model's belief, after an epoch."""
        rows = self.group.mine(self.task.pairs.train)
        margin_PK = self.all_margins(rows)
        label_P = torch.from_numpy(self.labels_P[self.task.pairs.train])
        margin_P = torch.from_numpy(margin_PK[self.task.pairs.train].mean(1))
        updated = updated_labels(label_P, margin_P, self.config.loss.smoothing)
        self.labels_P[self.task.pairs.train] = updated.numpy()

    def all_margins(self, rows: list[int], *, as_saved: bool = False) -> Array:
        """Returns margins `[pairs, K]` of the rows that the workers bring; NaN for others."""
        found = np.concatenate([self.margin(b, as_saved=as_saved) for b in self._blocks(rows)])
        return self.group.spread(rows, found, len(self.tokens.table))

    def margin(self, rows: Sequence[int], *, as_saved: bool = False) -> Array:
        """Returns margins `[P, K]`; of the implicit reward where no reward loss trains a head.

        R(x, y) = beta log pi(y | x) / pi_ref(y | x)   (DPO as a reward model)
        """
        if self.config.loss.reward:
            compared = self.compare(rows, as_saved=as_saved)
            return compared.margin_PK.double().numpy()
        reference_P = self.targets(rows, self.comparisons(rows)).reference_P
        assert reference_P is not None
        spoken = log_ratio(self.compare(rows, policy=True))
        apart = self.config.loss.beta * (spoken - reference_P)
        return apart.double().numpy()[:, None].repeat(self.config.num_heads, 1)

    def moments(self) -> tuple[list[float], list[float]]:
        """Returns the mean and deviation of each head's scores on a sample of training responses.

        0 and 1 for a single head, whose scores stay as they are.
        """
        if self.config.num_heads == 1:
            return [0.0], [1.0]
        rows = self.group.mine(self.task.pairs.train[:BLOCK])
        compared = self.compare(rows, as_saved=True)
        score_RK = torch.cat([compared.chosen_PK, compared.rejected_PK]).double().numpy()
        sums = [np.full(1, len(score_RK)), score_RK.sum(0), (score_RK**2).sum(0)]
        count, first, second = (self.group.sum(x) for x in sums)
        mean = first / count
        return mean.tolist(), np.sqrt(second / count - mean**2).tolist()

    def select_loss(self) -> float:
        """Returns the log loss on *select*, the mean of the sources'."""
        rows = self.task.pairs.select
        margin_P = self.all_margins(self.group.mine(rows))[rows].mean(1)
        margin_P *= 2 * self.task.pairs.label_P[rows] - 1
        source_P = self.task.pairs.source_P[rows]
        losses = [np.logaddexp(0, -margin_P[source_P == s]).mean() for s in np.unique(source_P)]
        return float(np.mean(losses))

    def _save_batch(self, number: int, mine: list[int], done: StepOutput) -> None:
        found = {
            "step": number,
            "rows": [int(row) for row in mine],
            "ids": [self.task.names[row] for row in mine],
            "loss": done.loss,
            "margins": done.margin_PK.tolist(),
            "config": asdict(self.config),
        }
        path = Path(self.task.folder) / f"nonfinite-{number}-{self.group.rank}.json"
        path.write_text(json.dumps(found, indent=1))


def log_ratio(compared: PairOutputs) -> Tensor:
    """Returns log pi(y+ | x) - log pi(y- | x) `[P]`."""
    chosen_P, rejected_P = compared.chosen_log_prob_P, compared.rejected_log_prob_P
    assert chosen_P is not None
    assert rejected_P is not None
    return chosen_P - rejected_P

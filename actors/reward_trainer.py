"""Training of a reward model on pairs, as one worker sees it: its part of every step.

The steps are a function of the configuration alone, and what they compute is a sum over all
workers, so their number changes nothing.

Legend: `P` pairs of a part, `K` heads, `S` sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.training_loop import Trainer, train_each
from actors.untrained import measure_untrained
from panoply.config.preference import Mixed, More, NoPolicyLoss, PreferenceConfig, ReferencedLoss
from panoply.data.tokens import TokenPairs
from panoply.files import reading, whole_file
from panoply.hub.policy.activation_cache import ActivationCache
from panoply.hub.policy.trainable import load_trainable
from panoply.measure.intervals import wins
from panoply.model.reward_net import RewardNet
from panoply.preference.batch_sampler import BatchSampler
from panoply.preference.checkpoint import save_tensors
from panoply.preference.distributed import Group
from panoply.preference.losses import updated_labels
from panoply.preference.more import MoreState, weighted_gradients
from panoply.preference.pair_loss import PairLabels, pair_loss
from panoply.preference.step import PairOutputs, PairSources, PairTree, evaluate_pairs
from panoply.preference.train_state import TrainState, learning_rate
from panoply.types import Array, Ints

BLOCK = 512
"""Pairs whose forwards are planned together."""


@dataclass(frozen=True, slots=True)
class PairRows:
    """The pairs of a run without their texts; rows are those of the token file."""

    source_P: Ints
    """Number of each pair's source."""
    label_P: Array
    margin_P: Array
    weight_P: Array
    train: Ints
    select: Ints
    scored: Ints
    """Rows whose margins are among the results."""


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One reward model to train."""

    config: PreferenceConfig
    pairs: PairRows
    tokens: str
    """File of the token trees."""
    names: Sequence[str]
    """Id of each pair's texts, by which cached activations are found."""
    folder: str
    """Folder of checkpoints and results, on storage that all workers share."""
    store: str
    """Root of what is computed once and shared by runs."""
    threads: int = 0
    """Threads of each worker; 0 leaves torch's number."""
    untrained: Ints = field(default_factory=lambda: np.arange(0))
    """Rows that the model scores before training too, for comparison."""
    is_member: bool = False
    """Whether its single head is a member of an ensemble, whose other members are other tasks."""
    keeps_scores: bool = False
    """Whether scores are among the results, as a rule of the ensemble needs them."""


def train_reward_models(config: Mapping[str, Sequence[TrainTask]]) -> None:
    """Trains the models of `config["tasks"]` inside a Ray Train worker."""
    train_each(config["tasks"], RewardTrainer)


class RewardTrainer(Trainer):
    """One worker of a run: its part of the pairs, and a replica or shard of the parameters."""

    def __init__(self, task: TrainTask, group: Group) -> None:
        super().__init__(task, group)
        self.task, self.config = task, task.config
        loss, schedule, pairs = self.config.loss, self.config.schedule, task.pairs
        self.tokens = TokenPairs.open(Path(task.tokens))
        if len(task.untrained):
            store = Path(task.store)
            measure_untrained(self.config, self.tokens, task.untrained, self.folder, store, group)
        self.trainable = load_trainable(
            self.config.backbone,
            num_heads=self.config.num_heads,
            seed=self.config.seed,
            policy=not isinstance(loss.policy, NoPolicyLoss),
            uniform=self.config.parallel == "fsdp",
        )
        self.net = self.trainable.net
        balanced = not isinstance(self.config.weighting, Mixed)
        self.sampler = BatchSampler(
            pairs.source_P[pairs.train], schedule.pairs_per_step, self.config.seed, balanced
        )
        self.num_steps = self.sampler.steps_per_epoch * schedule.num_epochs
        self.checkpoint_every, self.max_norm = schedule.checkpoint_every, schedule.max_norm
        step_tokens = self.tokens.column("num_tokens")[pairs.train].mean() * schedule.pairs_per_step
        self.delayed = bool(step_tokens > schedule.token_budget)
        """Whether MORE takes the source weights of the step before. A rule on the data alone: a
        step that fits one forward is weighted by its own gradients."""
        self.more = MoreState.begin(len(self.sampler.rows_K))
        self.labels_P = pairs.label_P.copy()
        self.best_loss, self.best_params, self.num_waited = float("inf"), None, 0

        self.cache: ActivationCache | None = None
        if self.trainable.frozen_prefix is not None:
            self.cache = ActivationCache.of(self.trainable, self.config.backbone, task.store)
            self.cache.fill(self.trainable, self.tokens, task.names, group)
        self.reference_net: RewardNet | None = None
        if isinstance(loss.policy, ReferencedLoss) and loss.policy.reference == "copy":
            self.reference_net = deepcopy(self.net)  # before the parameters are sharded
        self.state = TrainState.of(
            self.net,
            group,
            lr=schedule.lr,
            head_lr=schedule.head_lr,
            weight_decay=schedule.weight_decay,
            parallel=self.config.parallel,
        )
        self.reference_P: Array | None = None
        if isinstance(loss.policy, ReferencedLoss) and loss.policy.reference == "precomputed":
            self.reference_P = self._precomputed_reference()

    @property
    def over(self) -> bool:
        """Returns whether all steps are taken, or patience has ended."""
        patience = self.config.schedule.patience
        return super().over or bool(patience and self.num_waited >= patience)

    def pair_trees(self, rows: Sequence[int]) -> list[PairTree]:
        """Returns the trees of some pairs, with activations where they are cached."""
        trees: list[PairTree] = []
        for row in rows:
            activations = self.cache.read(row, self.task.names) if self.cache else None
            trees.append(PairTree(self.tokens.tree(row), cached_activations=activations))
        return trees

    def evaluate_pairs(
        self, rows: Sequence[int], *, policy: bool = False, as_saved: bool = False
    ) -> PairOutputs:
        """Returns the outputs of some pairs, without gradients.

        Args:
            rows: rows of the pairs.
            policy: with log-probabilities.
            as_saved: with the trained parameters as they are, which is how a saved model scores. A
                forward in bfloat16 rounds them, and loses what is small beside the parameter that
                it changed: margins of a model trained for 50 steps came out a fifth smaller.
        """
        budget, padding = self.config.schedule.token_budget, self.state.num_padding_forwards
        trees = self.pair_trees(rows)
        if as_saved:
            for i, item in enumerate(trees):
                if item.cached_activations is not None:
                    trees[i] = replace(item, cached_activations=item.cached_activations.float())
        with nullcontext() if as_saved else self.trainable.autocast():
            return evaluate_pairs(self.net, trees, budget, padding, policy=policy)

    def _precomputed_reference(self) -> Array:
        """Returns the reference's log-ratio of every pair that needs it; NaN for others.

        The file beside the checkpoints keeps it: a run that resumes has other parameters.
        """
        path = self.folder / "reference.npy"
        exists = path.exists()
        self.group.barrier()
        if exists:
            with reading(path):
                return np.load(path, allow_pickle=False)
        rows = self.group.shard(np.union1d(self.task.pairs.train, self.task.pairs.scored))
        blocks = [self.evaluate_pairs(block, policy=True) for block in self._blocks(rows)]
        ratio_P = torch.cat([outputs.log_ratio_P for outputs in blocks]).double().numpy()
        reference_P = self.group.gather_rows(rows, ratio_P, len(self.tokens.table))
        if self.group.rank == 0:
            with whole_file(path) as partial:
                np.save(partial, reference_P, allow_pickle=False)
        return reference_P

    def _blocks(self, rows: list[int]) -> list[list[int]]:
        """Returns rows in blocks, equally many for every worker, some of them empty if need be."""
        count = self.group.all_reduce_max(-(-len(rows) // BLOCK))
        return [rows[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]

    def labels(self, rows: Sequence[int], trees: Sequence[PairTree]) -> PairLabels:
        """Returns the labels of some pairs."""
        at, pairs = list(rows), self.task.pairs
        return PairLabels(
            label_P=torch.from_numpy(self.labels_P[at]).float(),
            margin_P=torch.from_numpy(pairs.margin_P[at]).float(),
            weight_P=torch.from_numpy(pairs.weight_P[at]).float(),
            reference_P=self._reference(at, trees),
            bag_PK=self.bag(at) if self.config.bagging else None,
        )

    def _reference(self, rows: Sequence[int], trees: Sequence[PairTree]) -> Tensor | None:
        """Returns the reference's log-ratio `[P]` of some pairs, where the loss needs it."""
        if not isinstance(self.config.loss.policy, ReferencedLoss):
            return None
        if self.reference_P is not None:
            return torch.from_numpy(self.reference_P[list(rows)]).float()
        if not trees:
            return torch.zeros(0)
        budget = self.config.schedule.token_budget
        with self.trainable.autocast():
            if self.reference_net is not None:
                return evaluate_pairs(self.reference_net, trees, budget, policy=True).log_ratio_P
            with self.trainable.adapters_off():
                return evaluate_pairs(self.net, trees, budget, policy=True).log_ratio_P

    def bag(self, rows: Sequence[int]) -> Tensor:
        """Returns the count of each pair in the bag of each head, `[P, K]`: a function of the pair.

        A draw from Poisson(1), which is what drawing with replacement comes to.
        """
        seed, num_heads = self.config.seed, self.config.num_heads
        counts = [np.random.default_rng((seed, row)).poisson(1.0, num_heads) for row in rows]
        return torch.from_numpy(np.array(counts).reshape(-1, num_heads)).float()

    def step(self, number: int) -> dict[str, Any]:
        """Takes a step and returns what is logged of it.

        Raises:
            NonFinite: the loss or a gradient is not finite; no parameter has changed.
        """
        pairs, schedule = self.task.pairs, self.config.schedule
        step_rows = pairs.train[self.sampler.batch_indices(number)]
        rows = self.group.shard(step_rows)
        trees = self.pair_trees(rows)
        labels = self.labels(rows, trees)
        total_S = np.bincount(
            pairs.source_P[step_rows],
            weights=pairs.weight_P[step_rows],
            minlength=len(self.sampler.rows_K),
        ).astype(np.float64)

        with self.trainable.autocast():
            out, self.more = weighted_gradients(
                self.state,
                trees,
                PairSources(pairs.source_P[rows], total_S),
                self.config.weighting,
                self.more,
                loss=lambda outputs: pair_loss(outputs, labels, self.config.loss),
                budget=schedule.token_budget,
                delayed=self.delayed,
            )
        batch = {"rows": [int(row) for row in rows], "ids": [self.task.names[row] for row in rows]}
        rate = learning_rate(number, self.num_steps, schedule.warmup)
        logged = self.update(number, out, trees, batch, rate)
        logged |= {"lr": rate * schedule.lr, "head_lr": rate * schedule.head_lr}
        if self.config.loss.reward:
            logged |= self.step_accuracy(out.margin_PK, rows)
        if isinstance(self.config.weighting, More):
            logged["source_weights"] = self.more.source_weights_K.tolist()
        return logged

    def step_accuracy(self, margin_PK: Tensor, rows: Sequence[int]) -> dict[str, float]:
        """Returns the share of a step's pairs that are ranked as labeled, and the mean margin.

        Args:
            margin_PK: margins of this worker's pairs, before the step.
            rows: rows of these pairs.
        """
        margin_P = margin_PK.double().numpy().mean(1) * (2 * self.task.pairs.label_P[rows] - 1)
        sums = np.array([wins(margin_P).sum(), margin_P.sum(), len(rows)], np.float64)
        num_won, margin, num_pairs = self.group.all_reduce_sum(sums).tolist()
        return {"accuracy": num_won / num_pairs, "margin": margin / num_pairs}

    def after_step(self) -> None:
        """Smooths labels after an epoch, and evaluates on *select*, where that is due."""
        done, per_epoch = len(self.history), self.sampler.steps_per_epoch
        if self.config.loss.smoothing and done % per_epoch == 0:
            self.smooth_labels()
        if done % (self.config.schedule.eval_every or per_epoch) == 0 or done == self.num_steps:
            self.evaluate()

    def smooth_labels(self) -> None:
        """Moves the training labels toward the model's belief."""
        train = self.task.pairs.train
        margin_PK = self.all_margins(self.group.shard(train))
        label_P = torch.from_numpy(self.labels_P[train])
        margin_P = torch.from_numpy(margin_PK[train].mean(1))
        updated = updated_labels(label_P, margin_P, self.config.loss.smoothing)
        self.labels_P[train] = updated.numpy()

    def evaluate(self) -> None:
        """Evaluates on *select*, and keeps the parameters where they are the best."""
        loss = self.select_loss()
        self.history[-1]["select_loss"] = loss
        self.num_waited = 0 if loss < self.best_loss else self.num_waited + 1
        if loss < self.best_loss:
            self.best_loss = loss
            if self.config.schedule.keep_best:
                self.best_params = self.state.params()

    def select_loss(self) -> float:
        """Returns the log loss on *select*, the mean over the sources."""
        rows = self.task.pairs.select
        margin_P = self.all_margins(self.group.shard(rows))[rows].mean(1)
        margin_P *= 2 * self.task.pairs.label_P[rows] - 1
        source_P = self.task.pairs.source_P[rows]
        losses = [np.logaddexp(0, -margin_P[source_P == s]).mean() for s in np.unique(source_P)]
        return float(np.mean(losses))

    def all_margins(self, rows: list[int], *, as_saved: bool = False) -> Array:
        """Returns margins `[pairs, K]` of the rows that the workers bring; NaN for others."""
        blocks = [self.margins(block, as_saved=as_saved) for block in self._blocks(rows)]
        return self.group.gather_rows(rows, np.concatenate(blocks), len(self.tokens.table))

    def all_scores(self, rows: list[int]) -> tuple[Array, Array]:
        """Returns scores of both responses `[pairs, K]` as a saved model gives them; see above."""
        blocks = [self.evaluate_pairs(block, as_saved=True) for block in self._blocks(rows)]
        chosen_PK = torch.cat([outputs.chosen_PK for outputs in blocks]).double().numpy()
        rejected_PK = torch.cat([outputs.rejected_PK for outputs in blocks]).double().numpy()
        num_pairs = len(self.tokens.table)
        chosen_PK = self.group.gather_rows(rows, chosen_PK, num_pairs)
        return chosen_PK, self.group.gather_rows(rows, rejected_PK, num_pairs)

    def margins(self, rows: Sequence[int], *, as_saved: bool = False) -> Array:
        """Returns margins `[P, K]`; of the implicit reward where no reward loss trains a head.

        R(x, y) = beta log pi(y | x) / pi_ref(y | x)   (DPO as a reward model)
        """
        policy = self.config.loss.policy
        if self.config.loss.reward or not isinstance(policy, ReferencedLoss):
            return self.evaluate_pairs(rows, as_saved=as_saved).margin_PK.double().numpy()
        reference_P = self._reference(rows, self.pair_trees(rows))
        assert reference_P is not None
        log_ratio_P = self.evaluate_pairs(rows, policy=True).log_ratio_P
        margin_P = policy.beta * (log_ratio_P - reference_P)
        return margin_P.double().numpy()[:, None].repeat(self.config.num_heads, 1)

    def moments(self) -> tuple[list[float], list[float]]:
        """Returns the mean and deviation of each head's scores on a sample of training responses.

        0 and 1 for a model of a single head, whose scores stay as they are.
        """
        if self.config.num_heads == 1 and not self.task.is_member:
            return [0.0], [1.0]
        outputs = self.evaluate_pairs(
            self.group.shard(self.task.pairs.train[:BLOCK]), as_saved=True
        )
        score_RK = torch.cat([outputs.chosen_PK, outputs.rejected_PK]).double().numpy()
        count = self.group.all_reduce_sum(np.full(1, len(score_RK)))
        mean = self.group.all_reduce_sum(score_RK.sum(0)) / count
        mean_square = self.group.all_reduce_sum((score_RK**2).sum(0)) / count
        return mean.tolist(), np.sqrt(mean_square - mean**2).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a checkpoint needs; every worker takes part."""
        momentum = self.more.momentum_KD
        return super().state_dict() | {
            "more_momentum": None if momentum is None else torch.from_numpy(momentum),
            "source_weights": torch.from_numpy(self.more.source_weights_K),
            "labels": torch.from_numpy(self.labels_P),
            "best_loss": self.best_loss,
            "best_params": self.best_params,
            "num_waited": self.num_waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from a checkpoint of any number of workers."""
        super().load_state_dict(state)
        momentum, source_weights = state["more_momentum"], state["source_weights"]
        self.more = MoreState(
            None if momentum is None else momentum.numpy(), source_weights.numpy()
        )
        self.labels_P = state["labels"].numpy()
        self.best_loss, self.best_params = state["best_loss"], state["best_params"]
        self.num_waited = state["num_waited"]

    def write_results(self) -> dict[str, Any]:
        """Writes margins and parameters; returns the content of `done.json`."""
        if self.best_params is not None:
            self.state.load_params(self.best_params)
        rows = self.group.shard(self.task.pairs.scored)
        chosen_PK: Array | None = None
        if not self.task.keeps_scores:
            margin_PK = self.all_margins(rows, as_saved=True)
        else:
            chosen_PK, rejected_PK = self.all_scores(rows)
            margin_PK = chosen_PK - rejected_PK
        centers, scales = self.moments()
        params = self.state.params()
        if self.group.rank == 0:
            with whole_file(self.folder / "margins.npy") as partial:
                np.save(partial, margin_PK, allow_pickle=False)
            if chosen_PK is not None:
                with whole_file(self.folder / "chosen.npy") as partial:
                    np.save(partial, chosen_PK, allow_pickle=False)
            save_tensors(params, self.folder / "trained.pt")
        return {
            "history": self.history,
            "delayed": self.delayed,
            "centers": centers,
            "scales": scales,
            "best_select_loss": self.best_loss,
            "labels": self.labels_P.tolist() if self.config.loss.smoothing else None,
        }

"""Preference models fitted in one process, without Ray, by the functions that the trainers call.

Legend: `P` pairs, `N` responses, `D` size of a feature, `K` sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from panoply.config.preference import Mixed, ScheduleConfig, Weighting
from panoply.measure.calibration import fit_scale
from panoply.model.decoder import Decoder
from panoply.model.reward_net import RewardNet, score
from panoply.model.tree import TokenTree
from panoply.preference.batch_sampler import BatchSampler
from panoply.preference.distributed import Group
from panoply.preference.more import MoreState, weighted_gradients
from panoply.preference.step import (
    DUMMY_TREE,
    PairSources,
    PairTree,
    evaluate_pairs,
    reward_loss,
)
from panoply.preference.train_state import TrainState, learning_rate
from panoply.types import Array, Bools, Ints

CALIBRATED_SHARE = 0.1
"""Share of the pairs that the temperature is fitted on where none are named."""
INIT_STD = 0.02
"""Deviation of the head's initial weights."""
FIT_SCHEDULE = ScheduleConfig(num_epochs=20, head_lr=3e-2)
"""Schedule of `fit`: a head alone takes more and larger steps than a backbone."""
PLAIN_MIXING = Mixed()


@dataclass(frozen=True, slots=True)
class PreferenceModel:
    """A fitted Bradley-Terry reward model."""

    net: RewardNet
    temperature: float
    """T of P(y+ > y-) = sigma( (R(y+) - R(y-)) / T ); infinite where margins say nothing."""
    sources: tuple[str, ...]
    history: list[dict[str, Any]]
    """One entry a step: `loss`, `gradient_norm`, and `source_weights` of the sources."""

    @torch.no_grad()
    def score(self, features_ND: ArrayLike) -> Array:
        """Returns the reward `[N]` of each response from its features."""
        features = torch.as_tensor(np.asarray(features_ND, np.float32))
        scores_N1 = score(self.net.head, features.to(self.net.head.weight.device))
        return scores_N1[:, 0].double().cpu().numpy()

    @torch.no_grad()
    def score_tree(self, tree: TokenTree) -> Array:
        """Returns the reward of each response of a prompt, for a model with a decoder."""
        return self.net([tree]).scores_RK[:, 0].double().cpu().numpy()


def fit(
    chosen_PD: ArrayLike,
    rejected_PD: ArrayLike,
    source_P: Sequence[str] | None = None,
    calibrate_P: ArrayLike | None = None,
    *,
    weighting: Weighting = PLAIN_MIXING,
    schedule: ScheduleConfig = FIT_SCHEDULE,
    seed: int = 0,
) -> PreferenceModel:
    """Fits a linear reward R(x) = w . x on features of pairs, by Bradley-Terry.

        L = sum_s lambda_s  mean over the pairs of source s of  -log sigma( R(x+) - R(x-) )

    Args:
        chosen_PD: `[P, D]` features of the preferred responses, of about unit scale.
        rejected_PD: `[P, D]` features of the other responses.
        source_P: source of each pair; None: a single one.
        calibrate_P: `[P]` whether a pair is held out to fit the temperature; None: a tenth of them,
            drawn at random. Name them where pairs share prompts.
        weighting: lambda: `Mixed()`, `Balanced()` or `More()`.
        schedule: steps and learning rates.
        seed: seed of the initial weights and the order of the pairs.

    Raises:
        ValueError: shapes differ, features are not finite, or no pair is left to train on.
        FloatingPointError: a loss or gradient is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> chosen, rejected = rng.normal(0.5, 1, (400, 8)), rng.normal(-0.5, 1, (400, 8))
        >>> model = fit(chosen, rejected, ["a"] * 200 + ["b"] * 200, weighting=More())
        >>> bool((model.score(chosen) > model.score(rejected)).mean() > 0.9)
        True
    """
    chosen, rejected = np.asarray(chosen_PD, np.float32), np.asarray(rejected_PD, np.float32)
    if chosen.shape != rejected.shape or chosen.ndim != 2:
        raise ValueError(
            f"`chosen_PD` and `rejected_PD` must have one shape [P, D], got {chosen.shape} and "
            f"{rejected.shape}"
        )
    if not (np.isfinite(chosen).all() and np.isfinite(rejected).all()):
        raise ValueError("features must be finite: leave pairs with missing features out")
    sides_P2D = torch.from_numpy(np.stack([chosen, rejected], axis=1))
    trees = [PairTree(DUMMY_TREE, cached_activations=sides_2D) for sides_2D in sides_P2D]
    net = RewardNet(None, _head(chosen.shape[1], seed))
    return _fit(net, trees, source_P, calibrate_P, weighting, schedule, seed)


def fit_decoder(
    decoder: Decoder,
    trees: Sequence[TokenTree],
    source_P: Sequence[str] | None = None,
    calibrate_P: ArrayLike | None = None,
    *,
    weighting: Weighting = PLAIN_MIXING,
    schedule: ScheduleConfig = FIT_SCHEDULE,
    seed: int = 0,
) -> PreferenceModel:
    """Fits a reward model on a decoder, whose parameters with `requires_grad` are trained too.

    Args:
        decoder: the backbone, made with `trainable=True`.
        trees: a tree of each pair, with the preferred response first.
        source_P: see `fit`, as all that follow.
        calibrate_P: held-out pairs.
        weighting: weighting of the sources.
        schedule: steps and learning rates.
        seed: seed of the head and of the order of the pairs.

    Raises:
        ValueError: no pair is left to train on.
        FloatingPointError: a loss or gradient is not finite.
    """
    head = _head(decoder.hidden_size, seed).to(decoder.device)
    pairs = [PairTree(tree) for tree in trees]
    net = RewardNet(decoder, head)
    return _fit(net, pairs, source_P, calibrate_P, weighting, schedule, seed)


def _head(size: int, seed: int) -> nn.Linear:
    head = nn.Linear(size, 1, bias=False)
    draw = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    head.weight.data.copy_(draw * INIT_STD)
    return head


def _fit(
    net: RewardNet,
    trees: Sequence[PairTree],
    source_P: Sequence[str] | None,
    calibrate_P: ArrayLike | None,
    weighting: Weighting,
    schedule: ScheduleConfig,
    seed: int,
) -> PreferenceModel:
    if schedule.keep_best or schedule.patience or schedule.eval_every:
        raise ValueError(
            "`schedule.keep_best`, `schedule.patience` and `schedule.eval_every` need a *select* "
            "part, which a fit has not: leave them out"
        )
    for name, column in (("source_P", source_P), ("calibrate_P", calibrate_P)):
        if column is not None and np.shape(column) != (len(trees),):
            raise ValueError(
                f"`{name}` must have one value for each of {len(trees)} pairs, got the shape "
                f"{np.shape(column)}"
            )
    held_out_P = _held_out(len(trees), calibrate_P, seed)
    train, calibrate = np.flatnonzero(~held_out_P), np.flatnonzero(held_out_P)
    if not (len(train) and len(calibrate)):
        raise ValueError(
            f"{len(train)} pairs are left to train on and {len(calibrate)} to fit the temperature "
            "on: both need some"
        )
    names_P = np.asarray(["all"] * len(trees) if source_P is None else source_P, np.object_)
    sources, numbers = np.unique(names_P[train], return_inverse=True)
    history = _train(
        net, [trees[row] for row in train.tolist()], numbers, weighting, schedule, seed
    )

    held_out = [trees[row] for row in calibrate.tolist()]
    margin_P = evaluate_pairs(net, held_out, schedule.token_budget).margin_PK[:, 0]
    scale = fit_scale(margin_P.double().numpy())
    return PreferenceModel(net, 1 / scale if scale else float("inf"), tuple(sources), history)


def _train(
    net: RewardNet,
    trees: Sequence[PairTree],
    source_P: Ints,
    weighting: Weighting,
    schedule: ScheduleConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Takes all steps on some pairs; returns what is logged of each."""
    balanced = not isinstance(weighting, Mixed)
    sampler = BatchSampler(source_P, schedule.pairs_per_step, seed, balanced)
    num_sources = len(sampler.rows_K)
    num_steps = sampler.steps_per_epoch * schedule.num_epochs
    state = TrainState.of(
        net,
        Group(),
        lr=schedule.lr,
        head_lr=schedule.head_lr,
        weight_decay=schedule.weight_decay,
    )
    more, history = MoreState.begin(num_sources), list[dict[str, Any]]()
    for step in range(num_steps):
        rows = sampler.batch_indices(step)
        total_S = np.bincount(source_P[rows], minlength=num_sources).astype(np.float64)
        out, more = weighted_gradients(
            state,
            [trees[row] for row in rows],
            PairSources(source_P[rows], total_S),
            weighting,
            more,
            loss=reward_loss,
            budget=schedule.token_budget,
        )
        norm = state.clip(schedule.max_norm)
        if not (math.isfinite(out.loss) and math.isfinite(norm)):
            raise FloatingPointError(f"step {step}: loss {out.loss}, gradient norm {norm}")
        state.step(learning_rate(step, num_steps, schedule.warmup))
        logged = {"loss": out.loss, "gradient_norm": norm}
        history.append(logged | {"source_weights": more.source_weights_K.tolist()})
    return history


def _held_out(num_pairs: int, calibrate_P: ArrayLike | None, seed: int) -> Bools:
    """Returns whether each pair is held out to fit the temperature."""
    if calibrate_P is not None:
        return np.asarray(calibrate_P, np.bool_)
    held_out_P = np.zeros(num_pairs, np.bool_)
    order = np.random.default_rng(seed).permutation(num_pairs)
    held_out_P[order[: math.ceil(CALIBRATED_SHARE * num_pairs)]] = True
    return held_out_P

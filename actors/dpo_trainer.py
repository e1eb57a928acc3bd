"""A round of policy training as one worker sees it: DPO + NLL on adapters (arXiv 2410.01735).

The steps are a function of (seed, round, step) and the ranked prompts, and what they compute is a
sum over all workers, so their number changes nothing.

Legend: `P` pairs, `Q` those of the probe, `2` the chosen and the rejected response.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.dpo_task import PolicyTask, RankedPrompt
from actors.reward_trainer import NonFinite
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.policy.lora import read_adapter
from panoply.hub.policy.trainable import TrainableModel, load_trainable
from panoply.model.tree import Branch, TokenTree
from panoply.preference.batch_sampler import step_ids
from panoply.preference.distributed import Group
from panoply.preference.losses import dpo_nll
from panoply.preference.step import PairOutputs, PairTree, compute_gradients, margins
from panoply.preference.train_state import TrainState
from panoply.types import Array, Ints

SPOKEN, OPTIMIZER = "spoken.npz", "optimizer.pt"


class DPOTrainer:
    """One worker of a round: its part of the prompts, and a replica of the adapters."""

    def __init__(self, task: PolicyTask, group: Group) -> None:
        """Loads the policy.

        Raises:
            FileNotFoundError, ValueError: the model or adapters cannot be trained.
        """
        self.task, self.config, self.group = task, task.config, group
        self.trainable: TrainableModel = load_trainable(task.backbone, seed=task.seed, policy=True)
        self.net = self.trainable.net
        self.net.head.requires_grad_(False)  # a policy has no score
        renderer = self.trainable.renderer
        self.comparisons = [comparison(renderer, ranked) for ranked in task.prompts]
        self.probe = [comparison(renderer, ranked) for ranked in task.probe]
        self.weight_P = np.repeat(
            [ranked.weight for ranked in task.prompts],
            [len(ranked.pairs) for ranked in task.prompts],
        ).astype(np.float64)
        self.weights = TrainState.of(
            self.net,
            group,
            lr=self.config.lr,
            head_lr=self.config.lr,
            weight_decay=self.config.weight_decay,
        )
        if task.start:
            self._start_from(Path(task.start))
        self.before_P2, self.reference_P2, self.base_P2, self.probe_Q2 = self._spoken_before()

    @property
    def num_steps(self) -> int:
        """Steps of the round."""
        per_epoch = -(-len(self.task.prompts) // self.config.prompts_per_step)
        return per_epoch * self.config.num_epochs

    def _start_from(self, folder: Path) -> None:
        """Takes adapters over, and what AdamW remembers where a round left it beside them."""
        trained = read_adapter(self.trainable, folder)
        if (folder / OPTIMIZER).exists():
            state = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
            self.weights.load({"trained": trained, "optimizer": state})
            for group in self.weights.optimizer.param_groups:
                group["peak"], group["weight_decay"] = self.config.lr, self.config.weight_decay
        else:
            self.weights.restore(trained)

    def _spoken_before(self) -> list[Array]:
        """Returns log-probabilities `[P, 2]`: of the start, the reference, and without adapters.

        The fourth are those `[Q, 2]` of the probe under the start. All are kept beside the
        checkpoints: a round that goes on has other weights.
        """
        path = Path(self.task.folder) / SPOKEN
        known = path.exists()
        self.group.wait()
        names = ("start", "reference", "base", "probe")
        if known:
            with np.load(path, allow_pickle=False) as found:
                return [found[name] for name in names]
        start, reference = self.task.start, self.task.reference
        probe_Q2 = self.spoken(self.probe)
        by_adapter = {start: self.spoken(self.comparisons)}
        if "" not in by_adapter:
            with self.trainable.adapters_off():
                by_adapter[""] = self.spoken(self.comparisons)
        if reference not in by_adapter:
            own = self.weights.trained()
            self.weights.restore(read_adapter(self.trainable, Path(reference)))
            by_adapter[reference] = self.spoken(self.comparisons)
            self.weights.restore(own)
        arrays = [by_adapter[start], by_adapter[reference], by_adapter[""], probe_Q2]
        if self.group.rank == 0:
            partial = path.with_suffix(".part.npz")
            np.savez(partial, **dict(zip(names, arrays, strict=True)))
            partial.rename(path)
        return arrays

    def spoken(self, comparisons: Sequence[PairTree]) -> Array:
        """Returns log-probabilities `[P, 2]` of all pairs under the weights as they are."""
        if not comparisons:
            return np.zeros((0, 2))
        mine = self.group.mine(range(len(comparisons)))
        with self.trainable.autocast():
            own = [comparisons[i] for i in mine]
            compared = margins(self.net, own, self.config.token_budget, policy=True)
        chosen_P, rejected_P = compared.chosen_log_prob_P, compared.rejected_log_prob_P
        assert chosen_P is not None
        assert rejected_P is not None
        both_P2 = torch.stack([chosen_P, rejected_P], dim=1).double().cpu().numpy()
        return self.group.spread(pairs_of(comparisons, mine), both_P2, len(tokens_of(comparisons)))

    def step(self, number: int) -> dict[str, Any]:
        """Takes a step and returns what is logged of it.

        Raises:
            NonFinite: the loss or a gradient is not finite; no weight has changed.
        """
        began = time.perf_counter()
        key = (self.task.seed, self.task.round)
        prompts = step_ids(key, number, len(self.comparisons), self.config.prompts_per_step)
        total = float(self.weight_P[pairs_of(self.comparisons, prompts)].sum())
        mine = self.group.mine(prompts)
        comparisons = [self.comparisons[i] for i in mine]
        rows = np.array(pairs_of(self.comparisons, mine), np.int64)
        with self.trainable.autocast():
            done = compute_gradients(
                self.net,
                comparisons,
                budget=self.config.token_budget,
                shares_P=torch.full((len(rows),), 1 / total),
                loss=lambda compared: self._loss(compared, rows[compared.places]),
            )
        norm = self.weights.clip(self.config.max_norm)
        loss = float(self.group.sum(np.array([done.loss]))[0])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._save_batch(number, [self.task.prompts[i].prompt_id for i in prompts], loss)
            raise NonFinite(f"step {number}: loss {loss}, gradient norm {norm}")
        self.weights.step(1.0)
        tokens = float(sum(item.tree.num_tokens for item in comparisons))
        return {
            "step": number,
            "loss": loss,
            "gradient_norm": norm,
            "tokens": float(self.group.sum(np.array([tokens]))[0]),
            "seconds": time.perf_counter() - began,
        }

    def _loss(self, compared: PairOutputs, rows: Ints) -> Tensor:
        """Returns the weighted losses of the pairs `rows` of the round."""
        chosen_P, rejected_P = compared.chosen_log_prob_P, compared.rejected_log_prob_P
        assert chosen_P is not None
        assert rejected_P is not None
        ratio_P = self.reference_P2[rows, 0] - self.reference_P2[rows, 1]
        reference_P, weight_P = (
            torch.from_numpy(column).float().to(chosen_P.device)
            for column in (ratio_P, self.weight_P[rows])
        )
        beta, alpha = self.config.beta, self.config.alpha
        tokens_P = compared.chosen_tokens_P
        return weight_P * dpo_nll(chosen_P, rejected_P, tokens_P, reference_P, beta, alpha)

    def _save_batch(self, number: int, prompt_ids: list[str], loss: float) -> None:
        config = asdict(self.config)
        found = {"step": number, "prompt_ids": prompt_ids, "loss": loss, "config": config}
        path = Path(self.task.folder) / f"nonfinite-{number}-{self.group.rank}.json"
        path.write_text(json.dumps(found, indent=1))


def comparison(renderer: Renderer, ranked: RankedPrompt) -> PairTree:
    """Returns a prompt with those of its responses that are in pairs, as one token tree.

    A response that a limit cut off has no end of its turn, neither the sampler's limit nor the
    renderer's: the policy did not say it.

    Raises:
        ValueError: the template refuses the conversation.
    """
    used = sorted({i for pair in ranked.pairs for i in pair})
    tree = renderer.render(ranked.prompt, [ranked.responses[i] for i in used]).tree
    most = renderer.rendering.max_response_tokens
    branches = tuple(
        branch
        if ranked.ended[i] and branch.stop - branch.start < most
        else Branch(branch.tokens[: branch.stop], branch.start, branch.stop)
        for i, branch in zip(used, tree.branches, strict=True)
    )
    place = {i: n for n, i in enumerate(used)}
    return PairTree(
        TokenTree(tree.shared, branches, tree.gate),
        chosen=tuple(place[i] for i, _ in ranked.pairs),
        rejected=tuple(place[j] for _, j in ranked.pairs),
    )


def pairs_of(comparisons: Sequence[PairTree], prompts: Sequence[int]) -> list[int]:
    """Returns the numbers of the pairs of some prompts, among those of all."""
    bounds = np.cumsum([0, *(len(item.chosen) for item in comparisons)])
    return [row for i in prompts for row in range(bounds[i], bounds[i + 1])]


def tokens_of(comparisons: Sequence[PairTree]) -> Array:
    """Returns `[P, 2]` the tokens that each side of each pair speaks, with the one that ends it."""
    sizes = [
        [spoken_tokens(item.tree.branches[i]) for i in pair]
        for item in comparisons
        for pair in zip(item.chosen, item.rejected, strict=True)
    ]
    return np.array(sizes, np.float64).reshape(-1, 2)


def spoken_tokens(branch: Branch) -> int:
    """Returns how many tokens the policy says: the response's own, and the one that ends it."""
    return len(branch.tokens[branch.start : branch.stop + 1])

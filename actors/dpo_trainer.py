"""A round of policy training as one worker sees it: DPO + NLL on adapters (arXiv 2410.01735).

The steps are a function of (seed, round, step) and the ranked prompts, and what they compute is a
sum over all workers, so their number changes nothing.

Legend: `P` pairs, `Q` gold pairs, `2` the chosen and the rejected response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from actors.policy_round import (
    ADAPTER,
    GOLD_PAIRS,
    OPTIMIZER,
    OPTIMIZER_FILE,
    PAIRS,
    START_LOGPS,
    PolicyTask,
    RankedPrompt,
    read_optimizer,
)
from actors.training_loop import Trainer, train_each
from panoply.files import reading, whole_file, whole_folder
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.policy.lora import read_adapter, save_adapter
from panoply.hub.policy.trainable import load_trainable
from panoply.model.tree import Branch, TokenTree
from panoply.preference.batch_sampler import batch_indices
from panoply.preference.checkpoint import save_tensors
from panoply.preference.distributed import Group
from panoply.preference.losses import dpo_nll
from panoply.preference.policy_outcome import kl_per_token, margin_per_token, pair_losses
from panoply.preference.step import (
    PairOutputs,
    PairTree,
    completion_tokens,
    compute_gradients,
    evaluate_pairs,
)
from panoply.preference.train_state import TrainState
from panoply.seal import seal
from panoply.types import Array, Ints


def train_policy(config: Mapping[str, PolicyTask]) -> None:
    """Trains the round `config["task"]` inside a Ray Train worker."""
    train_each([config["task"]], DPOTrainer)


class DPOTrainer(Trainer):
    """One worker of a round: its part of the prompts, and a replica of the adapters."""

    def __init__(self, task: PolicyTask, group: Group) -> None:
        """Loads the policy.

        Raises:
            FileNotFoundError, ValueError: the model or adapters cannot be trained.
        """
        super().__init__(task, group)
        self.task, self.config = task, task.config
        steps_per_epoch = -(-len(task.prompts) // self.config.prompts_per_step)
        self.num_steps = steps_per_epoch * self.config.num_epochs
        self.checkpoint_every, self.max_norm = self.config.checkpoint_every, self.config.max_norm
        self.trainable = load_trainable(task.backbone, seed=task.seed, policy=True)
        self.net = self.trainable.net
        self.net.head.requires_grad_(False)  # a policy has no score
        renderer = self.trainable.renderer
        self.trees = [pair_tree(renderer, ranked) for ranked in task.prompts]
        self.gold_trees = [pair_tree(renderer, ranked) for ranked in task.gold_pairs]
        self.weight_P = np.repeat(
            [ranked.weight for ranked in task.prompts],
            [len(ranked.pairs) for ranked in task.prompts],
        ).astype(np.float64)
        self.state = TrainState.of(
            self.net,
            group,
            lr=self.config.lr,
            head_lr=self.config.lr,
            weight_decay=self.config.weight_decay,
        )
        if task.start:
            self._start_from(Path(task.start))
        logps = self._logps_before()
        self.start_logps_P2, self.base_logps_P2 = logps["start"], logps["base"]
        self.reference_logps_P2, self.gold_logps_Q2 = logps["reference"], logps["gold"]

    def _start_from(self, adapter: Path) -> None:
        """Loads adapters, and AdamW's state where a round left them.

        Raises:
            ValueError: see `read_optimizer`.
        """
        params, optimizer = read_adapter(self.trainable, adapter), read_optimizer(adapter)
        if optimizer is None:
            self.state.load_params(params)
            return
        self.state.load_state_dict({"params": params, "optimizer": optimizer})
        for group in self.state.optimizer.param_groups:
            group["peak"], group["weight_decay"] = self.config.lr, self.config.weight_decay

    def _logps_before(self) -> dict[str, Array]:
        """Returns log-probabilities before the first step.

        `start`, `reference` and `base` are `[P, 2]` under the adapters of the start, those of the
        reference and without adapters; `gold` are those `[Q, 2]` of the gold pairs under the start.
        A file beside the checkpoints keeps them: a round that resumes has other parameters.
        """
        path = self.folder / START_LOGPS
        exists = path.exists()
        self.group.barrier()
        if exists:
            with reading(path), np.load(path, allow_pickle=False) as saved:
                return dict(saved)
        start, reference = self.task.start, self.task.reference
        gold = self.response_logps(self.gold_trees)
        by_adapter = {start: self.response_logps(self.trees)}
        if "" not in by_adapter:
            with self.trainable.adapters_off():
                by_adapter[""] = self.response_logps(self.trees)
        if reference not in by_adapter:
            params = self.state.params()
            self.state.load_params(read_adapter(self.trainable, Path(reference)))
            by_adapter[reference] = self.response_logps(self.trees)
            self.state.load_params(params)

        logps = {"start": by_adapter[start], "reference": by_adapter[reference]}
        logps |= {"base": by_adapter[""], "gold": gold}
        if self.group.rank == 0:
            with whole_file(path) as partial:
                np.savez(partial, **logps)  # pyright: ignore[reportArgumentType]
        return logps

    def response_logps(self, trees: Sequence[PairTree]) -> Array:
        """Returns log-probabilities `[P, 2]` of all pairs under the parameters as they are."""
        if not trees:
            return np.zeros((0, 2))
        numbers = self.group.shard(range(len(trees)))
        shard = [trees[i] for i in numbers]
        with self.trainable.autocast():
            outputs = evaluate_pairs(self.net, shard, self.config.token_budget, policy=True)
        assert outputs.logps_P2 is not None
        logps_P2 = outputs.logps_P2.double().numpy()
        return self.group.gather_rows(pair_rows(trees, numbers), logps_P2, num_pairs(trees))

    def step(self, number: int) -> dict[str, Any]:
        """Takes a step and returns what is logged of it.

        Raises:
            NonFinite: the loss or a gradient is not finite; no parameter has changed.
        """
        seed, config = (self.task.seed, self.task.round), self.config
        prompts = batch_indices(seed, number, len(self.trees), config.prompts_per_step)
        total = float(self.weight_P[pair_rows(self.trees, prompts)].sum())
        shard = self.group.shard(prompts)
        trees = [self.trees[i] for i in shard]
        rows = np.array(pair_rows(self.trees, shard), np.int64)
        with self.trainable.autocast():
            out = compute_gradients(
                self.net,
                trees,
                budget=config.token_budget,
                shares_P=torch.full((len(rows),), 1 / total),
                loss=lambda outputs: self._loss(outputs, rows[outputs.indices_P]),
            )
        batch = {"prompt_ids": [self.task.prompts[i].prompt_id for i in prompts]}
        return self.update(number, out, trees, batch, rate=1.0)

    def _loss(self, outputs: PairOutputs, rows: Ints) -> Tensor:
        """Returns the weighted losses of the pairs `rows` of the round."""
        logps_P2 = outputs.logps_P2
        assert logps_P2 is not None
        reference_P2 = torch.from_numpy(self.reference_logps_P2[rows])
        ratio_P = (reference_P2[:, 0] - reference_P2[:, 1]).float().to(logps_P2.device)
        weight_P = torch.from_numpy(self.weight_P[rows]).float().to(logps_P2.device)
        chosen_P, rejected_P = logps_P2[:, 0], logps_P2[:, 1]
        beta, alpha, tokens_P = self.config.beta, self.config.alpha, outputs.chosen_tokens_P
        return weight_P * dpo_nll(chosen_P, rejected_P, tokens_P, ratio_P, beta, alpha)

    def write_results(self) -> dict[str, Any]:
        """Writes the adapters and the tables of `PolicyRound`; returns what `done.json` holds."""
        after_P2 = self.response_logps(self.trees)
        gold_after_Q2 = self.response_logps(self.gold_trees)
        state = self.state.state_dict()
        if self.group.rank == 0:
            with whole_folder(self.folder / ADAPTER) as built:
                save_adapter(self.trainable, state["params"], self.task.backbone.model, built)
                seal(built)
            with whole_folder(self.folder / OPTIMIZER) as built:
                save_tensors(state["optimizer"], built / OPTIMIZER_FILE)
                seal(built)
            tables = {
                PAIRS: self._pairs_table(after_P2),
                GOLD_PAIRS: self._gold_table(gold_after_Q2),
            }
            for name, table in tables.items():
                with whole_file(self.folder / name) as partial:
                    pq.write_table(table, partial)
        return {"history": self.history}

    def _pairs_table(self, after_P2: Array) -> pa.Table:
        """Returns the table of `PolicyRound.pairs`."""
        tokens_P2, reference_P2 = completion_tokens(self.trees), self.reference_logps_P2
        prompts = [ranked for ranked in self.task.prompts for _ in ranked.pairs]
        pairs = [pair for ranked in self.task.prompts for pair in ranked.pairs]
        columns: dict[str, Any] = {
            "prompt_id": [ranked.prompt_id for ranked in prompts],
            "chosen": [chosen for chosen, _ in pairs],
            "rejected": [rejected for _, rejected in pairs],
            "weight": self.weight_P,
        }
        beta, alpha = self.config.beta, self.config.alpha
        for suffix, logps_P2 in (("", self.start_logps_P2), ("_after", after_P2)):
            losses = pair_losses(logps_P2, tokens_P2, reference_P2, beta, alpha)
            columns |= {f"{name}{suffix}": values for name, values in losses.items()}
            columns[f"chosen_log_prob{suffix}"] = logps_P2[:, 0]
            columns[f"rejected_log_prob{suffix}"] = logps_P2[:, 1]
        columns["reference"] = reference_P2[:, 0] - reference_P2[:, 1]
        columns["kl"] = kl_per_token(self.start_logps_P2, self.base_logps_P2, tokens_P2)
        return pa.table(columns)

    def _gold_table(self, after_Q2: Array) -> pa.Table:
        """Returns the table of `PolicyRound.gold_pairs`."""
        tokens_Q2 = completion_tokens(self.gold_trees)
        rows = [ranked for ranked in self.task.gold_pairs for _ in ranked.pairs]
        columns: dict[str, Any] = {
            "prompt_id": pa.array([ranked.prompt_id for ranked in rows], pa.string()),
            "source": pa.array([ranked.source for ranked in rows], pa.string()),
            "margin": margin_per_token(self.gold_logps_Q2, tokens_Q2),
            "margin_after": margin_per_token(after_Q2, tokens_Q2),
        }
        return pa.table(columns)


def pair_tree(renderer: Renderer, ranked: RankedPrompt) -> PairTree:
    """Returns a prompt with those of its responses that are in pairs, as one token tree.

    A response that the sampler's or the renderer's limit cut off has no end of its turn: the
    policy did not say it.

    Raises:
        ValueError: the template refuses the conversation.
    """
    used = sorted({i for pair in ranked.pairs for i in pair})
    tree = renderer.render(ranked.prompt, [ranked.responses[i] for i in used]).tree
    limit = renderer.rendering.max_response_tokens
    branches: list[Branch] = []
    for i, branch in zip(used, tree.branches, strict=True):
        whole = ranked.ended[i] and branch.stop - branch.start < limit
        tokens = branch.tokens if whole else branch.tokens[: branch.stop]
        branches.append(Branch(tokens, branch.start, branch.stop))
    place = {response: number for number, response in enumerate(used)}
    return PairTree(
        TokenTree(tree.shared, tuple(branches), tree.gate),
        chosen=tuple(place[i] for i, _ in ranked.pairs),
        rejected=tuple(place[j] for _, j in ranked.pairs),
    )


def num_pairs(trees: Sequence[PairTree]) -> int:
    """Returns the number of pairs of all trees."""
    return sum(len(item.chosen) for item in trees)


def pair_rows(trees: Sequence[PairTree], numbers: Sequence[int]) -> list[int]:
    """Returns the rows of the pairs of some trees, among those of all."""
    first = np.cumsum([0, *(len(item.chosen) for item in trees)])
    return [row for i in numbers for row in range(first[i], first[i + 1])]

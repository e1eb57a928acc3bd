"""A round of policy training as one worker sees it: DPO + NLL on adapters (arXiv 2410.01735).

The steps are a function of (seed, round, step) and the ranked prompts, and what they compute is a
sum over all workers, so their number changes nothing.

Legend: `P` pairs, `Q` gold pairs, `2` the chosen and the rejected response.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from actors.training_loop import DONE, Trainer, train_each
from panoply.config.policy import PolicyConfig
from panoply.config.preference import TrainedBackboneConfig
from panoply.data.schema import Prompt
from panoply.files import read_json, reading, whole_file, whole_folder
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.policy.lora import read_adapter, save_adapter
from panoply.hub.policy.trainable import load_trainable
from panoply.model.tree import Branch, TokenTree
from panoply.preference.batch_sampler import batch_indices
from panoply.preference.checkpoint import load_tensors, save_tensors
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
from panoply.seal import COPY_AGAIN, check_seal, seal
from panoply.types import Array, Ints

ADAPTER, PAIRS, GOLD_PAIRS = "adapter", "pairs.parquet", "gold_pairs.parquet"
START_LOGPS, OPTIMIZER, OPTIMIZER_FILE = "start_logps.npz", "optimizer", "optimizer.pt"
ROUNDS_AGAIN = (
    f"delete {DONE} of this round and of all rounds before it, and run the same command again, "
    "which trains them to the same numbers"
)
"""Advice for what a round left and that is damaged or gone."""


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """A prompt, responses to it, and preferences among them.

    Example: `RankedPrompt("9f3a", prompt, ("Yes.", "No"), (True, False), ((0, 1),))`.
    """

    prompt_id: str
    prompt: Prompt
    responses: tuple[str, ...]
    ended: tuple[bool, ...]
    """Whether the policy ended each response. One that a limit cut off has no end to be learned."""
    pairs: tuple[tuple[int, int], ...]
    """Numbers of the chosen and the rejected response, as `panoply.laser.pairs` gives them."""
    weight: float = 1.0
    """Weight of each of the pairs in the loss."""
    source: str = ""
    """Source of a gold pair, by which results are grouped."""

    def __post_init__(self) -> None:
        if len(self.ended) != len(self.responses):
            raise ValueError(
                f"prompt {self.prompt_id!r} has {len(self.responses)} responses and "
                f"{len(self.ended)} values of `ended`"
            )
        numbers = {i for pair in self.pairs for i in pair}
        if not numbers or min(numbers) < 0 or max(numbers) >= len(self.responses):
            raise ValueError(
                f"prompt {self.prompt_id!r} needs at least one pair of its responses 0.."
                f"{len(self.responses) - 1}, got {self.pairs!r}: leave prompts without pairs out"
            )
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"prompt {self.prompt_id!r}: `weight` must be positive, got {self.weight!r}"
            )


@dataclass(frozen=True, slots=True)
class PolicyTask:
    """One round of training a policy."""

    backbone: TrainedBackboneConfig
    """The policy without adapters, and the adapters that are trained."""
    config: PolicyConfig
    prompts: tuple[RankedPrompt, ...]
    """Prompts in an order that does not depend on when they came."""
    seed: int
    round: int
    start: str
    """Folder of the adapters that training starts from; empty: new ones."""
    reference: str
    """Folder of the adapters of DPO's reference; empty: the model without any."""
    folder: str
    """Folder of checkpoints and results, on storage that all workers share."""
    threads: int = 0
    """Threads of each worker; 0 leaves torch's number."""
    gold_pairs: tuple[RankedPrompt, ...] = ()
    """Trusted pairs, which are not trained on but scored before the first and after the last
    step."""


@dataclass(frozen=True, slots=True)
class PolicyRound:
    """Results of a round in its folder."""

    folder: Path
    pairs: pa.Table
    """One row a pair: `prompt_id`; `chosen` and `rejected`, numbers of the responses; `weight`;
    `loss` and its parts `dpo` and `nll`, `chosen_log_prob` and `rejected_log_prob`, before the
    first step, and the same with `_after`, after the last; `reference`, log-ratio of the reference;
    `kl` from the model without adapters (`panoply.preference.policy_outcome`), before the first
    step."""
    gold_pairs: pa.Table
    """One row a gold pair: `prompt_id`, `source`, and `margin` before the first and `margin_after`
    after the last step (`panoply.preference.policy_outcome.margin_per_token`)."""
    history: list[dict[str, Any]]
    """One entry a step: `step`, `loss`, `gradient_norm`, `tokens`, `seconds`."""

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapters."""
        return self.folder / ADAPTER

    @classmethod
    def read(cls, folder: Path) -> PolicyRound:
        """Reads a finished round.

        Raises:
            ValueError: one of its files is damaged.
        """
        tables: list[pa.Table] = []
        for name in (PAIRS, GOLD_PAIRS):
            with reading(folder / name, ROUNDS_AGAIN):
                tables.append(pq.read_table(folder / name))
        return cls(folder, *tables, history=read_json(folder / DONE)["history"])

    def gold_margin_gain(self, source: str | None = None) -> float:
        """Returns the rise of the mean margin on gold pairs; NaN where there are none.

        Args:
            source: only its pairs count, where it has any; None: all count.
        """
        before = np.array(self.gold_pairs["margin"].to_pylist())
        gain = np.array(self.gold_pairs["margin_after"].to_pylist()) - before
        of_source = np.array(self.gold_pairs["source"].to_pylist()) == source
        if of_source.any():
            gain = gain[of_source]
        return float(gain.mean()) if len(gain) else float("nan")

    def by_prompt(self, column: str) -> dict[str, float]:
        """Returns the mean of a column over the pairs of each prompt."""
        values: dict[str, list[float]] = {}
        rows = zip(self.pairs["prompt_id"].to_pylist(), self.pairs[column].to_pylist(), strict=True)
        for prompt_id, value in rows:
            values.setdefault(prompt_id, []).append(value)
        return {prompt_id: float(np.mean(each)) for prompt_id, each in values.items()}


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


def read_optimizer(adapter: Path) -> Mapping[str, Any] | None:
    """Returns AdamW's state after the round that left some adapters; None where no round did.

    Raises:
        ValueError: the state is damaged, or was removed when the next round was done.
    """
    folder = adapter.with_name(OPTIMIZER)
    if folder.is_dir():
        check_seal(folder, required=True)
        return load_tensors(folder / OPTIMIZER_FILE, COPY_AGAIN)
    # Before the state had a folder of its own, it lay among the adapters.
    if (adapter / OPTIMIZER_FILE).is_file():
        return load_tensors(adapter / OPTIMIZER_FILE, COPY_AGAIN)
    if adapter.with_name(DONE).is_file():
        raise ValueError(
            f"{str(folder)!r} was removed when the round after it was done: to train that round "
            f"again, {ROUNDS_AGAIN}"
        )
    return None


def remove_optimizer(adapter: Path) -> None:
    """Removes AdamW's state beside adapters from which no round starts any more.

    It is twice as large as the adapters. Adapters themselves stay: they sample, and are references.
    """
    shutil.rmtree(adapter.with_name(OPTIMIZER), ignore_errors=True)


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

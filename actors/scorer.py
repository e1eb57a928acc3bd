"""One finished reward model on one device: prompts with responses in, scores out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from panoply.armorm.baselines import FittedBaselines
from panoply.hub.artefact.gated import GatedModel, pooled
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.scalar import ScalarModel
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.door.checkpoint import read_tensors
from panoply.hub.reward_model import RewardModel
from panoply.model.gate import ScalarHead
from panoply.model.tree import TokenTree

Columns: TypeAlias = dict[str, Tensor]
RIVALS = "baselines.safetensors"
"""Scorers that a gated model of ours was compared with."""


class ScoringActor:
    """Scores every response of a batch by every scorer of a model.

    A gated model of ours has the gate, its rivals and `gate_weights`; any other has `score`, and
    `lower_bound` where it is an ensemble of ours. A scalar model of ours has `members` too.

    Input: a row whose `prompts` have `prompt_id`, `prompt` (JSON), `text_ids` and `responses`.
    Output: one row per response: `text_id`, `num_cut` (tokens that limits cut away) and the columns
    above.
    """

    def __init__(self, folder: str, threads: int) -> None:
        silence_libraries()
        torch.set_num_threads(threads)
        model = load_reward_model(folder)
        model.prepack()
        self.render = model.backbone.renderer.render
        if isinstance(model, ScalarModel):
            self.model = Single(model)
        elif isinstance(model, GatedModel) and (Path(folder) / RIVALS).is_file():
            self.model = GateAndRivals(model, Path(folder))
        else:
            self.model = Published(model)

    @torch.inference_mode()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Scores one shard."""
        rows = cast(list[dict[str, Any]], batch["prompts"][0].as_py())
        rendered = [self.render(json.loads(row["prompt"]), row["responses"]) for row in rows]
        scores = self.model.columns([each.tree for each in rendered])
        num_cut = list(chain.from_iterable(each.num_cut_R for each in rendered))
        columns = {name: column.double().tolist() for name, column in scores.items()}
        text_ids = list(chain.from_iterable(row["text_ids"] for row in rows))
        return pa.table({"text_id": text_ids, "num_cut": num_cut, **columns})


class Published:
    """A reward model that others trained, by itself."""

    def __init__(self, model: RewardModel[Any]) -> None:
        self.model = model

    def columns(self, trees: Sequence[TokenTree]) -> Columns:
        """Returns the score `[R]` of every response."""
        return {"score": torch.from_numpy(self.model.rate(trees))}


class Single:
    """A scalar model, by itself."""

    def __init__(self, model: ScalarModel) -> None:
        self.model = model

    def columns(self, trees: Sequence[TokenTree]) -> Columns:
        """Returns score and lower bound `[R]` and standardized members `[R, K]` of responses."""
        outputs = self.model.forward(trees)
        members_RK = torch.tensor([output.members for output in outputs])
        columns = {"score": torch.tensor([output.score for output in outputs])}
        if members_RK.shape[1] > 1:
            columns["lower_bound"] = torch.tensor([output.lower_bound for output in outputs])
        return {**columns, "members": members_RK}


class GateAndRivals:
    """A gated model and the scorers that it was compared with."""

    def __init__(self, model: GatedModel, folder: Path) -> None:
        self.model = model
        tensors = read_tensors(folder / RIVALS)
        self.baselines = FittedBaselines.from_arrays({k: v.numpy() for k, v in tensors.items()})
        state = {k.removeprefix("mlp."): v for k, v in tensors.items() if k.startswith("mlp.")}
        hidden_size, size = state["layers.0.weight"].shape
        self.mlp = ScalarHead(size, hidden_size=hidden_size)
        self.mlp.load_state_dict(state)
        self.mlp.eval()

    def columns(self, trees: Sequence[TokenTree]) -> Columns:
        """Returns the scores `[R]` of every scorer, and the gate's weights `[R, O]`."""
        features = self.model.backbone.features(trees)
        x = pooled(features, self.model.manifest.pooling)
        gate_rows = np.repeat(np.arange(len(trees)), [len(tree.branches) for tree in trees])
        scored = self.model.head(x, features.gate_GLD[gate_rows, 0])
        values = self.model.head.debiased(scored.values_BO, scored.length_B)
        baselines = self.baselines.scores(values.double().numpy(), x.double().numpy())
        return {
            "gate": scored.score_B,
            **{name: torch.from_numpy(scores) for name, scores in baselines.items()},
            "mlp": self.mlp(x),
            "gate_weights": scored.weights_BO / scored.weights_BO.sum(1, keepdim=True),
        }

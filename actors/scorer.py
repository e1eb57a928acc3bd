"""One finished reward model on one device: prompts with responses in, scores out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
from safetensors.torch import load_file

from panoply.hub.artefact import load_reward_model, pooled
from panoply.hub.backbone import quiet
from panoply.model.gate import ScalarHead


class Scorer:
    """Callable for `map_batches`: every response gets the score of the gate and its rivals.

    Input: a row whose `prompts` have `prompt_id`, `prompt` (JSON), `text_ids` and `responses`.
    Output: one row per response: `text_id`, one float per scorer, and `gate_weights`.
    """

    def __init__(self, folder: str, threads: int) -> None:
        quiet()
        torch.set_num_threads(threads)
        self.model = load_reward_model(folder)
        self.fixed = load_file(Path(folder) / "baselines.safetensors")
        mlp = {k.removeprefix("mlp."): v for k, v in self.fixed.items() if k.startswith("mlp.")}
        hidden_size, size = mlp["layers.0.weight"].shape
        self.mlp = ScalarHead(size, hidden_size=hidden_size)
        self.mlp.load_state_dict(mlp)
        self.mlp.eval()

    @torch.inference_mode()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Scores one shard."""
        rows = cast(list[dict[str, Any]], batch["prompts"][0].as_py())
        render, card = self.model.backbone.renderer.render, self.model.card
        trees = [render(json.loads(row["prompt"]), row["responses"]).tree for row in rows]
        features = self.model.backbone.features(trees)
        x = pooled(features, card.pooling)
        gate_rows = [g for g, tree in enumerate(trees) for _ in tree.branches]
        scored = self.model.head(x, features.gate_GLD[gate_rows, 0])
        r = self.model.head.debiased(scored.values_BO, scored.length_B).double()
        scores = {
            "gate": scored.score_B,
            "uniform": r.mean(1),
            "best_single": r[:, int(self.fixed["best_single"])],
            "best_fixed": r @ self.fixed["best_fixed"],
            "linear": r @ self.fixed["linear"],
            "linear_bt": x.double() @ self.fixed["linear_bt"],
            "mlp": self.mlp(x),
        }
        own = {k: r @ w for k, w in self.fixed.items() if k.startswith("per_source.")}
        weights = scored.weights_BO / scored.weights_BO.sum(1, keepdim=True)
        columns = {k: v.double().numpy() for k, v in (scores | own).items()}
        ids = [name for row in rows for name in row["text_ids"]]
        return pa.table({"text_id": ids, **columns, "gate_weights": weights.tolist()})

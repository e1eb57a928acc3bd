"""One frozen backbone on one device: prompts with responses in, feature shards out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, cast

import pyarrow as pa
import torch

from panoply.config import BackboneConfig
from panoply.data.features import FeatureStore
from panoply.hub.backbone import Backbone, load_backbone, quiet


def feature_key(backbone: Backbone, config: BackboneConfig) -> dict[str, Any]:
    """Returns all that features depend on (design 4)."""
    return {
        "weights": backbone.weights_hash,
        "template": backbone.renderer.template_hash,
        "bos": backbone.renderer.bos,
        "rendering": asdict(config.rendering),
        "depths": list(backbone.decoder.depths),
        "dtype": str(backbone.decoder.dtype),
    }


class Embedder:
    """Callable for `map_batches`: a batch of prompts becomes two shards of the feature store.

    Input rows: `prompt_id`, `prompt` (JSON), `text_ids`, `responses`. Output: one row of counts.
    """

    def __init__(
        self, config: BackboneConfig, depths: tuple[int, ...], store: str, threads: int
    ) -> None:
        quiet()
        torch.set_num_threads(threads)
        self.config = config
        self.backbone = load_backbone(
            config.model, depths=depths, rendering=config.rendering, dtype=config.dtype
        )
        self.store = FeatureStore(store, feature_key(self.backbone, config))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embeds one batch and writes its shards."""
        rows = cast(list[dict[str, Any]], batch.to_pylist())
        rendered = [
            self.backbone.renderer.render(json.loads(row["prompt"]), row["responses"])
            for row in rows
        ]
        trees = [item.tree for item in rendered]
        features = self.backbone.features(trees, self.config.token_budget)
        depths = self.backbone.decoder.depths
        named = {
            f"{name}_{depth}": states[:, i].numpy()
            for name, states in (("last", features.last_RLD), ("mean", features.mean_RLD))
            for i, depth in enumerate(depths)
        }
        gates = {f"gate_{d}": features.gate_GLD[:, i].numpy() for i, d in enumerate(depths)}
        self.store.write("prompts", [row["prompt_id"] for row in rows], gates)
        self.store.write("texts", [name for row in rows for name in row["text_ids"]], named)
        counts = {
            "texts": sum(len(row["text_ids"]) for row in rows),
            "prompts": len(rows),
            "tokens": sum(tree.num_tokens for tree in trees),
            "separate_tokens": sum(tree.num_separate_tokens for tree in trees),
            "prompts_cut": sum(item.prompt_tokens_cut > 0 for item in rendered),
            "responses_cut": sum(item.num_responses_cut for item in rendered),
            "shares_prefixes": int(self.backbone.shares_prefixes),
        }
        return pa.table({name: [value] for name, value in counts.items()})

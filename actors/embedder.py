"""One frozen backbone on one device: prompts with responses in, feature shards out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, cast

import pyarrow as pa
import torch

from panoply.config import BackboneConfig, DType
from panoply.data.features import FeatureStore
from panoply.hub.backbone.backbone import Backbone, load_backbone
from panoply.hub.backbone.pretrained import count_layers, silence_libraries
from panoply.measure.metrics import largest_relative_error
from panoply.model.budget import calibrate
from panoply.model.tree import TokenTree

DRIFT_PROMPTS = 8
"""Prompts on which reduced precision is compared with float32."""


def feature_key(backbone: Backbone, config: BackboneConfig) -> dict[str, Any]:
    """Returns all that features depend on but the depth (design 4), on this hardware."""
    return {
        "weights": backbone.weights_hash,
        "template": backbone.renderer.template_hash,
        "bos": backbone.renderer.bos,
        "rendering": asdict(config.rendering),
        "dtype": str(backbone.decoder.dtype),
    }


@dataclass(frozen=True, slots=True)
class BackboneProfile:
    """Properties of the backbone on the workers' hardware, measured by one before all start."""

    key: Mapping[str, Any]
    """All that features depend on but the depth, as it comes out on the workers' hardware."""
    config: BackboneConfig
    """The backbone with the dtype that 'auto' became, and the token budget that 0 became: one for
    all workers, as the last bits of a feature depend on it."""
    depths: tuple[int, ...]
    """Candidate depths in layers."""
    drift: float
    """Largest relative error of a feature vector against float32; 0 where all is float32."""
    shares_prefixes: bool
    """Whether the model takes a tree mask; if not, it runs on plain batches."""

    @property
    def summary(self) -> dict[str, Any]:
        """The part that a run reports."""
        return {
            "dtype": self.config.dtype,
            "drift": self.drift,
            "shares_prefixes": self.shares_prefixes,
        }


def profile_backbone(
    config: BackboneConfig, samples: Sequence[Mapping[str, Any]]
) -> BackboneProfile:
    """Loads the backbone as the workers will and measures how it computes.

    Args:
        config: the backbone.
        samples: a few rows with `prompt` (JSON) and `responses`.
    """
    silence_libraries()
    depths = candidate_depths(config, count_layers(config.model))
    backbone = _load(config, depths)
    is_exact = backbone.decoder.dtype == torch.float32
    exact = backbone if is_exact else _load(replace(config, dtype="float32"), depths)
    budget = config.token_budget
    if backbone.shares_prefixes and not budget:
        budget = calibrate(backbone.decoder)
    drift = 0.0
    if not is_exact:
        trees = _trees(backbone, samples)
        reduced = backbone.features(trees, budget)
        expected = exact.features(trees, budget)
        drift = max(
            largest_relative_error(reduced.mean_RLD.numpy(), expected.mean_RLD.numpy()),
            largest_relative_error(reduced.last_RLD.numpy(), expected.last_RLD.numpy()),
        )
    dtype = cast(DType, str(backbone.decoder.dtype).removeprefix("torch."))
    key = feature_key(backbone, config)
    config = replace(config, dtype=dtype, token_budget=budget)
    return BackboneProfile(key, config, depths, drift, backbone.shares_prefixes)


def candidate_depths(config: BackboneConfig, num_layers: int) -> tuple[int, ...]:
    """Returns the depths in layers, each once, ascending."""
    return tuple(sorted({max(1, round(share * num_layers)) for share in config.depths}))


def _load(config: BackboneConfig, depths: Sequence[int]) -> Backbone:
    backbone = load_backbone(
        config.model, depths=depths, rendering=config.rendering, dtype=config.dtype
    )
    backbone.prepack()
    return backbone


def _trees(backbone: Backbone, rows: Sequence[Mapping[str, Any]]) -> list[TokenTree]:
    render = backbone.renderer.render
    return [render(json.loads(row["prompt"]), row["responses"]).tree for row in rows]


class Embedder:
    """Writes a batch of prompts as two shards of the feature store.

    Input: a row whose `prompts` have `prompt_id`, `prompt` (JSON), `text_ids` and `responses`.
    Output: a row of counts.
    """

    def __init__(
        self, config: BackboneConfig, depths: tuple[int, ...], store: FeatureStore, threads: int
    ) -> None:
        silence_libraries()
        torch.set_num_threads(threads)
        self.config = config
        self.backbone = _load(config, depths)
        self.store = store

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embeds one shard and writes it."""
        rows = cast(list[dict[str, Any]], batch["prompts"][0].as_py())
        render = self.backbone.renderer.render
        rendered = [render(json.loads(row["prompt"]), row["responses"]) for row in rows]
        trees = [item.tree for item in rendered]
        features = self.backbone.features(trees, self.config.token_budget)
        depths = self.backbone.decoder.depths
        last = {f"last_{d}": features.last_RLD[:, i].numpy() for i, d in enumerate(depths)}
        mean = {f"mean_{d}": features.mean_RLD[:, i].numpy() for i, d in enumerate(depths)}
        gates = {f"gate_{d}": features.gate_GLD[:, i].numpy() for i, d in enumerate(depths)}
        self.store.write("prompts", [row["prompt_id"] for row in rows], gates)
        text_ids = list(chain.from_iterable(row["text_ids"] for row in rows))
        self.store.write("texts", text_ids, last | mean)
        counts = {
            "texts": sum(len(row["text_ids"]) for row in rows),
            "prompts": len(rows),
            "tokens": sum(tree.num_tokens for tree in trees),
            "separate_tokens": sum(tree.num_separate_tokens for tree in trees),
            "prompts_cut": sum(item.prompt_tokens_cut > 0 for item in rendered),
            "responses_cut": sum(item.num_responses_cut for item in rendered),
        }
        return pa.table({name: [value] for name, value in counts.items()})

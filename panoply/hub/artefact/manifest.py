"""Manifests, `panoply.json`: all that scoring depends on besides weights, and their origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panoply.config import Pooling, Rendering
from panoply.config.armorm import GateConfig

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseManifest:
    """The record of a reward model of any kind."""

    rendering: Rendering
    temperature: float
    """Score differences divided by it are log odds."""
    seed: int
    """Seed of the split into train, select and test."""
    template_hash: str
    """Hash of the folder's own template, which writes BOS where a scalar model's tokenizer did."""
    bos: tuple[int, ...]
    """Tokens put before a render that does not bring them; empty where the template does."""
    backbone: str
    depth: int
    """Layers kept."""
    dtype: str
    """Precision of training. A scalar model's weights and scores are float32 nonetheless."""
    data: Mapping[str, Any]
    """Ids and counts of the data trained on: kind -> `id`, `rows`, `by_source`."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Returns the manifest as JSON."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(BaseManifest):
    """The record of a gated model."""

    objectives: tuple[str, ...]
    maps: Mapping[str, Mapping[str, float | bool]]
    """Rating map of each rated objective; preference objectives have none."""
    pooling: Pooling
    gate: GateConfig
    weights_hash: str
    """Hash of the backbone's own weights, before heads."""
    pad_rule: str = "positions and pooling follow token lists; no pad token is ever read"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads a manifest.

        Raises:
            ValueError: a manifest of another format version.
        """
        fields = _read(text, "bos", "objectives")
        fields["gate"] = GateConfig(**fields["gate"])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarManifest(BaseManifest):
    """The record of a scalar model: one linear head, or `K` of them as an ensemble."""

    sources: tuple[str, ...]
    """Sources of the pairs trained on."""
    method: Mapping[str, Any]
    """Method of training: loss, weighting of the sources, ..."""
    centers: tuple[float, ...]
    """Mean of each head's scores on training responses."""
    scales: tuple[float, ...]
    """Deviation of each head's scores on training responses."""
    pad_rule: str = "the pad token was added for padding alone and is in no render"
    kind: Literal["scalar"] = "scalar"

    def __post_init__(self) -> None:
        if not self.scales or len(self.centers) != len(self.scales):
            raise ValueError(
                f"`centers` and `scales` must have one number a head and one head at least, got "
                f"{self.centers!r} and {self.scales!r}"
            )
        if not all(scale > 0 for scale in self.scales):
            raise ValueError(
                f"`scales` must be positive, got {self.scales!r}: a head with no deviation gives "
                "all responses the same score"
            )

    @classmethod
    def from_json(cls, text: str) -> ScalarManifest:
        """Reads a manifest.

        Raises:
            ValueError: a manifest of another format version.
        """
        return cls(**_read(text, "bos", "sources", "centers", "scales"))


def read_manifest(folder: Path) -> Manifest | ScalarManifest:
    """Returns the manifest of a reward model's folder, by its kind.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: a manifest of another format version.
    """
    file = folder / "panoply.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no reward model folder: it has no panoply.json. "
            "A run leaves one in OUT/model"
        )
    text = file.read_text()
    is_scalar = json.loads(text).get("kind") == "scalar"
    return ScalarManifest.from_json(text) if is_scalar else Manifest.from_json(text)


def _read(text: str, *tuples: str) -> dict[str, Any]:
    """Returns the fields of a manifest; JSON has lists for those that are tuples."""
    fields: dict[str, Any] = json.loads(text)
    if fields.get("format") != FORMAT:
        raise ValueError(f"panoply.json has format {fields.get('format')!r}, expected {FORMAT}")
    fields["rendering"] = Rendering(**fields["rendering"])
    return fields | {name: tuple(fields[name]) for name in tuples}


def hash_keys(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Returns sorted 64-bit prefixes of split keys: enough to recognize a prompt, no text."""
    return np.unique(np.array([int(key[:16], 16) for key in keys], dtype=np.uint64))

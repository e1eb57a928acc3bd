"""Manifests, `panoply.json`: all that scoring depends on besides weights, and their origin.

Format 1 is of folders without a seal, format 2 of sealed ones (`panoply.seal`), format 3 of
ensembles of adapters or with another rule than the mean; all are read, and the least that says all
is written. A field that this version does not know is passed over, since what changes a score
raises the format; an unknown field of `rendering` or `gate` is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from panoply.config import Pooling, Rendering, require
from panoply.config.armorm import GateConfig
from panoply.config.members import MemberKind, MemberRule
from panoply.files import read_json
from panoply.seal import COPY_AGAIN, check_seal, log_unsealed

MANIFEST = "panoply.json"
FORMAT = 3
SEALED_FORMAT = 2
"""First format of folders that have a seal."""
MEMBERS_FORMAT = 3
"""Format of ensembles whose score is no mean of heads, which an older version would take it for."""
TUPLES = ("bos", "objectives", "sources", "centers", "scales")
"""Fields that are tuples, which JSON has as lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseManifest:
    """The record of a reward model of any kind."""

    rendering: Rendering
    temperature: float
    """Score differences divided by it are log odds; infinite where they say nothing."""
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
    format: int = SEALED_FORMAT

    def __post_init__(self) -> None:
        if not self.temperature > 0:  # NaN too
            raise ValueError(f"`temperature` must be positive, got {self.temperature!r}")

    @property
    def least_format(self) -> int:
        """Returns the format that a folder written today has."""
        return SEALED_FORMAT

    @property
    def is_sealed(self) -> bool:
        """Returns whether the folder was saved with a seal."""
        return self.format >= SEALED_FORMAT

    def to_json(self) -> str:
        """Returns the manifest, of a sealed folder, as strict JSON.

        An infinite temperature is null.
        """
        values = asdict(self) | {"format": max(self.format, self.least_format)}
        if math.isinf(self.temperature):
            values["temperature"] = None
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the manifest that a file's object is.

        Raises:
            ValueError: a format of another version, a missing field, or a value that cannot be.
        """
        form = values.get("format")
        if not isinstance(form, int) or not 1 <= form <= FORMAT:
            raise ValueError(
                f"its format is {form!r}, and this version reads 1 to {FORMAT}: upgrade Panoply"
            )
        names = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if missing := sorted(required - values.keys()):
            raise ValueError(f"it lacks {', '.join(missing)}: {COPY_AGAIN}")
        converted = {name: value for name, value in values.items() if name in names}
        try:
            for name in TUPLES:
                if name in converted:
                    converted[name] = tuple(converted[name])
            converted["rendering"] = Rendering(**converted["rendering"])
            if "gate" in converted:
                converted["gate"] = GateConfig(**converted["gate"])
            if converted["temperature"] is None:
                converted["temperature"] = math.inf
            return cls(**converted)
        except TypeError as error:  # an unknown field of `rendering` or `gate`, or another type
            raise ValueError(str(error).replace("__init__()", "a field")) from error


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarManifest(BaseManifest):
    """The record of a scalar model: one linear head, or `K` members as an ensemble."""

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
    members: MemberKind = "heads"
    """Part that is a member's alone; see `panoply.config.preference`."""
    rule: MemberRule = "mean"
    """Rule that makes one score of the members'."""
    caution: float = 1.0
    """Deviations (lcb) or variances (uwo) that the rule takes off."""

    @property
    def least_format(self) -> int:
        """Returns the format that a folder written today has."""
        is_mean_of_heads = self.members == "heads" and self.rule == "mean"
        return SEALED_FORMAT if is_mean_of_heads else MEMBERS_FORMAT

    def __post_init__(self) -> None:
        BaseManifest.__post_init__(self)
        for name, kind in (("members", MemberKind), ("rule", MemberRule)):
            allowed, value = get_args(kind), getattr(self, name)
            require(value in allowed, name, value, f"one of {allowed}")
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


def read_manifest(folder: Path) -> Manifest | ScalarManifest:
    """Returns the manifest of a reward model's folder, by its kind.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged, of a newer format, lacks a field or holds what cannot be.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no reward model folder: it has no {MANIFEST}. "
            "A run leaves one in OUT/model"
        )
    values = read_json(file, COPY_AGAIN)
    kind = ScalarManifest if values.get("kind") == "scalar" else Manifest
    try:
        return kind.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} cannot be used: {error}") from error


def check_sealed(folder: Path, manifest: BaseManifest) -> None:
    """Compares a reward model's folder with its seal; logs once where it is older than seals.

    Raises:
        ValueError: a file is not the one that was saved, or the seal is missing.
    """
    if not check_seal(folder, required=manifest.is_sealed):
        log_unsealed(folder)


def hash_keys(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Returns sorted 64-bit prefixes of split keys: enough to recognize a prompt, no text."""
    return np.unique(np.array([int(key[:16], 16) for key in keys], dtype=np.uint64))

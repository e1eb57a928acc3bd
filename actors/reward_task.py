"""What workers of preference training are told: the pairs, the configuration, where things go.

Legend: `P` pairs of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from panoply.config.preference import PreferenceConfig
from panoply.types import Array, Ints


@dataclass(frozen=True, slots=True)
class PairRows:
    """The pairs of a run without their texts; rows are those of the token file."""

    source_P: Ints
    """Number of each pair's source."""
    label_P: Array
    margin_P: Array
    weight_P: Array
    train: Ints
    select: Ints
    scored: Ints
    """Rows whose margins are wanted in the end."""


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One model to train."""

    config: PreferenceConfig
    pairs: PairRows
    tokens: str
    """File of the token trees."""
    names: Sequence[str]
    """Id of each pair's texts, by which what is computed once is found."""
    folder: str
    """Where checkpoints and results go, on storage that all workers share."""
    store: str
    """Root of what is computed once and shared by runs."""
    threads: int = 0
    """Of each worker; 0 leaves torch's own number."""

"""Rows of a file as they stand there, before validation, and the layout that takes them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from panoply.data.ratings import RatingMap
from panoply.data.schema import Message

Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class RawPair:
    """A pair as it stands in a file, unchecked."""

    prompt: Sequence[Message]
    chosen: object
    rejected: object
    source: object = None
    subset: object = None
    group: object = None
    margin: object = None
    weight: object = None
    is_tie: bool = False
    """Whether neither response is preferred; such a pair is counted and left out."""


@dataclass(frozen=True)
class RawRating:
    """A rating as it stands in a file, unchecked; `ratings` by attribute, in the raw scale."""

    prompt: Sequence[Message]
    response: object
    ratings: Mapping[str, object]
    source: object = None
    subset: object = None
    group: object = None


@dataclass(frozen=True)
class RawPrompt:
    """A prompt for a policy as it stands in a file, unchecked."""

    prompt: Sequence[Message]
    label: object = None
    """Label for a verifier; None where there is none."""
    source: object = None


Raw = TypeVar("Raw", RawPair, RawRating, RawPrompt)


@dataclass(frozen=True)
class FileLayout(Generic[Raw]):
    """A recognized layout, bound to the columns of one file."""

    name: str
    """Name of the layout, or of the data set that has it."""
    adapt: Callable[[Row], list[Raw]]
    reads: frozenset[str]
    """Columns that are read; the others are ignored."""
    attributes: tuple[str, ...] = ()
    """Names of the ratings, as the file spells them; empty for pairs and prompts."""
    scales: Mapping[str, RatingMap] = field(default_factory=dict[str, RatingMap])
    """Published scales by attribute; the others are inferred from the data."""
    has_source: bool = False
    """Whether the rows' `source` column may name their data set."""

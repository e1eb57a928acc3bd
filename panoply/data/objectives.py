"""Objectives of a file of ratings: their names, their scales, and the ones that can be learned."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from panoply.data.ratings import RatingMap

MAPS_KEY = b"panoply.maps"
LARGEST_RATING = 1000
"""Size beyond which hardly a scale of ratings in whole numbers goes."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NO_RATING = _words(
    """
    prompt response source subset group domain meta category row split_key text_id weight margin
    id ids index idx uid uuid guid hash key no nr num number n row_number position order rank
    annotator rater worker user author annotators raters votes count counts
    time date timestamp created updated datetime year month day unixtime duration latency
    seed fold split part shard version turn turns step epoch batch round iteration level_0
    length len size tokens words characters chars lines temperature top_p top_k cost price age
    upvotes downvotes likes views prob probability likelihood perplexity ppl entropy nll loss
    """
)
"""Names of columns that are never an objective, even where they hold numbers."""
NO_RATING_ENDS = _words(
    """
    id ids index idx uid uuid hash timestamp time date utc seconds ms seed length len tokens words
    chars characters count counts votes rank latency duration cost version fold
    prob probs probability logprob logprobs logp logps logit logits perplexity ppl
    """
)
"""Last words of such names."""
NO_RATING_BEGINNINGS = _words("num n nb number id count index created updated len length unnamed")
"""First words of such names."""


@dataclass(frozen=True)
class Observed:
    """Number and range of the ratings of an objective."""

    num_ratings: int = 0
    low: float = math.nan
    """Lowest rating, raw; NaN if there is none."""
    high: float = math.nan
    """Highest rating, raw; NaN if there is none."""
    is_whole: bool = True
    """Whether all ratings are whole numbers."""

    def extend(self, column: Any) -> Observed:
        """Adds an Arrow column of ratings, null where not rated."""
        # As stored, in float32, so that no stored rating lies outside an inferred scale.
        ratings = column.drop_null().to_numpy()
        if not ratings.size:
            return self
        low, high = float(ratings.min()), float(ratings.max())
        if self.num_ratings:
            low, high = min(low, self.low), max(high, self.high)
        is_whole = self.is_whole and bool((ratings == ratings.round()).all())
        return Observed(self.num_ratings + ratings.size, low, high, is_whole)

    @property
    def is_like_ids(self) -> bool:
        """Says whether the numbers are like ids, times or counts: whole, and large."""
        return self.is_whole and max(-self.low, self.high) > LARGEST_RATING


@dataclass(frozen=True)
class LearnableObjectives:
    """Objectives that can be learned, and those that cannot."""

    kept: tuple[str, ...]
    left_out: Mapping[str, str]
    """The reason, by objective."""


def is_rating(column: str) -> bool:
    """Returns whether a column of numbers may be a rating, by its name.

    Names of rows, raters, times, seeds and sizes (`annotator_id`, `createdAt`, `num_tokens`) are
    no ratings.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    if not words or column.startswith("__"):
        return False
    is_named = "_".join(words) in NO_RATING or words[-1] in NO_RATING_ENDS
    return not (is_named or (len(words) > 1 and words[0] in NO_RATING_BEGINNINGS))


def objective_name(source: str, attribute: str, sources: Sequence[str] = ()) -> str:
    """Returns "<source>-<attribute>", or the attribute where it already begins with a source."""
    if any(attribute.startswith(f"{name}-") for name in (source, *sources)):
        return attribute
    return f"{source}-{attribute}"


def merge_scales(
    names: Mapping[str, str],
    published: Mapping[str, RatingMap],
    named: Mapping[str, RatingMap],
    before: Mapping[str, RatingMap],
) -> dict[str, RatingMap]:
    """Returns the declared scales by objective, those of one more file included.

    Args:
        names: attribute of the file by objective.
        published: scales known from the layout, by attribute.
        named: scales from the user, by attribute or objective; they replace the published ones.
        before: scales of the files so far, by objective.

    Raises:
        ValueError: a scale is named for what the file does not rate, or contradicts `before`.
    """
    unknown = sorted(set(named) - set(names) - set(names.values()))
    if unknown:
        raise ValueError(
            f"scales are named for {unknown}, which are not rated here; rated are "
            f"{sorted(set(names.values()))}"
        )
    merged = dict(before)
    for objective, attribute in names.items():
        scale = named.get(objective, named.get(attribute, published.get(attribute)))
        if scale is not None and merged.setdefault(objective, scale) != scale:
            raise ValueError(
                f"objective {objective!r} has two scales, {merged[objective]} and {scale}; name "
                "the inputs apart or name one scale for both"
            )
    return merged


def complete_maps(
    observed: Mapping[str, Observed], declared: Mapping[str, RatingMap]
) -> dict[str, RatingMap]:
    """Returns a map per objective: declared, else the observed range; none if that is empty."""
    maps: dict[str, RatingMap] = {}
    for name, seen in observed.items():
        if name in declared:
            maps[name] = declared[name]
        elif seen.low < seen.high:
            maps[name] = RatingMap(seen.low, seen.high)
    return maps


def maps_metadata(maps: Mapping[str, RatingMap]) -> dict[bytes, bytes]:
    """Returns the maps as Parquet file metadata, for `read_maps`."""
    return {MAPS_KEY: json.dumps({name: scale.to_dict() for name, scale in maps.items()}).encode()}


def read_maps(path: Path) -> dict[str, RatingMap]:
    """Returns the rating maps stored in a file that `ingest_ratings` wrote, by objective.

    Raises:
        ValueError: the file holds none.
    """
    metadata: Mapping[bytes, bytes] = pq.read_metadata(path).metadata or {}
    if MAPS_KEY not in metadata:
        raise ValueError(f"{str(path)!r} holds no rating maps; write it with ingest_ratings")
    stored = json.loads(metadata[MAPS_KEY])
    return {name: RatingMap.from_dict(values) for name, values in stored.items()}


def check_objectives(
    observed: Mapping[str, Observed], min_ratings: int = 20
) -> LearnableObjectives:
    """Divides objectives by whether they can be learned: enough ratings, which vary.

    Raises:
        ValueError: no objective can be learned.
    """
    left_out: dict[str, str] = {}
    for name, seen in observed.items():
        if seen.num_ratings < min_ratings:
            left_out[name] = f"{seen.num_ratings} ratings, fewer than {min_ratings}"
        elif seen.low == seen.high:
            left_out[name] = f"constant: all {seen.num_ratings} ratings are {seen.low:g}"
    kept = tuple(name for name in observed if name not in left_out)
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"no objective can be learned: {reasons or 'there is none'}. Add ratings")
    return LearnableObjectives(kept, left_out)

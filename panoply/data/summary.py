"""Says in sentences what an ingestion read, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping

from panoply.data.ingest import Ingested


def summary_lines(ingested: Ingested) -> list[str]:
    """Returns lines on the rows by source, quarantine, repeats, rating scales and columns left out.

    No line holds a text of the data; names of sources and columns stand in them.
    """
    kind = "ratings" if ingested.objectives else "pairs"
    total = sum(ingested.num_rows.values())
    lines = [f"{kind}: {total:,} rows, by source {_counts(ingested.num_rows)}"]
    if ingested.num_quarantined:
        reasons = _counts(ingested.num_quarantined)
        num_bad = sum(ingested.num_quarantined.values())
        lines.append(f"{kind}: {num_bad:,} rows in quarantine ({ingested.quarantine}): {reasons}")
    if ingested.num_ties:
        lines.append(f"{kind}: {ingested.num_ties:,} ties between responses are left out")
    repeats = ingested.repeats
    if repeats.num_contradicting:
        lines.append(f"{kind}: {repeats.num_contradicting:,} contradict an earlier pair; both stay")
    if repeats.num_repeated:
        lines.append(f"{kind}: {repeats.num_repeated:,} repeat the texts of an earlier row")
    for name, observed in ingested.objectives.items():
        if observed.num_ratings and observed.low == observed.high:
            lines.append(f"rating {name!r}: all {observed.num_ratings:,} are {observed.low:,.7g}")
        if scale := ingested.maps.get(name):
            origin = "as published or named" if name in ingested.declared else "as observed"
            lines.append(
                f"rating {name!r}: {observed.num_ratings:,} on {scale.low:,.7g} to "
                f"{scale.high:,.7g}, {origin}"
            )
            if observed.is_like_ids:
                lines.append(
                    f"rating {name!r}: large whole numbers, as ids, times and counts are; if it is "
                    "no rating, name those that are with --rating-columns"
                )
    return [*lines, *ingested.notes]


def _counts(counts: Mapping[str, int]) -> str:
    """Returns at most eight names with their counts, most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    listed = [f"{name} ({num:,})" for name, num in ordered[:8]]
    if len(ordered) > 8:
        listed.append(f"and {len(ordered) - 8} more")
    return ", ".join(listed)

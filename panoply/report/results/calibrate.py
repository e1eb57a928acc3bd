"""The section about a composite: what it and each of its parts order right."""

from __future__ import annotations

from panoply.report.section import (
    Column,
    Metrics,
    Row,
    Section,
    Table,
    count,
    signed,
    signed_interval,
)


def calibrated(result: Metrics) -> Section:
    """Returns accuracy by row, and how far the composite is from each.

    Args:
        result: `calibrated` of `metrics.json`.
    """
    sizes: Metrics = result["num_pairs"]
    rows: list[Row] = []
    for name, entry in result["rows"].items():
        difference: Metrics = entry.get("composite_minus", {})
        rows.append(
            Row(
                name,
                [entry["accuracy"], difference.get("value"), difference.get("ci95")],
                "strong" if name == "composite" else "",
            )
        )
    columns = [
        Column("accuracy"),
        Column("composite minus it", signed),
        Column("95 %", signed_interval),
    ]
    title = (
        f"{count(sizes['test'])} test pairs, fitted on {count(sizes['fitted'])}; the difference "
        "is length-balanced"
    )
    blocks = [Table(title, "scorer", columns, rows), *result["findings"]]
    return Section("calibrate", "Composite and parts", "", blocks)

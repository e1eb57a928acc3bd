"""The section about a model that was examined."""

from __future__ import annotations

from collections.abc import Sequence

from panoply.report.section import Column, Metrics, Row, Section, Table


def checks(findings: Sequence[Metrics]) -> Section:
    """Returns the checks of a model, with what they found, and what to do where they warn."""
    columns = [Column(name, str) for name in ("finding", "verdict", "what to do")]
    rows: list[Row] = []
    for each in findings:
        cells = [each["finding"], each["verdict"], each["advice"]]
        rows.append(Row(each["check"], cells, "strong" if each["verdict"] == "fail" else ""))
    verdicts = [each["verdict"] for each in findings]
    summary = (
        f"{len(findings)} checks, {verdicts.count('warning')} warnings, "
        f"{verdicts.count('fail')} failed"
    )
    return Section("checks", "Checks", "", [Table("", "check", columns, rows), summary])

"""Sections about models themselves: those that were averaged, and what examining one found."""

from __future__ import annotations

from collections.abc import Sequence

from panoply.report.section import Column, Metrics, Row, Section, Table, count

NO_TEMPERATURE = (
    "The mean has temperature 1 until one is fitted: its scores rank, and its probabilities say "
    "nothing yet."
)


def averaged(models: Sequence[Metrics]) -> Section:
    """Returns which models were averaged, and what each was trained on."""
    columns = [Column("sources", str), Column("pairs", count), Column("temperature")]
    rows = [
        Row(each["model"], [", ".join(each["sources"]), each["pairs"], each["temperature"]])
        for each in models
    ]
    table = Table("Models that were averaged", "model", columns, rows)
    return Section("averaged", "Average", "", [table, NO_TEMPERATURE])


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

"""The doctor: every check of a scorer with its verdict, as a table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from panoply.config.serve import ServedModelConfig
from panoply.files import write_json
from panoply.hub.doctor import examine
from panoply.measure.conformance import Finding
from panoply.scorers.where import CombinedScorers, JudgeFile, open_scorer, parse_where

STYLES = {"ok": "green", "warning": "yellow", "fail": "bold red"}


def run_doctor(name: str, json: str, *, trust_remote_code: bool) -> list[Finding]:
    """Examines a model or judge and writes the findings to a JSON file, where one is named.

    Raises:
        FileNotFoundError: there is no such model, or no such file of a judge's settings.
        ValueError: a setting of the judge is wrong.
    """
    match parse_where(name):
        case JudgeFile(file=file):
            # The client of OpenAI takes a second to load.
            from panoply.scorers.judge.doctor import examine_judge

            findings = examine_judge(file)
        case CombinedScorers():
            findings = _composite(name)
        case _:
            findings = examine(name, trust_remote_code=trust_remote_code)
    if json:
        path = Path(json).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"model": name, "findings": [asdict(finding) for finding in findings]})
    return findings


def _composite(where: str) -> list[Finding]:
    """Returns the findings about a composite. MLflow loads only here, for the names of models."""
    from panoply.scorers.composite.doctor import examine_composite
    from workflows.cluster.resolve_model import model_in_process, resolve_model

    config = resolve_model(ServedModelConfig(name="composite", where=where))
    return examine_composite(lambda: open_scorer(config, open_model=model_in_process))


def findings_table(findings: Sequence[Finding]) -> Table:
    """Returns a table with a row for each check: finding, verdict, advice."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name, ratio in (("check", 3), ("finding", 9), ("verdict", 2), ("what to do", 7)):
        table.add_column(Text(name), ratio=ratio, overflow="fold")
    for row in findings:
        verdict = Text(row.verdict, style=STYLES[row.verdict])
        table.add_row(Text(row.check), Text(row.finding), verdict, Text(row.advice))
    return table

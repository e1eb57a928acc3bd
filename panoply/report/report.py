"""The report of a finished run, from the files in its folder: terminal, page and pictures.

Sections that a run does not have are left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from panoply.files import write_whole
from panoply.report.figures import picture
from panoply.report.page import Page, render
from panoply.report.progress import Terminal
from panoply.report.results import (
    alarms,
    armorm,
    audit,
    best_of_n,
    board,
    calibrate,
    laser,
    merge,
    models,
    pairs,
    preference,
    rescore,
    signals,
)
from panoply.report.section import (
    Block,
    Column,
    Curves,
    Fold,
    Metrics,
    Row,
    Section,
    Table,
    count,
    words,
)
from panoply.report.terminal import print_sections

EMPTY: Metrics = {}
RECORD_FILE = "run.json"
"""File with the beginning, the command, the machine and the trackers of a run."""
DEMO = (
    "Demo model: it was trained on the planted world and knows only generated sentences. What it "
    "says of other texts means nothing."
)


def write_report(out: Path) -> None:
    """Writes `OUT/report.html`, and a PNG for each table and curve that is one.

    Args:
        out: folder with `metrics.json` and `config.json`, and `mistakes.json`, `history.json`
            and `examples.json` where there are.
    """
    names = ("metrics", "config", "mistakes", "history", "examples")
    metrics, config, mistakes, history, examples = [_read(out / f"{name}.json") for name in names]
    origin = _read(out / RECORD_FILE)
    if origin:
        origin |= {"finished": time.time()}
    sections = sections_of(metrics, mistakes, history)
    if examples:
        sections.append(audit.examples(examples))
    write_pictures(sections, out)
    head = _head(out.name, metrics, config, origin)
    page = render(head, [*sections, *record(metrics, config, origin)])
    # A text from outside may hold a lone surrogate, which no file takes.
    write_whole(out / "report.html", page.encode("utf-8", "backslashreplace").decode())


def print_summary(metrics: Metrics, console: Terminal) -> None:
    """Prints the tables of a run."""
    print_sections(sections_of(metrics), console)


def write_pictures(sections: Iterable[Section], folder: Path) -> list[Path]:
    """Writes each picture of some sections and returns their paths."""
    pictures: dict[str, list[Table | Curves]] = {}
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table | Curves) and block.file and not block.is_empty:
                pictures.setdefault(block.file, []).append(block)
    paths = [folder / f"{name}.png" for name in pictures]
    folder.mkdir(parents=True, exist_ok=True)
    for path, blocks in zip(paths, pictures.values(), strict=True):
        path.write_bytes(picture(blocks))
    return paths


def sections_of(
    metrics: Metrics, mistakes: Metrics = EMPTY, history: Metrics = EMPTY
) -> list[Section]:
    """Returns the sections that a run has, in the order of a report.

    Args:
        metrics: `metrics.json`.
        mistakes: `mistakes.json`; may be empty.
        history: `history.json`; may be empty.
    """
    by_scorer = metrics.get("pairs", {})
    sections = _gate_sections(metrics)
    if by_scorer:
        sections.insert(0, pairs.scorers(by_scorer, metrics.get("comparisons", {})))
    if trained := metrics.get("training"):
        sections.append(preference.training(trained, history))
    if bins := metrics.get("reliability"):
        sections.append(pairs.reliability(bins, by_scorer))
    if mistakes:
        sections.append(armorm.mistakes(mistakes))
    if sources := metrics.get("leave_one_out"):
        sections.append(armorm.leave_one_out(sources))
    if measured := metrics.get("planted"):
        sections.append(armorm.planted(measured))
    sections += _scorer_sections(metrics)
    return [*sections, *_policy_sections(metrics, history)]


def _gate_sections(metrics: Metrics) -> list[Section]:
    """Returns the sections about objectives and their weights."""
    sections: list[Section] = []
    if measured := metrics.get("objectives"):
        sections.append(armorm.objectives(measured, metrics.get("left_out", {})))
    if weights := metrics.get("gate", {}).get("weights_by_domain"):
        sections.append(armorm.gate_weights(weights))
    if debias := metrics.get("debias"):
        sections.append(armorm.length(debias))
    return sections


def _scorer_sections(metrics: Metrics) -> list[Section]:
    """Returns the sections of a run that trains nothing, about scorers that there are."""
    sections: list[Section] = []
    if merged := metrics.get("merged"):
        sections.append(merge.merged(merged))
    if findings := metrics.get("findings"):
        sections.append(models.checks(findings))
    if fitted := metrics.get("calibrated"):
        sections.append(calibrate.calibrated(fitted))
    if rescored := metrics.get("rescored"):
        sections += rescore.rescored(rescored)
    if scored := metrics.get("board"):
        sections += board.board(scored)
    if audited := metrics.get("audit"):
        sections += audit.audited(audited)
    return sections


def _policy_sections(metrics: Metrics, history: Metrics) -> list[Section]:
    """Returns the sections of a run that trains policies, or picks among their samples."""
    sections: list[Section] = []
    strategies = metrics.get("strategies", {})
    if strategies:
        sections.append(laser.outcomes(strategies, metrics.get("differences", {})))
    if picked := metrics.get("best_of_n"):
        routed, optimization = metrics.get("arms_routed", {}), metrics.get("optimization", {})
        sections.append(best_of_n.right_choices(picked, routed, optimization))
    if choices := metrics.get("choices"):
        sections.append(laser.shares(choices, history))
        if history:
            sections.append(laser.learning(choices, history))
        # A fixed arm has nothing to be compared with.
        estimates = {
            name: choice["off_policy"]
            for name, choice in choices.items()
            if "off_policy" in choice and not name.startswith("fixed:")
        }
        if estimates:
            sections.append(laser.off_policy(estimates))
        sections.append(signals.signals(choices))
        sections.append(alarms.alarms(choices, strategies))
    return sections


def record(metrics: Metrics, config: Metrics, origin: Metrics = EMPTY) -> list[Section]:
    """Returns the data, the origin and the configuration of a run, as far as they are known.

    Args:
        metrics: `metrics.json`.
        config: `config.json`; without it there is no section.
        origin: `run.json`, and when the run `finished`; may be empty.
    """
    if not config:
        return []
    blocks: list[Block] = [_data(metrics.get("data", {}))]
    if origin:
        blocks.append(_origin(metrics, config, origin))
    if commit := metrics.get("git_commit"):
        blocks.append(f"Commit {commit}")
    blocks.append(_layer_choice(metrics.get("layer_choice", ())))
    settings = [Row(name, [value]) for name, value in _settings(config)]
    columns = [Column("value", str)]
    table = Table("Settings", "setting", columns, settings)
    blocks.append(Fold("Every setting", [table]))
    return [Section("record", "Data and configuration", "", blocks)]


def _origin(metrics: Metrics, config: Metrics, origin: Metrics) -> Table:
    """Returns when, how and where a run came about."""
    model = metrics.get("model") or (config.get("backbone") or {}).get("model", "")
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    values = {
        "model": model,
        "begun": _date(origin["begun"]),
        "finished": _date(origin["finished"]),
        "duration": _duration(origin["finished"] - origin["begun"]),
        "command": origin["command"],
        "machine": origin["machine"],
        "versions": versions,
        "tracked": ", ".join(origin["trackers"]),
    }
    rows = [Row(name, [value]) for name, value in values.items() if value]
    return Table("The run", "", [Column("", str)], rows)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _data(data: Mapping[str, Metrics]) -> Table:
    rows: list[Row] = []
    for kind, entry in data.items():
        counts = [_counts(entry[key]) for key in ("by_source", "parts", "quarantined")]
        rows.append(Row(kind, [entry["rows"], *counts, entry["id"]]))
    names = ("sources", "parts", "quarantined", "id")
    columns = [Column("rows", count), *(Column(name, str) for name in names)]
    return Table("Data", "kind", columns, rows)


def _layer_choice(tried: Sequence[Metrics]) -> Table:
    rows: list[Row] = []
    for entry in tried:
        style, note = ("strong", "chosen") if entry["chosen"] else ("", "")
        name = f"{entry['depth']}, {words(entry['pooling'])}"
        rows.append(Row(name, [entry["spearman"]], style, note))
    title = "Layers and pooling of the features, chosen on the select part"
    return Table(title, "layers, pooling", [Column("mean Spearman")], rows)


def _counts(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count(n)}" for name, n in numbers.items()) or "none"


def _settings(values: Metrics, prefix: str = "") -> list[tuple[str, str]]:
    """Returns nested settings by their dotted names."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _settings(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            rows.append((prefix + name, ", ".join(map(str, value)) or "-"))
        else:
            rows.append((prefix + name, "-" if value in (None, "") else str(value)))
    return rows


def _head(title: str, metrics: Metrics, config: Metrics, origin: Metrics) -> Page:
    """Returns the top of a run's page: the verdict as a sentence, and the key figures."""
    is_policy = "strategies" in metrics or "best_of_n" in metrics
    remarks: list[str] = []
    if origin:
        duration = _duration(origin["finished"] - origin["begun"])
        remarks.append(f"Finished {_date(origin['finished'])}, after {duration}.")
    warning = DEMO if config.get("planted") else ""
    if metrics.get("only_seen"):
        warning = "Every prompt was trained on: these numbers say nothing about new prompts."
    if "num_pairs" in metrics:
        remark = f"{count(metrics['num_pairs'])} pairs scored with {metrics['model']}"
        if metrics["num_seen"] and not warning:
            num_seen = count(metrics["num_seen"])
            remark += f"; {num_seen} of prompts that it was trained on are left out"
        remarks.append(f"{remark}.")
    for name, cut in metrics.get("truncated", {}).items():
        if cut["texts"]:
            remarks.append(
                f"{count(cut['texts'])} texts lose {count(cut['tokens'])} tokens to the limits of "
                f"{name}."
            )
    return Page(
        title=title,
        kind="policy" if is_policy else "reward model",
        commit=metrics.get("git_commit", ""),
        verdict=(
            pairs.verdict(metrics)
            or laser.verdict(metrics)
            or rescore.verdict(metrics)
            or board.verdict(metrics)
            or audit.verdict(metrics)
        ),
        warning=warning,
        remarks=remarks,
        key_figures=[
            *pairs.key_figures(metrics.get("pairs", {})),
            *armorm.key_figures(metrics),
            *laser.key_figures(metrics),
        ],
    )


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

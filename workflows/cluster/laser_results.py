"""What a LASeR run measured: round by round, on held-out prompts, and of its choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actors.dpo_trainer import PolicyRound, RankedPrompt
from panoply.config.bandit import SIGNALS
from panoply.config.laser import ENSEMBLES, LaserConfig
from panoply.data.tasks import Task
from panoply.hub.policy.export import export_policy
from panoply.laser.ensembles import best_of, chosen_scores
from panoply.laser.log import Log, Record, column
from panoply.laser.monitor import Alarm, alarms, series
from panoply.laser.scored import ScoredPrompt
from panoply.laser.signals import correlations
from panoply.measure.intervals import mean_interval
from panoply.report.laser_plots import draw_laser
from panoply.report.page.write import write_page
from panoply.report.tables import number
from workflows.cluster.tracking import git_commit, write_json


@dataclass(slots=True)
class StrategyRun:
    """How the policy of one strategy went."""

    strategy: str
    arms: tuple[str, ...]
    folder: Path
    looks: dict[int, list[ScoredPrompt]] = field(default_factory=dict[int, list[ScoredPrompt]])
    """Held-out samples by the number of rounds before them."""
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """One a round."""
    num_scored: int = 0
    """Responses that arms scored for training."""
    paused: str = ""
    """The alarm that stopped it, and when; empty where none did."""
    adapter: str = ""
    """Folder of the last adapters; empty where nothing was trained."""

    def look(self, rounds: int, scored: list[ScoredPrompt]) -> None:
        """Takes in the held-out samples after some rounds."""
        if scored:
            self.looks[rounds] = scored

    def gain(self, round: int) -> float:
        """Returns by how much a round raised held-out quality; NaN where it was not measured."""
        before, after = self.looks.get(round), self.looks.get(round + 1)
        return quality(after) - quality(before) if before and after else float("nan")

    def add(
        self,
        round: int,
        scored: Sequence[ScoredPrompt],
        chosen: Mapping[str, str],
        prompts: Sequence[RankedPrompt],
        trained: PolicyRound | None,
    ) -> None:
        """Takes in a round."""
        steps = trained.history if trained else []
        self.num_scored += sum(int(np.isfinite(one.score_Kn).sum()) for one in scored)
        row: dict[str, Any] = {
            "step": round,
            "loss": float(np.mean([step["loss"] for step in steps])) if steps else None,
            "num_pairs": sum(len(one.pairs) for one in prompts),
            "quality": quality(scored),
            "length": float(np.mean([len(text) for one in scored for text in one.responses])),
            "held_out": quality(self.looks[round + 1]) if round + 1 in self.looks else None,
            "probe_gain": trained.gold_margin_gain()
            if trained and trained.gold_pairs.num_rows
            else None,
        }
        count = Counter(chosen.values())
        if chosen:
            row |= {f"share/{arm}": count[arm] / len(chosen) for arm in self.arms}
        self.rows.append(row)

    @property
    def line(self) -> str:
        """The latest round in words."""
        row = self.rows[-1]
        shares = (f"{arm} {row[f'share/{arm}']:.0%}" for arm in self.arms if f"share/{arm}" in row)
        told = f"round {row['step']}, loss {number(row['loss'])}, right {number(row['quality'])}"
        held = f", held out {number(row['held_out'])}" if row["held_out"] is not None else ""
        return f"{told}{held}; {', '.join(shares)}"


def quality(scored: Sequence[ScoredPrompt]) -> float:
    """Returns the mean over prompts of the share of right responses; NaN where none is known."""
    return _mean([one.quality for one in scored])


def finish(
    config: LaserConfig,
    courses: Mapping[str, StrategyRun],
    train: Sequence[Task],
    out: Path,
) -> dict[str, Any]:
    """Writes metrics, history, plots, page and model of a run that is over."""
    chief = next(iter(courses.values()))
    records = {
        name: Log(str(course.folder / "log"), course.arms).read()
        for name, course in courses.items()
        if config.selector_of(name) is not None
    }
    history = {name: history_of(course, records.get(name)) for name, course in courses.items()}
    metrics: dict[str, Any] = {
        "strategies": {name: strategy_metrics(course) for name, course in courses.items()},
        "differences": compared(courses),
        "choices": {name: choice_metrics(record, config) for name, record in records.items()},
        "num_prompts": len(train),
        "git_commit": git_commit(),
    }
    if chief.adapter and not (out / "model").exists():
        export_policy(config.backbone.model, Path(chief.adapter), out / "model")
    write_json(out / "metrics.json", metrics)
    write_json(out / "history.json", history)
    draw_laser(history, metrics, out)
    write_page(out)
    return metrics


def history_of(course: StrategyRun, record: Record | None) -> list[dict[str, Any]]:
    """Returns the rounds of a strategy, with what its log shows of each."""
    if record is None:
        return course.rows
    curves = {name: values.tolist() for name, values in series(record).items() if name != "round"}
    return [
        {name: values[i] for name, values in curves.items()} | row
        for i, row in enumerate(course.rows)
    ]


def strategy_metrics(course: StrategyRun) -> dict[str, Any]:
    """Returns what a strategy came to: held-out quality before and after, best of n, its cost."""
    found: dict[str, Any] = {
        "rounds": len(course.rows),
        "num_scored": course.num_scored,
        "num_pairs": sum(row["num_pairs"] for row in course.rows),
        "paused": course.paused,
    }
    if not course.looks:
        return found
    first, last = course.looks[0], course.looks[max(course.looks)]
    gain_N = np.array([b.quality - a.quality for a, b in zip(first, last, strict=True)])
    found |= {
        "held_out": {str(rounds): quality(one) for rounds, one in sorted(course.looks.items())},
        "before": quality(first),
        "after": quality(last),
        "gain": _mean(gain_N),
        "gain_ci95": mean_interval(gain_N),
        "length_after": _mean([len(text) for one in last for text in one.responses]),
        "best_of_n": {
            name: {"before": before, "after": after}
            for (name, before), after in zip(
                picked(first, course.arms).items(), picked(last, course.arms).values(), strict=True
            )
        },
    }
    return found


def picked(scored: Sequence[ScoredPrompt], arms: Sequence[str]) -> dict[str, float]:
    """Returns the share of prompts whose best response is right, by who calls it the best."""
    found = {arm: [one.score_Kn[k] for one in scored] for k, arm in enumerate(arms)}
    for ensemble in ENSEMBLES:
        found[ensemble] = [chosen_scores(ensemble, one.score_Kn) for one in scored]
    return {
        name: _mean([one.verdict_n[best_of(s)] for one, s in zip(scored, scores, strict=True)])
        for name, scores in found.items()
    }


def compared(courses: Mapping[str, StrategyRun]) -> dict[str, Any]:
    """Returns the first strategy less each other behind all rounds, on the same prompts."""
    (name, chief), *others = courses.items()
    found: dict[str, Any] = {}
    for other, course in others:
        if not chief.looks or not course.looks:
            continue
        ours, theirs = (c.looks[max(c.looks)] for c in (chief, course))
        gain_N = np.array([a.quality - b.quality for a, b in zip(ours, theirs, strict=True)])
        found[f"{name} - {other}"] = {"value": _mean(gain_N), "ci95": mean_interval(gain_N)}
    return found


def choice_metrics(record: Record, config: LaserConfig) -> dict[str, Any]:
    """Returns what a log says: shares in all and by source, alarms, how signals go with quality."""
    curves = series(record)
    shares = {arm: _mean(curves[f"share/{arm}"]) for arm in record.arms}
    prefix = "share_in/"
    names = {name.removeprefix(prefix) for name in curves if name.startswith(prefix)}
    sources = sorted({name.rsplit("/", 1)[0] for name in names})
    rewards = record.rewards
    given = {name: column(rewards, f"signal_{name}") for name in SIGNALS}
    rounds = rewards["round"].to_numpy()
    return {
        "shares": shares,
        "shares_by_source": {
            source: {arm: _mean(curves[f"{prefix}{source}/{arm}"]) for arm in record.arms}
            for source in sources
        },
        "uncertainty": _mean(curves["uncertainty"]),
        "regret": float(curves["regret"][-1]) if len(curves["regret"]) else None,
        "disagreement": _mean(curves["disagreement"]),
        "alarms": [asdict(alarm) for alarm in alarm_history(record, config)],
        "failures": failures(record),
        "sidelined": sidelined(record),
        "applied": next(filter(None, rewards["signal"].to_pylist()), ""),
        "signals": {
            "verifier": correlations(given, column(rewards, "verifier"), rounds),
            "held_out": correlations(given, column(rewards, "held_out_gain"), rounds),
        },
    }


def failures(record: Record) -> list[dict[str, Any]]:
    """Returns by round and arm on how many prompts the arm gave no scores, and the reason."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for row in record.rewards.filter(record.rewards["failure"].is_valid()).to_pylist():
        told = {
            "round": row["round"],
            "arm": row["arm"],
            "num_failed": 0,
            "failure": row["failure"],
        }
        found.setdefault((row["round"], row["arm"]), told)["num_failed"] += row["num_failed"]
    return list(found.values())


def sidelined(record: Record) -> list[dict[str, Any]]:
    """Returns the arms that could not be chosen: from `round`, why, and `until` they came back."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in record.decisions.select(("round", "sidelined")).to_pylist():
        for away in row["sidelined"]:
            found.setdefault((away["arm"], away["until"]), {"round": row["round"]} | away)
    return list(found.values())


def alarm_history(record: Record, config: LaserConfig) -> list[Alarm]:
    """Returns the alarms that were raised after each round, one that goes on once."""
    found: list[Alarm] = []
    before: set[tuple[str, str]] = set()
    for round in sorted(set(record.rewards["round"].to_pylist())):
        until = sum(value <= round for value in record.rewards["round"].to_pylist())
        part = Record(record.arms, record.decisions.slice(0, until), record.rewards.slice(0, until))
        now = alarms(series(part), record.arms, config.alarms)
        found += [alarm for alarm in now if (alarm.name, alarm.arm) not in before]
        before = {(alarm.name, alarm.arm) for alarm in now}
    return found


def _mean(values: Any) -> float:
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")

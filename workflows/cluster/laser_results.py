"""Results of a LASeR run: round by round, on held-out prompts, and of its choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actors.policy_round import PolicyRound
from panoply.bandit.off_policy import snips
from panoply.config.bandit import SIGNALS
from panoply.config.laser import ENSEMBLES, LaserConfig
from panoply.data.tasks import Task
from panoply.files import write_json
from panoply.hub.policy.export import export_policy
from panoply.laser.ensembles import best_of, chosen_scores
from panoply.laser.log import Log, Record, column
from panoply.laser.monitor import Alarm, alarms, series
from panoply.laser.rollout import Rollout, Truncation, summed_truncation
from panoply.laser.signals import correlations
from panoply.measure.intervals import mean_interval
from panoply.report.report import write_report
from panoply.report.section import number
from workflows.cluster.tracking import git_commit

Z95 = 1.96
"""Standard errors on either side of a mean that hold it in 95 % of cases."""


@dataclass(slots=True)
class StrategyRun:
    """Training of the policy of one strategy, as far as it has come."""

    strategy: str
    arms: tuple[str, ...]
    folder: Path
    evaluations: dict[int, list[Rollout]] = field(default_factory=dict[int, list[Rollout]])
    """Held-out samples by the number of rounds before them."""
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Results of each round."""
    num_scored: int = 0
    """Responses that arms scored for training."""
    truncated: Truncation = field(default_factory=dict[str, Mapping[str, int]])
    """Those of them that the limits of arms cut."""
    stopped: str = ""
    """The alarm that stopped the run, and the round; empty where none did."""
    adapter: str = ""
    """Folder of the last adapters; empty where nothing was trained."""

    def add_evaluation(self, num_rounds: int, rollouts: list[Rollout]) -> None:
        """Adds the held-out samples after some rounds."""
        if rollouts:
            self.evaluations[num_rounds] = rollouts

    def held_out_gain(self, round: int) -> float:
        """Returns the rise of held-out quality in a round; NaN where it was not measured."""
        before, after = self.evaluations.get(round), self.evaluations.get(round + 1)
        return quality(after) - quality(before) if before and after else float("nan")

    def add_round(
        self, round: int, rollouts: Sequence[Rollout], update: PolicyRound | None
    ) -> None:
        """Adds a round."""
        self.num_scored += sum(rollout.num_scores for rollout in rollouts)
        cut = (rollout.truncation for rollout in rollouts)
        self.truncated = summed_truncation([self.truncated, *cut])
        losses = [step["loss"] for step in update.history] if update else []
        evaluation = self.evaluations.get(round + 1)
        has_gold_pairs = update is not None and update.gold_pairs.num_rows > 0
        row: dict[str, Any] = {
            "step": round,
            "loss": float(np.mean(losses)) if losses else None,
            "num_pairs": sum(len(rollout.pairs) for rollout in rollouts),
            "quality": quality(rollouts),
            "length": _mean_length(rollouts),
            "held_out": quality(evaluation) if evaluation else None,
            "gold_margin_gain": update.gold_margin_gain() if update and has_gold_pairs else None,
        }
        chosen = [rollout.arm for rollout in rollouts if rollout.arm]
        if chosen:
            count = Counter(chosen)
            row |= {f"share/{arm}": count[arm] / len(chosen) for arm in self.arms}
        self.rows.append(row)

    @property
    def line(self) -> str:
        """The latest round in words."""
        row = self.rows[-1]
        line = f"round {row['step']}, loss {number(row['loss'])}, right {number(row['quality'])}"
        if row["held_out"] is not None:
            line += f", held out {number(row['held_out'])}"
        shares = [f"{arm} {row[f'share/{arm}']:.0%}" for arm in self.arms if f"share/{arm}" in row]
        return f"{line}; {', '.join(shares)}"


def quality(rollouts: Sequence[Rollout]) -> float:
    """Returns the mean over prompts of the share of right responses; NaN where none is judged."""
    return _mean([rollout.quality for rollout in rollouts])


def finish(
    config: LaserConfig, runs: Mapping[str, StrategyRun], train: Sequence[Task], out: Path
) -> dict[str, Any]:
    """Writes metrics, history, plots, page and model of a run that is over; returns metrics."""
    first = next(iter(runs.values()))
    records: dict[str, Record] = {}
    for name, run in runs.items():
        if config.selector_of(name) is not None:
            records[name] = Log(str(run.folder / "log"), run.arms).read()
    metrics: dict[str, Any] = {
        "strategies": {name: strategy_metrics(run) for name, run in runs.items()},
        "differences": paired_differences(runs),
        "choices": {name: choice_metrics(record, config) for name, record in records.items()},
        "num_prompts": len(train),
        "truncated": summed_truncation(run.truncated for run in runs.values()),
        "git_commit": git_commit(),
    }
    history = {name: history_of(run, records.get(name)) for name, run in runs.items()}
    if first.adapter and not (out / "model").exists():
        export_policy(config.backbone.model, Path(first.adapter), out / "model")
    write_json(out / "metrics.json", metrics)
    write_json(out / "history.json", history)
    write_report(out)
    return metrics


def history_of(run: StrategyRun, record: Record | None) -> list[dict[str, Any]]:
    """Returns the rounds of a strategy, with the curves of its log."""
    if record is None:
        return run.rows
    curves = {name: values.tolist() for name, values in series(record).items() if name != "round"}
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(run.rows):
        rows.append({name: values[i] for name, values in curves.items()} | row)
    return rows


def strategy_metrics(run: StrategyRun) -> dict[str, Any]:
    """Returns a strategy's cost, and held-out quality before and after, with best of n."""
    metrics: dict[str, Any] = {
        "rounds": len(run.rows),
        "num_scored": run.num_scored,
        "num_pairs": sum(row["num_pairs"] for row in run.rows),
        "paused": run.stopped,
    }
    if not run.evaluations:
        return metrics
    first, last = run.evaluations[0], run.evaluations[max(run.evaluations)]
    gain_N = np.array([b.quality - a.quality for a, b in zip(first, last, strict=True)])
    best_before, best_after = best_of_n(first, run.arms), best_of_n(last, run.arms)
    return metrics | {
        "held_out": {str(num): quality(some) for num, some in sorted(run.evaluations.items())},
        "before": quality(first),
        "after": quality(last),
        "gain": _mean(gain_N),
        "gain_ci95": mean_interval(gain_N),
        "length_after": _mean_length(last),
        "best_of_n": {
            name: {"before": best_before[name], "after": best_after[name]} for name in best_before
        },
    }


def best_of_n(rollouts: Sequence[Rollout], arms: Sequence[str]) -> dict[str, float]:
    """Returns the share of prompts whose best response is right, by each arm and ensemble."""
    verdicts: dict[str, list[float]] = {name: [] for name in (*arms, *ENSEMBLES)}
    for rollout in rollouts:
        for k, arm in enumerate(arms):
            verdicts[arm].append(rollout.verdict_n[best_of(rollout.score_Kn[k])])
        for ensemble in ENSEMBLES:
            scores_n = chosen_scores(ensemble, rollout.score_Kn)
            verdicts[ensemble].append(rollout.verdict_n[best_of(scores_n)])
    return {name: _mean(values) for name, values in verdicts.items()}


def paired_differences(runs: Mapping[str, StrategyRun]) -> dict[str, Any]:
    """Returns the first strategy less each other after all rounds, on the same prompts."""
    (name, first), *others = runs.items()
    differences: dict[str, Any] = {}
    for other_name, other in others:
        if not first.evaluations or not other.evaluations:
            continue
        ours = first.evaluations[max(first.evaluations)]
        theirs = other.evaluations[max(other.evaluations)]
        gain_N = np.array([a.quality - b.quality for a, b in zip(ours, theirs, strict=True)])
        interval = mean_interval(gain_N)
        differences[f"{name} - {other_name}"] = {"value": _mean(gain_N), "ci95": interval}
    return differences


def choice_metrics(record: Record, config: LaserConfig) -> dict[str, Any]:
    """Returns shares in all and by source, alarms, and how signals go with quality, from a log."""
    curves = series(record)
    sources: set[str] = set()
    for prompt_sources in record.ended["sources"].to_pylist():
        sources.update(filter(None, prompt_sources))
    rewards = record.rewards
    by_signal = {name: column(rewards, f"signal_{name}") for name in SIGNALS}
    rounds = rewards["round"].to_numpy()
    return {
        "shares": _arm_means(curves, "share", record.arms),
        "shares_by_source": {
            source: _arm_means(curves, f"share_in/{source}", record.arms)
            for source in sorted(sources)
        },
        "uncertainty": _mean(curves["uncertainty"]),
        "regret": float(curves["regret"][-1]) if len(curves["regret"]) else None,
        "disagreement": _mean(curves["disagreement"]),
        "alarms": [asdict(alarm) for alarm in alarm_history(record, config)],
        "off_policy": off_policy_metrics(record),
        "failures": failures(record),
        "suspended": suspended(record),
        "applied": next(filter(None, rewards["signal"].to_pylist()), ""),
        "signals": {
            "verifier": correlations(by_signal, column(rewards, "verifier"), rounds),
            "held_out": correlations(by_signal, column(rewards, "held_out_gain"), rounds),
        },
    }


def off_policy_metrics(record: Record) -> dict[str, Any]:
    """Returns the bandit's mean reward, and that of each arm had it always been chosen.

    `mean`, `ci95` and `num` are of the decisions with a reward. `arms` has by name the `value` by
    SNIPS, its `ci95` and effective sample size `ess`. An arm is estimated only on the decisions
    that could have drawn it: `support` is their share, `bandit_value` the bandit's mean reward on
    them, to compare `value` with. All are NaN where the log cannot say.
    """
    choice, rewards_N = record.choice(record.ended), record.rewards_N
    by_arm: dict[str, Any] = {}
    for k, arm in enumerate(record.arms):
        estimate = snips(choice, rewards_N, k)
        width = Z95 * estimate.standard_error
        by_arm[arm] = {
            "value": estimate.value,
            "ci95": [estimate.value - width, estimate.value + width],
            "ess": estimate.effective_sample_size,
            "support": estimate.support,
            "bandit_value": estimate.bandit_value,
        }
    reward_N = rewards_N[np.isfinite(rewards_N)]
    return {
        "mean": _mean(reward_N),
        "ci95": mean_interval(reward_N),
        "num": len(reward_N),
        "arms": by_arm,
    }


def failures(record: Record) -> list[dict[str, Any]]:
    """Returns by round and arm the number of prompts without scores, and the first reason."""
    totals: dict[tuple[int, str], dict[str, Any]] = {}
    for row in record.rewards.filter(record.rewards["failure"].is_valid()).to_pylist():
        key = row["round"], row["arm"]
        if key not in totals:
            totals[key] = {"round": row["round"], "arm": row["arm"], "num_failed": 0}
            totals[key]["failure"] = row["failure"]
        totals[key]["num_failed"] += row["num_failed"]
    return list(totals.values())


def suspended(record: Record) -> list[dict[str, Any]]:
    """Returns the arms that could not be chosen: from `round`, why, and `until` they came back."""
    suspensions: dict[tuple[str, int], dict[str, Any]] = {}
    for row in record.decisions.select(("round", "suspended")).to_pylist():
        for suspension in row["suspended"]:
            key = suspension["arm"], suspension["until"]
            suspensions.setdefault(key, {"round": row["round"]} | suspension)
    return list(suspensions.values())


def alarm_history(record: Record, config: LaserConfig) -> list[Alarm]:
    """Returns the alarms that were raised after each round, one that goes on once."""
    history: list[Alarm] = []
    before: set[tuple[str, str]] = set()
    rounds = record.rewards["round"].to_numpy()
    for round in np.unique(rounds):
        num = int((rounds <= round).sum())
        part = Record(record.arms, record.decisions.slice(0, num), record.rewards.slice(0, num))
        now = alarms(series(part), record.arms, config.alarms)
        history += [alarm for alarm in now if (alarm.name, alarm.arm) not in before]
        before = {(alarm.name, alarm.arm) for alarm in now}
    return history


def _arm_means(curves: Mapping[str, Any], prefix: str, arms: Sequence[str]) -> dict[str, float]:
    return {arm: _mean(curves[f"{prefix}/{arm}"]) for arm in arms}


def _mean_length(rollouts: Sequence[Rollout]) -> float:
    """Returns the mean characters of all responses."""
    lengths = [len(text) for rollout in rollouts for text in rollout.responses]
    return float(np.mean(lengths)) if lengths else float("nan")


def _mean(values: Any) -> float:
    """Returns the mean of the finite values; NaN where there is none."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return float(numbers.mean()) if len(numbers) else float("nan")

"""A section about what went wrong in a run with a bandit: alarms, and arms that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from panoply.report.section import Block, Column, Metrics, Row, Section, Table, count


def alarms(choices: Mapping[str, Metrics], strategies: Mapping[str, Metrics]) -> Section:
    """Returns the alarms, what came of them, and the arms that failed or were suspended."""
    raised: list[Row] = []
    failed: list[Row] = []
    suspended: list[Row] = []
    for name, choice in choices.items():
        away: Sequence[Metrics] = choice.get("suspended") or choice.get("sidelined") or ()
        for alarm in choice["alarms"]:
            outcome = followed(alarm, away, strategies.get(name, {}))
            title = f"{alarm['name']}, round {alarm['round']}"
            raised.append(Row(title, [name, alarm["message"], outcome]))
        for entry in choice["failures"]:
            cells = [name, str(entry["round"]), count(entry["num_failed"]), entry["failure"]]
            failed.append(Row(entry["arm"], cells))
        for entry in away:
            rounds = f"{entry['round']} to {entry['until'] - 1}"
            suspended.append(Row(entry["arm"], [name, rounds, entry["reason"]]))
    blocks: list[Block] = [
        _texts("Alarms", "alarm", ("strategy", "message", "what followed"), raised),
        _texts("Arms that failed", "arm", ("strategy", "round", "prompts", "first reason"), failed),
        _texts("Arms that were set aside", "arm", ("strategy", "rounds", "reason"), suspended),
    ]
    if not raised:
        blocks.append(
            "No alarm was raised. Alarms compare windows of rounds, so a run that is shorter than "
            "a window raises none."
        )
    if not failed:
        blocks.append("No arm failed.")
    return Section("alarms", "Alarms and failures", "", blocks, on_terminal=False)


def _texts(title: str, first: str, names: Sequence[str], rows: Sequence[Row]) -> Table:
    return Table(title, first, [Column(name, str) for name in names], rows)


def followed(alarm: Metrics, suspended: Sequence[Metrics], strategy: Metrics) -> str:
    """Returns in words what came of an alarm.

    Args:
        alarm: one of `choices`.
        suspended: arms of the same strategy that were set aside.
        strategy: what the strategy came to.
    """
    ran_on = strategy.get("rounds", 0) > alarm["round"] + 1
    match alarm["action"]:
        case "sideline" | "suspend":
            entry = [o for o in suspended if o["reason"].startswith(f"{alarm['name']}:")]
            if entry:
                return f"{entry[0]['arm']} was set aside until round {entry[0]['until']}"
            ending = "" if ran_on else "; no round came after"
            return f"{alarm['arm']} was to be set aside{ending}"
        case "pause" | "stop" if strategy.get("paused"):
            return f"the strategy stopped before {strategy['paused'].partition(':')[0]}"
        case "pause" | "stop":
            return "asked to stop; the run was continued" if ran_on else "no round came after"
        case _:
            return f"a warning: {'the run went on' if ran_on else 'no round came after'}"

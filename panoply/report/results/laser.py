"""Sections about LASeR: what policies came to, and how the bandit chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from panoply.config.laser import FIXED, LASER_VERIFIED, ORACLE
from panoply.report.section import (
    Block,
    Column,
    Curve,
    Curves,
    Fold,
    KeyFigure,
    Metrics,
    Row,
    Section,
    Table,
    count,
    defined,
    falling,
    interval,
    number,
    rows_of,
    short,
    side,
    signed,
    signed_interval,
)
from panoply.report.section import differences as differences_table

Rounds: TypeAlias = Sequence[Metrics]

QUALITY = "right responses"
CURVES = (
    ("Uncertainty", "entropy of the choice", "uncertainty"),
    ("Regret", "reward lost so far", "regret"),
    ("Disagreement", "share of pairs that arms order differently", "disagreement"),
)
"""Title, measure and key of what the log of a bandit shows by round."""


def verdict(metrics: Metrics) -> str:
    """Returns how the first strategy changed its policy, beside the best other; '' if unknown."""
    strategies: Mapping[str, Metrics] = metrics.get("strategies", {})
    if not any(defined([entry.get("gain")]) for entry in list(strategies.values())[:1]):
        return ""
    name, first = next(iter(strategies.items()))
    changes = {"above": "rose", "below": "fell", "around": "cannot be told to have changed"}
    change = changes[side(first["gain_ci95"])]
    gain = f"{signed(first['gain'])} {signed_interval(first['gain_ci95'])}"
    sentence = (
        f"With {name} the share of right responses to held-out prompts {change}: "
        f"{number(first['before'])} before, {number(first['after'])} after, {gain}."
    )
    compared = metrics.get("differences", {})
    # What is told by the verifier is a bound, no rival.
    rivals = [n for n in strategies if n not in (name, LASER_VERIFIED, ORACLE)]
    rivals = [n for n in rivals if f"{name} - {n}" in compared]
    if not rivals:
        return sentence
    rival = min(rivals, key=lambda n: falling(strategies[n].get("after")))
    entry = compared[f"{name} - {rival}"]
    outcomes = {"above": "beats", "below": "loses to", "around": "cannot be told apart from"}
    difference = f"{signed(entry['value'])} {signed_interval(entry['ci95'])}"
    outcome = outcomes[side(entry["ci95"])]
    return f"{sentence} It {outcome} the best of the others, {rival}: {difference}."


def key_figures(metrics: Metrics) -> list[KeyFigure]:
    """Returns quality, cost and largest share of the first strategy."""
    strategies: Mapping[str, Metrics] = metrics.get("strategies", {})
    if not strategies:
        return []
    name, first = next(iter(strategies.items()))
    shown: list[KeyFigure] = []
    if defined([first.get("after")]):
        note = f"right responses to held-out prompts with {name}; {number(first['before'])} before"
        shown.append(KeyFigure("Held-out quality", number(first["after"]), note))
    note = f"responses that arms scored for {name}"
    if len(strategies) > 1:
        most = max(entry["num_scored"] for entry in strategies.values())
        note += f"; the most that a strategy took is {count(most)}"
    shown.append(KeyFigure("Scores paid", count(first["num_scored"]), note))
    shares: Metrics = metrics.get("choices", {}).get(name, {}).get("shares", {})
    measured = {arm: share for arm, share in shares.items() if defined([share])}
    if measured:
        arm = max(measured, key=lambda name: measured[name])
        note = f"of the prompts went to {arm}, the arm that was chosen most"
        shown.append(KeyFigure("Largest share", short(measured[arm]), note))
    return shown


def outcomes(strategies: Mapping[str, Metrics], differences: Mapping[str, Metrics]) -> Section:
    """Returns quality before and after by strategy, what scores cost, and paired differences."""
    paused = {name: entry["paused"] for name, entry in strategies.items() if entry["paused"]}
    stopped = [f"{name} stopped early: {reason}." for name, reason in paused.items()]
    note = (
        "Every strategy trained a policy of its own on the same prompts, with the same number of "
        "samples and updates; what differs is who ranks the samples. Right is what the verifier "
        "says of responses to prompts that no policy was trained on. The dashed line is the policy "
        "before training, intervals are over prompts."
    )
    title = "Differences on the same held-out prompts, after all rounds"
    compared = differences_table(title, QUALITY, differences)
    blocks = [_held_out(strategies), _before_and_after(strategies), compared, _pickers(strategies)]
    return Section("strategies", "What the policies came to", note, [*stopped, *blocks])


def _held_out(strategies: Mapping[str, Metrics]) -> Curves:
    """Returns held-out quality of each policy by the rounds before it."""
    curves: list[Curve] = []
    for name, entry in strategies.items():
        by_round: Metrics = entry.get("held_out", {})
        style = "dashed" if curves else "solid"
        curves.append(Curve(name, list(map(int, by_round)), list(by_round.values()), style))
    origin = _first(entry.get("before") for entry in strategies.values())
    return Curves("Held-out quality", "rounds", QUALITY, curves, origin=origin, file="held_out")


def _before_and_after(strategies: Mapping[str, Metrics]) -> Table:
    columns = [
        Column("before", mark="before"),
        Column("after", mark="after"),
        Column("gain", signed),
        Column("95 %", signed_interval, key="gain_ci95"),
        Column("rounds", count),
        Column("scores paid", count, key="num_scored"),
    ]
    title = "Right responses to held-out prompts, before and after"
    rows = rows_of(strategies, columns, list(strategies)[:1])
    origin = _first(entry.get("before") for entry in strategies.values())
    return Table(title, "strategy", columns, rows, measure=QUALITY, origin=origin)


def _pickers(strategies: Mapping[str, Metrics]) -> Table:
    """Returns how often the best of a prompt's samples is right, by who calls it the best."""
    picked = {n: entry["best_of_n"] for n, entry in strategies.items() if "best_of_n" in entry}
    first: Metrics = next(iter(picked.values()), {})
    rows: list[Row] = []
    for who in first:
        after = [entry[who]["after"] for entry in picked.values()]
        if defined([first[who].get("before"), *after]):
            rows.append(Row(who, [first[who].get("before"), *after]))
    names = ["before", *(f"after {name}" for name in picked)]
    columns = [Column(name, heat=(0.0, 1.0)) for name in names]
    title = "Right choices among the samples of a held-out prompt"
    return Table(title, "who picks", columns, rows, on="page")


def choosers(choices: Iterable[str]) -> list[str]:
    """Returns the strategies that chose among arms."""
    return [name for name in choices if not name.startswith(FIXED)]


def chief_of(choices: Mapping[str, Metrics]) -> str:
    """Returns the strategy that a run is about: the first that chose among arms."""
    return (choosers(choices) or list(choices))[0]


def shares(choices: Mapping[str, Metrics], history: Mapping[str, Rounds]) -> Section:
    """Returns how often each arm was chosen: by strategy, by round and by source."""
    blocks: list[Block] = []
    if len(choices) > 1:
        arms = list(next(iter(choices.values()))["shares"])
        rows = [Row(name, list(entry["shares"].values())) for name, entry in choices.items()]
        title = "Share of the prompts that got each arm"
        blocks.append(_share_table(title, "strategy", arms, rows))
    chief = chief_of(choices)
    blocks += _shares_of(chief, choices[chief], history.get(chief, ()), file="shares")
    for name in choosers(choices):
        if name != chief:
            blocks.append(Fold(name, _shares_of(name, choices[name], history.get(name, ()))))
    note = "An arm is a reward model; it ranks the samples of the prompts that it is chosen for."
    return Section("choices", "Which arms were chosen", note, blocks)


def _shares_of(name: str, choice: Metrics, rounds: Rounds, file: str = "") -> list[Block]:
    arms = list(choice["shares"])
    by_round = Curves(
        f"Share of each arm, by round ({name})",
        "round",
        "share of the prompts",
        [_curve(arm, rounds, f"share/{arm}") for arm in arms],
        stacked=True,
        events=[(alarm["round"], alarm["name"]) for alarm in choice["alarms"]],
        file=file,
    )
    rows = [Row("all", [choice["shares"][arm] for arm in arms], "strong")]
    for source, entry in choice["shares_by_source"].items():
        rows.append(Row(source, [entry[arm] for arm in arms]))
    title = f"Share of each arm, by source ({name})"
    return [by_round, _share_table(title, "source", arms, rows)]


def _share_table(title: str, first: str, arms: Sequence[str], rows: Sequence[Row]) -> Table:
    columns = [Column(arm, short, heat=(0.0, 1.0)) for arm in arms]
    return Table(title, first, columns, rows)


def learning(choices: Mapping[str, Metrics], history: Mapping[str, Rounds]) -> Section:
    """Returns the curves of the bandits' logs; what was not measured is left out."""
    chosen = {name: history[name] for name in choices if name in history}
    blocks: list[Block] = []
    for title, measure, key in CURVES:
        curves = [_curve(name, rows, key) for name, rows in chosen.items()]
        blocks.append(Curves(title, "round", measure, curves))
    for name in choosers(chosen)[:1]:
        errors = [_curve(arm, chosen[name], f"error/{arm}") for arm in choices[name]["shares"]]
        title, measure = f"How well {name} knows each arm", "standard error of its mean reward"
        blocks.append(Curves(title, "round", measure, errors))
    note = (
        "Uncertainty is 1 where all arms were as likely and 0 where chance had no part in the "
        "choice, as with LinUCB, UCB1 and MOSS after their first pulls. Regret is the reward that "
        "was lost against always taking the arm with the best mean reward in the log; it falls "
        "where the bandit does better than that arm."
    )
    return Section("learning", "What the bandit knew", note, blocks, on_terminal=False)


def _curve(name: str, rounds: Rounds, key: str) -> Curve:
    return Curve(name, [row["step"] for row in rounds], [row.get(key) for row in rounds])


def off_policy(estimates: Mapping[str, Metrics]) -> Section:
    """Returns the mean reward of each bandit beside that of each arm had it always been chosen.

    Args:
        estimates: by strategy: the bandit's `mean`, its `ci95` and `num` decisions, and by name in
            `arms` the estimate's `value`, `ci95`, effective sample size `ess`, share `support` of
            the decisions that could have drawn the arm, and `bandit_value`, the bandit's mean on
            those.
    """
    blocks: list[Block] = []
    columns = [
        Column("reward", mark="dot", key="value"),
        Column("95 %", interval, "interval", key="ci95"),
        Column("bandit on the same", key="bandit_value"),
        Column("effective decisions", count, key="ess"),
        Column("support", short),
    ]
    for name, estimate in estimates.items():
        arms, mean_reward = estimate["arms"], estimate["mean"]
        order = sorted(arms, key=lambda arm: falling(arms[arm].get("value")))
        overall = {"value": mean_reward, "ci95": estimate["ci95"], "ess": estimate["num"]}
        parts = {name: overall} | {arm: arms[arm] for arm in order}
        rows = rows_of(parts, columns, (name,))
        title = f"Mean reward of {name}, and of each arm had it always been chosen"
        origin = _first([mean_reward])
        table = Table(title, "who chooses", columns, rows, measure="reward", origin=origin)
        best = [arm for arm in order if defined([arms[arm].get("value")])][:1]
        blocks += [*(_beside_best(name, arm, arms[arm]) for arm in best), table]
    note = (
        "The rewards of fixed arms are estimated from the log of the bandit by inverse "
        "propensities, normalized (SNIPS), on the decisions that could have drawn the arm. An "
        "estimate that rests on few effective decisions says little."
    )
    return Section("off-policy", "Beside the best fixed arm", note, blocks)


def _beside_best(name: str, arm: str, estimate: Metrics) -> str:
    """Returns whether a bandit was better than the best arm, by the interval of its estimate."""
    reward, ends = estimate.get("bandit_value"), estimate.get("ci95")
    outcome = "cannot be told apart from"
    if reward is not None and len(both := defined(ends or ())) == 2:
        # The arm less the bandit, whose reward was counted rather than estimated.
        where = side([end - reward for end in both])
        outcome = {"above": "did worse than", "below": "did better than"}.get(where, outcome)
    return (
        f"{name} {outcome} the best fixed arm by estimate, {arm}: {number(reward)} a decision, "
        f"{arm} {number(estimate.get('value'))} {interval(ends)}."
    )


def _first(values: Iterable[Any]) -> float:
    """Returns the first value that is defined, where a dashed line stands; 0 where none is."""
    return next(iter(defined(values)), 0.0)

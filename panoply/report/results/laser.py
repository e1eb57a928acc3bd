"""Sections about LASeR and best of n: what policies came to, and how the bandit chose."""

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
TARGETS = {
    "verifier": (
        "Signals and the verifier",
        "how well the chosen arm orders right above wrong responses",
    ),
    "held_out": ("Signals and the gain of a round", "how far the round raised held-out quality"),
}
"""Targets that signals are compared with, as a title and in words."""
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


def best_of_n(choices: Mapping[str, Mapping[str, Metrics]], routed: Mapping[str, int]) -> Section:
    """Returns right choices of a best-of-n run by the number of samples.

    Args:
        choices: by who picks and by n: `value` and `ci95`.
        routed: prompts that the bandit of a run gave to each arm; may be empty.
    """
    *smaller, most = next(iter(choices.values()))
    curves: list[Curve] = []
    rows: list[Row] = []
    for name in sorted(choices, key=lambda name: falling(choices[name][most]["value"])):
        values = [choices[name][n]["value"] for n in (*smaller, most)]
        curves.append(Curve(name, [*smaller, most], values))
        rows.append(Row(name, [*values, choices[name][most].get("ci95")]))
    origin = _first(entry.get("1", {}).get("value") for entry in choices.values())
    title = "Right choices by the number of samples"
    by_n = Curves(title, "n", "right choices", curves, origin=origin, with_numbers=False)
    columns = [Column(f"n = {n}") for n in smaller]
    columns += [Column(f"n = {most}", mark="dot"), Column("95 %", interval, "interval")]
    title, measure = f"Right choices among {most} samples, and among fewer", f"n = {most}"
    table = Table(title, "who picks", columns, rows, measure=measure, origin=origin)
    counts = [Row(arm, [num]) for arm, num in routed.items()]
    title = "Prompts that the bandit gave to each arm"
    prompts = Table(title, "arm", [Column("prompts", count)], counts, on="page")
    note = (
        "Nothing is trained: of the same samples, each arm or ensemble picks the one that it "
        "scores highest, and the verifier says whether that one is right. A smaller n takes the "
        "first of the samples. “any right” is what a perfect choice would reach. The dashed line "
        "is one sample."
    )
    return Section("best-of-n", "Best of n", note, [by_n, table, prompts])


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


def signals(choices: Mapping[str, Metrics]) -> Section:
    """Returns how each signal ranks decisions beside held-out quality and the verifier."""
    chief = chief_of(choices)
    others = [Fold(name, _signals_of(choices[name])) for name in choices if name != chief]
    note = (
        "A bandit can only be as good as what it is rewarded with. Every signal that was measured "
        f"is compared with what is wanted, over the decisions of {chief}. Intervals are over "
        "rounds; of twenty, one misses by chance."
    )
    blocks = [*_signals_of(choices[chief]), *others]
    return Section("signals", "Signals and held-out quality", note, blocks, on_terminal=False)


def _signals_of(choice: Metrics) -> list[Block]:
    blocks: list[Block] = []
    for target, correlations in choice["signals"].items():
        others = {name: entry for name, entry in correlations.items() if name != target}
        blocks.append(meaning(others, target, choice["applied"]))
        if any(defined([entry.get("spearman")]) for entry in others.values()):
            blocks.append(signal_table(others, target, choice["applied"]))
    return blocks


def signal_table(correlations: Mapping[str, Metrics], target: str, applied: str) -> Table:
    """Returns the correlation of each signal with a target, best first.

    Args:
        correlations: by signal, without the target itself.
        target: one of TARGETS.
        applied: the signal that the bandit was rewarded with.
    """
    order = sorted(correlations, key=lambda name: falling(correlations[name].get("spearman")))
    rows: list[Row] = []
    for name in order:
        entry = correlations[name]
        notes = ["applied"] if name == applied else []
        notes += [reason] if (reason := why_undefined(entry)) else []
        style = "strong" if name == applied else "dim" if reason else ""
        cells = [entry.get("spearman"), entry.get("ci95"), entry.get("n")]
        rows.append(Row(name, cells, style, ", ".join(notes)))
    columns = [
        Column("value", short, "dot"),
        Column("95 %", signed_interval, "interval"),
        Column("n", count),
    ]
    title, ends = TARGETS[target][0], (-1.0, 1.0)
    return Table(title, "signal", columns, rows, measure="Spearman", ends=ends)


def why_undefined(correlation: Metrics) -> str:
    """Returns why a signal has no correlation; '' where it has one."""
    if defined([correlation.get("spearman")]):
        return ""
    return "does not vary" if correlation.get("n") else "not measured"


def meaning(correlations: Mapping[str, Metrics], target: str, applied: str) -> str:
    """Returns in plain words what the correlations with a target say.

    Args:
        correlations: by signal, without the target itself.
        target: one of TARGETS.
        applied: the signal that the bandit was rewarded with.
    """
    what = TARGETS[target][1]
    varied = {name: entry for name, entry in correlations.items() if not why_undefined(entry)}
    if not varied:
        if any(entry.get("n") for entry in correlations.values()):
            return f"No signal can be compared with {what}: one of the two never varied."
        return f"No signal can be compared with {what}: it was not measured together with any."
    sides = {name: side(entry.get("ci95")) for name, entry in varied.items()}
    sentences: list[str] = []
    if applied == target:
        sentences.append("This is what the bandit was rewarded with.")
    if applied in correlations:
        outcome = _meaning_of_applied(correlations[applied], what)
        sentences.append(f"The bandit was rewarded with {applied}, {outcome}")
    for direction, verb in (("above", "with"), ("below", "against")):
        names = [n for n, where in sides.items() if where == direction and n != applied]
        if names:
            goes = "goes" if len(names) == 1 else "go"
            object_ = "it" if applied in correlations else what
            sentences.append(f"{' and '.join(names)} {goes} {verb} {object_}.")
    if set(sides.values()) == {"around"}:
        sentences.append("No signal can be told from chance: every interval holds 0.")
    return " ".join(sentences)


def _meaning_of_applied(correlation: Metrics, what: str) -> str:
    if reason := why_undefined(correlation):
        return f"which has no correlation with {what} here ({reason})."
    match side(correlation.get("ci95")):
        case "above":
            return f"which goes with {what}: to chase the one is to chase the other."
        case "below":
            return f"which goes against {what}: what it chases is not what is wanted."
        case "around":
            n = count(correlation.get("n"))
            return f"of which {n} decisions cannot tell if it goes with {what}."


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


def _first(values: Iterable[Any]) -> float:
    """Returns the first value that is defined, where a dashed line stands; 0 where none is."""
    return next(iter(defined(values)), 0.0)

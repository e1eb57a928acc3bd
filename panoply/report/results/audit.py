"""Sections about an audit of pairs: findings, voters, planted flips, and the effect of cleaning."""

from __future__ import annotations

from panoply.report.section import (
    Block,
    Column,
    Fold,
    Metrics,
    Mistake,
    Row,
    Section,
    ShownTurn,
    Table,
    count,
    differences,
    number,
    rows_of,
    short,
    words,
)

NOTE = (
    "Proposals, not verdicts: the audited files stay as they are. Evidence of each row is in "
    "findings.parquet, the proposed labels and weights in clean.parquet, and review.html shows the "
    "pairs to a person without their labels."
)


def verdict(metrics: Metrics) -> str:
    """Returns how many labels are proposed to be changed, and how many of them may be right."""
    result: Metrics = metrics.get("audit", {})
    if not result:
        return ""
    share = result["max_false"]
    sizes = f"{count(result['suspect'])} of {count(result['num_pairs'])} labels"
    if share is None:
        remark = "how many of these are right is not known without trusted pairs"
    else:
        remark = (
            f"at most {share:.0%} of these are expected to be right, if the trusted pairs are like "
            "the others"
        )
    return f"Votes propose to change {sizes}; {remark}."


def audited(result: Metrics) -> list[Section]:
    """Returns findings, voters, planted flips where there are, and the effect where it was tested.

    Args:
        result: `audit` of `metrics.json`.
    """
    sections = [_findings(result)]
    if result["voters"]:
        sections.append(_voters(result))
    if planted := result.get("planted"):
        sections.append(_planted(planted))
    if effect := result.get("effect"):
        sections.append(_effect(effect))
    return sections


def examples(by_check: Metrics) -> Section:
    """Returns some pairs of each check with their evidence.

    Args:
        by_check: `examples.json`.
    """
    blocks: list[Block] = []
    for check, pairs in by_check.items():
        shown = [_example(pair) for pair in pairs]
        blocks.append(Fold(f"{words(check)}: {count(len(shown))} of its pairs", shown))
    note = "Some pairs of each check; of votes those that the voters agree on most."
    return Section("examples", "Examples", note, blocks, on_terminal=False)


def _example(pair: Metrics) -> Mistake:
    place = "/".join(filter(None, (pair["source"], pair["subset"])))
    return Mistake(
        title=f"{pair['action']}: row {pair['row_id']}",
        source=f"{place}; {pair['evidence']}",
        prompt=[ShownTurn(turn["role"], turn["content"]) for turn in pair["prompt"]],
        chosen=pair["chosen"],
        rejected=pair["rejected"],
        lengths=(pair["chosen_length"], pair["rejected_length"]),
        drivers=Table("", "", [], []),
        about_rejected="",
    )


def _findings(result: Metrics) -> Section:
    actions = ("drop", "flip", "soften", "look")
    rows: list[Row] = []
    for check, counts in result["checks"].items():
        rows.append(Row(words(check), [counts.get(action, 0) for action in actions]))
    title = f"Rows by check and proposed action, of {count(result['num_pairs'])} pairs"
    columns = [Column(action, count) for action in actions]
    blocks: list[Block] = [Table(title, "check", columns, rows)]
    changes: Metrics = result["proposed"]
    sizes = ", ".join(f"{count(changes[action])} {action}" for action in actions)
    blocks.append(f"Rows by their strongest proposal: {sizes}.")
    if quarantined := result["quarantined"]:
        reasons = [Row(reason, [number]) for reason, number in quarantined.items()]
        title = "Rows that are no pairs, in quarantine"
        blocks.append(Table(title, "reason", [Column("rows", count)], reasons))
    if reviewed := result.get("reviewed"):
        blocks.append(
            f"Persons judged {count(reviewed['rows'])} rows: {count(reviewed['chosen'])} as "
            f"labeled, {count(reviewed['rejected'])} the other way round, "
            f"{count(reviewed['neither'])} neither."
        )
    return Section("findings", "Findings", NOTE, blocks)


def _voters(result: Metrics) -> Section:
    keys = ("votes", "seen", "missing", "accuracy", "accuracy_cleaned", "accuracy_trusted", "cost")
    rows: list[Row] = []
    for name, entry in result["voters"].items():
        cells = [*(entry.get(key) for key in keys), entry.get("reason", "")]
        rows.append(Row(name, cells))
    columns = [
        *(Column(name, count) for name in ("votes", "seen", "missing")),
        Column("accuracy"),
        Column("cleaned by others"),
        Column("trusted pairs"),
        Column("cost", lambda value: number(value, 4)),
        Column("most frequent reason", str),
    ]
    note = (
        "Seen prompts were in a model's training, which therefore has no vote on them. No voter is "
        "judged on labels that it helped to set: 'cleaned by others' are those that the other "
        "voters leave, and the trusted pairs that test set neither scales nor thresholds."
    )
    title = "Share of labels that each voter agrees with"
    return Section("voters", "Voters", note, [Table(title, "voter", columns, rows)])


def _planted(planted: Metrics) -> Section:
    columns = [
        Column("named", count, key="found"),
        Column("precision"),
        Column("recall"),
        Column("share at budget", key="at_budget"),
        Column("AUC", key="auc"),
    ]
    rows = rows_of(planted["rows"], columns, strong=("votes",))
    title = (
        f"{count(planted['flipped'])} labels were swapped on purpose; every control names as many "
        "rows as the votes do"
    )
    note = (
        "Labels that were wrong before count as right here, so that precision is a lower bound. "
        "Swapped labels that were not found are in clean.parquet, which is not for training."
    )
    return Section("planted-flips", "Planted flips", note, [Table(title, "by", columns, rows)])


def _effect(effect: Metrics) -> Section:
    columns = [
        Column("pairs", count),
        Column("accuracy"),
        Column("length-balanced", key="accuracy_length_balanced"),
        Column("share of labels changed", short, key="changed"),
    ]
    title = (
        f"Fresh heads, judged on {count(effect['num_test'])} trusted pairs; random rows are left "
        f"out in {count(effect['draws'])} draws, as many as cleaning changes"
    )
    blocks: list[Block] = [
        Table(title, "fitted on", columns, rows_of(effect["arms"], columns, strong=("cleaned",))),
        differences("Differences on the same pairs", "accuracy", effect["differences"]),
    ]
    return Section("effect", "Effect of cleaning", "", blocks)

"""Scoring rollouts again: any trainer's samples, by any scorers, and what each would have rewarded.

    rollouts -> groups (one prompt, one step) -> items by content
    for each scorer: the items that its scores lack -> Ray Data actors -> segments of scores
    scores -> who ranks whom, what each chooses, GRPO and GDPO advantages -> report

Scores are kept by the content of an item, so that a run that was killed, or gets further files or
scorers, asks only about what is missing. The report is a function of the rollouts and the scores:
`replay:OUT/scores.parquet` in place of a scorer gives the same numbers.
"""

from __future__ import annotations

from typing import Any

from panoply.config import as_dict
from panoply.config.files import names_of_columns
from panoply.config.rescore import RescoreConfig
from panoply.data.rollouts import item_id, read_rollouts_of
from panoply.data.schema import digest
from panoply.data.score_file import ScoreFolder
from panoply.files import write_json
from panoply.measure.group_report import group_report, results_of
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.secret import Keys
from workflows.cluster.kept_scores import (
    SCORERS_FILE,
    open_rescored,
    pin_scorers,
    score_missing,
)
from workflows.cluster.keys import endpoint_variables
from workflows.cluster.rescored import costs, scored_groups, write_rows
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers


@one_writer
def run_rescore(config: RescoreConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores rollouts and returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: no such scorer or file, unusable rollouts, or a folder of
            another run.
    """
    out = run_folder(config.out)
    scorers = [open_rescored(scorer, config.num_workers) for scorer in config.scorers()]
    variables = endpoint_variables(scorers)
    Keys.read(variables)
    trackers = open_trackers(config, out)
    check_folder(out, config)
    groups = read_rollouts_of(
        config.rollouts,
        names_of_columns(config.columns),
        out / "data" / "quarantine.jsonl",
        config.max_quarantine_share,
    )
    chats = [group.chat for group in groups]
    ids = [item_id(chat) for chat in chats]
    items = dict(zip(ids, chats, strict=True))
    sizes = f"{len(groups):,} groups of {sum(len(chat.responses) for chat in chats):,} responses"
    logger.info(f"rollouts: {sizes}")
    claim(out, config, {})
    pin_scorers(out / SCORERS_FILE, scorers)

    rows = sum(len(chat.responses) for chat in chats)
    data = {"rollouts": {"id": digest(*sorted(items)), "rows": rows, "files": config.rollouts}}
    with trackers.run(as_dict(config), {"method": "rescore"}, logger, data=data):
        scores = ScoreFolder(out)
        for scorer in scorers:
            score_missing(scorer, items, scores, config.num_workers, variables, logger)
        scores.seal()
        table = scored_groups(groups, ids, [scorer.name for scorer in scorers], scores)
        results = results_of(table)
        write_rows(out, groups, ids, table, results)
        report = group_report(table, results)
        for scorer in scorers:
            entry = report["scorers"][scorer.name]
            entry |= costs(scorer.name, items, scores)
            if entry["missing"]:
                logger.info(
                    f"{scorer.name}: {entry['missing']:,} responses have no score "
                    f"({entry['reason']})"
                )
        metrics = {"rescored": report, "git_commit": git_commit()}
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics

"""Scoring a board by any scorers: its own numbers, with intervals and controls beside them.

    files -> items: a prompt, right and wrong responses
    for each scorer: the items that its scores lack -> Ray Data actors -> segments of scores
    items, scores -> the board's arithmetic -> report

Scores are kept by the content of an item. The report is a function of the items and the scores:
`replay:OUT/scores.parquet` in place of a scorer gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from panoply.boards import load_board
from panoply.boards.board import Board
from panoply.boards.items import ITEMS_FILE, BoardItem, read_items, write_items
from panoply.config import as_dict
from panoply.config.board import BoardConfig
from panoply.config.files import names_of_columns
from panoply.config.serve import ServedModelConfig
from panoply.data.contamination import (
    Layout,
    find_overlaps,
    open_training,
    overlap_table,
    prompt_text,
    training_prompts,
)
from panoply.data.quarantine import Quarantine
from panoply.data.read import Input, Opened
from panoply.data.schema import digest
from panoply.data.score_file import ScoreFolder
from panoply.files import reading, whole_file, write_json, write_whole
from panoply.measure.board_report import BoardTable, board_report
from panoply.report.markdown import as_markdown
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.report.results.board import leaderboard
from panoply.scorers.where import LocalModel, RecordedScores, parse_where
from panoply.secret import Keys
from panoply.types import Array, Bools
from panoply.wire.request import Chat
from workflows.cluster.evaluated import open_evaluated
from workflows.cluster.kept_scores import SCORERS_FILE, open_rescored, pin_scorers, score_missing
from workflows.cluster.keys import endpoint_variables
from workflows.cluster.rescored import costs
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers

OVERLAPS_FILE = "overlaps.parquet"
"""File that says for each item what of its prompt stands in training files."""
TABLE_FILE = "board.md"
"""File of the leaderboard as a table for a model card."""


@one_writer
def run_board(config: BoardConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores a board and returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: no such scorer or file, files of another board, or a folder
            of another run.
    """
    out = run_folder(config.out)
    scorers = [open_rescored(scorer, config.num_workers) for scorer in config.named_scorers()]
    variables = endpoint_variables(scorers)
    Keys.read(variables)
    trackers = open_trackers(config, out)
    check_folder(out, config)
    board, training = load_board(config.board), open_training(config.training)
    items, bad = read_board(board, config, out, logger)
    chats = {item.item_id: item.chat for item in items}
    num_responses = sum(len(chat.responses) for chat in chats.values())
    logger.stage(1, 2, "score")
    claim(out, config, {})
    pin_scorers(out / SCORERS_FILE, scorers)

    data = {"items": {"id": digest(*sorted(chats)), "rows": len(items), "files": config.files}}
    tags = {"method": "board", "board": config.board}
    with trackers.run(as_dict(config), tags, logger, data=data):
        scores = ScoreFolder(out)
        for scorer in scorers:
            score_missing(scorer, chats, scores, config.num_workers, variables, logger)
        scores.seal()
        logger.stage(2, 2, "report")
        seen = {scorer.name: seen_items(scorer, items) for scorer in scorers}
        write_items(out, items, seen)
        by_scorer = {scorer.name: scores_of(scorer.name, items, scores) for scorer in scorers}
        check_scored(by_scorer, chats, scores)
        overlapping_N = overlapping_items(training, items, out)
        report = board_report(BoardTable.of(board, items), by_scorer, seen, overlapping_N)
        report |= {"quarantined": dict(bad.reasons), "ties_left_out": bad.num_ties}
        for name, entry in report["scorers"].items():
            entry |= costs(name, chats, scores)
            entry["cost_per_1000"] = _per_1000(entry["cost"], num_responses)
            if entry["missing"]:
                logger.info(f"{name}: {entry['missing']:,} items lack a score ({entry['reason']})")
        metrics = {"board": report, "git_commit": git_commit()}
        write_json(out / "metrics.json", metrics)
        write_whole(out / TABLE_FILE, as_markdown(leaderboard(report)) + "\n")
        write_report(out)
    return metrics


def read_board(
    board: Board, config: BoardConfig, out: Path, logger: RunLogger
) -> tuple[list[BoardItem], Quarantine]:
    """Returns the items and the bad rows of the board's files, and says how many there are.

    Raises:
        FileNotFoundError, ValueError: see `read_items`.
    """
    columns = names_of_columns(config.columns)
    inputs = [Input(file, columns=columns) for file in config.files]
    quarantine = out / "data" / "quarantine.jsonl"
    items, bad = read_items(board, inputs, quarantine, config.max_quarantine_share)
    num_responses = sum(len(item.chat.responses) for item in items)
    logger.info(f"{board.title}: {len(items):,} items of {num_responses:,} responses")
    if bad.reasons:
        logger.info(f"{bad.reasons.total():,} bad rows are left out: {bad.describe()}")
    return items, bad


def scores_of(name: str, items: Sequence[BoardItem], scores: ScoreFolder) -> Array:
    """Returns a scorer's scores of the responses of all items, NaN where missing."""
    num = sum(len(item.chat.responses) for item in items)
    return scores.values(name, [item.item_id for item in items], num)


def check_scored(
    by_scorer: Mapping[str, Array], chats: Mapping[str, Chat], scores: ScoreFolder
) -> None:
    """Refuses to report on nothing.

    Raises:
        ValueError: not one response has a score.
    """
    if all(np.isnan(score_T).all() for score_T in by_scorer.values()):
        reasons = [f"{name}: {costs(name, chats, scores)['reason']}" for name in by_scorer]
        raise ValueError(
            f"not one response has a score ({'; '.join(reasons)}): mend the scorers and run again "
            "with another `--out`, for what failed for good is not asked again"
        )


def seen_items(scorer: ServedModelConfig, items: Sequence[BoardItem]) -> Bools:
    """Returns the items whose prompts a scorer was trained on, as far as that is known.

    It is of models of ours, and of their scores that a run on a board recorded.
    """
    place = parse_where(scorer.where)
    if isinstance(place, LocalModel):
        keys = np.array([item.key for item in items], dtype=object)
        return open_evaluated(scorer.where).is_seen(keys)
    recorded = Path(place.file).parent / ITEMS_FILE if isinstance(place, RecordedScores) else None
    if recorded is None or not recorded.is_file():
        return np.zeros(len(items), np.bool_)
    with reading(recorded):
        rows = pq.read_table(recorded, columns=["item_id", "seen_by"]).to_pylist()
    seen = {row["item_id"] for row in rows if scorer.name in row["seen_by"]}
    return np.array([item.item_id in seen for item in items], np.bool_)


def overlapping_items(
    training: Sequence[tuple[Opened, Layout]], items: Sequence[BoardItem], out: Path
) -> Bools | None:
    """Returns the items whose prompts stand in training files; None where no file is named.

    What of each stands there is written to `OUT/overlaps.parquet`.
    """
    if not training:
        return None
    prompts = {item.item_id: prompt_text(item.chat.prompt) for item in items}
    overlaps = find_overlaps(prompts, training_prompts(training))
    with whole_file(out / OVERLAPS_FILE) as partial:
        pq.write_table(overlap_table(overlaps), partial)
    return np.array([overlaps[item.item_id].seen for item in items], np.bool_)


def _per_1000(cost: float | None, num_responses: int) -> float | None:
    return None if cost is None else 1000 * cost / num_responses

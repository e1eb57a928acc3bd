"""Margins of scorers on audited and trusted pairs, from scores that a run keeps.

Legend: `N` audited pairs and behind them trusted ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from panoply.config.audit import AuditConfig
from panoply.config.serve import ServedModelConfig
from panoply.data.rollouts import item_id
from panoply.data.score_file import ScoreFolder
from panoply.report.progress import RunLogger
from panoply.scorers.where import LocalModel, parse_where
from panoply.types import Array, Bools
from panoply.wire.request import Chat
from workflows.cluster.audited import AuditedPairs
from workflows.cluster.evaluated import open_evaluated, prompt_items
from workflows.cluster.kept_scores import score_missing
from workflows.cluster.keys import endpoint_variables
from workflows.cluster.rescored import costs


def seen_pairs(scorers: Sequence[ServedModelConfig], pairs: AuditedPairs) -> dict[str, Bools]:
    """Returns by scorer whether it was trained on the prompt `[N]`, as far as its files say.

    Raises:
        ValueError: a scorer has no vote on any audited, or on any trusted pair.
    """
    seen: dict[str, Bools] = {}
    for scorer in scorers:
        seen_N = np.zeros(len(pairs.key_N), np.bool_)
        if isinstance(parse_where(scorer.where), LocalModel):
            seen_N = open_evaluated(scorer.where).is_seen(pairs.key_N)
        for part, rows in pairs.voted.items():
            if seen_N[rows].all():
                raise ValueError(
                    f"scorer {scorer.name!r} was trained on the prompts of all {part} pairs, so it "
                    "has no vote on them: leave it out, or take pairs of other prompts"
                )
        seen[scorer.name] = seen_N
    return seen


def scorer_margins(
    config: AuditConfig,
    scorers: Sequence[ServedModelConfig],
    pairs: AuditedPairs,
    seen: Mapping[str, Bools],
    scores: ScoreFolder,
    logger: RunLogger,
) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
    """Returns margins `[N]` by scorer, and what its scores cost; asks about scores that lack.

    A margin is NaN where a score is missing, and where a model was trained on the prompt (`seen`).

    Raises:
        ValueError: a scorer has no vote on any audited, or on any trusted pair.
    """
    items: dict[str, Chat] = {}
    by_file: list[dict[str, tuple[str, int]]] = []
    for path in pairs.texts.pairs:
        chats, ids = prompt_items(Path(path))
        names, texts = iter(ids), dict[str, tuple[str, int]]()
        for chat in chats:
            item = item_id(chat)
            items[item] = chat
            for candidate in range(len(chat.responses)):
                texts[next(names)] = (item, candidate)
        by_file.append(texts)
    margins, notes = dict[str, Array](), dict[str, dict[str, Any]]()
    variables = endpoint_variables(scorers)
    for scorer in scorers:
        seen_N = seen[scorer.name]
        score_missing(scorer, items, scores, config.num_workers, variables, logger)
        margin_N = _margins(scorer.name, pairs, by_file, scores)
        num_missing = int(np.isnan(margin_N[pairs.is_audited_N]).sum())
        margin_N[seen_N] = np.nan
        margins[scorer.name] = margin_N
        num_seen = int(seen_N[pairs.is_audited_N].sum())
        notes[scorer.name] = {
            "missing": num_missing,
            "seen": num_seen,
            **costs(scorer.name, items, scores),
        }
        for part, rows in pairs.voted.items():
            if np.isnan(margin_N[rows]).all():
                scores.seal()
                reason = notes[scorer.name]["reason"] or "no reason is given"
                raise ValueError(
                    f"scorer {scorer.name!r} has both scores of none of the {part} pairs (most "
                    f"frequent reason: {reason}): mend it, or leave it out"
                )
        if num_seen:
            logger.info(
                f"{scorer.name}: trained on the prompts of {num_seen:,} pairs, on which it has no "
                "vote"
            )
        if num_missing:
            logger.info(f"{scorer.name}: {num_missing:,} pairs lack a score, so it has no vote")
    scores.seal()
    return margins, notes


def _margins(
    name: str,
    pairs: AuditedPairs,
    by_file: Sequence[Mapping[str, tuple[str, int]]],
    scores: ScoreFolder,
) -> Array:
    """Returns s(chosen) - s(rejected) `[N]`, NaN where a score is missing."""

    def value(texts: Mapping[str, tuple[str, int]], text: str) -> float:
        item, candidate = texts[text]
        score = scores.scores(name, item)[candidate]["score"]
        return float("nan") if score is None else score

    margins: list[float] = []
    sides = zip(pairs.chosen_N.tolist(), pairs.rejected_N.tolist(), strict=True)
    for row, (chosen, rejected) in enumerate(sides):
        texts = by_file[row >= len(pairs.row_ids)]
        margins.append(value(texts, chosen) - value(texts, rejected))
    return np.array(margins)

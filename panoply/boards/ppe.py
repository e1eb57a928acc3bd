"""PPE (arXiv 2410.14872): human preferences, and k samples of a problem that were verified.

    preference   = (wins + ties / 2) / n                         of the pairs that people told apart
    correctness  = mean over items of the share of pairs (right, wrong) that are ordered right,
                   a tie as half (the area under the ROC curve within the item), by domain
    lowest       = the lowest domain's, which the paper finds to go with what training reaches
    best of k    = mean over items of the share of right ones among the samples at the top

Correctness and best of k are means over the domains. An item whose samples are all right or all
wrong orders nothing and is left out, as are preferences for neither; both are counted. The paper's
pairs of a problem are a sample of those that are counted here; its other measures are not computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import numpy as np

from panoply.boards.board import Adapt, Board, Cells, Means, weighted
from panoply.boards.items import ItemPart, turns_of
from panoply.boards.scored import ScoredItems
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.types import Array

PREFERENCE = "preference"
PAIRS, BEST = ": pairs", ": best of k"
"""Ends of the names of a domain's cells."""
WINNERS = {"model_a": 0, "model_b": 1}


def adapt(columns: frozenset[str], name: str) -> Adapt | None:
    """Returns the reader of a file of preferences, or of the samples of the domain of its name."""
    if {"prompt", "response_1", "response_2", "winner"} <= columns:
        return preference_parts
    if {"prompt", "response_1", "response_2", "scores"} <= columns:
        domain = name.removeprefix("ppe-").removesuffix("-best-of-k")
        return partial(sample_parts, domain=domain)
    return None


def preference_parts(row: Row) -> Iterable[ItemPart]:
    """Returns the pair of a row; nothing for a tie."""
    winner = str(row.get("winner"))
    if winner.startswith("tie"):
        return []
    if winner not in WINNERS:
        raise BadRow("'winner' is neither model_a, model_b nor a tie")
    both = [row.get("response_1"), row.get("response_2")]
    right = {"": both.pop(WINNERS[winner])}
    return [ItemPart(PREFERENCE, turns_of(row.get("prompt")), right, {"": both[0]})]


def sample_parts(row: Row, domain: str) -> Iterable[ItemPart]:
    """Returns the samples of a row; nothing where all are right, or all wrong."""
    verdicts = row.get("scores")
    if not isinstance(verdicts, list) or not verdicts:
        raise BadRow("'scores' is no list of verdicts")
    texts: dict[bool, dict[str, object]] = {True: {}, False: {}}
    for number, verdict in enumerate(cast("list[object]", verdicts), start=1):
        if verdict not in (0, 1):
            raise BadRow("'scores' has what is neither true nor false")
        texts[bool(verdict)][f"{number:04}"] = row.get(f"response_{number}")
    if not all(texts.values()):
        return []
    return [ItemPart(domain, turns_of(row.get("prompt")), texts[True], texts[False])]


def cells(scored: ScoredItems) -> Cells:
    """Returns the credit of preferences, and of samples by domain."""
    is_preference_N = scored.subset_N == PREFERENCE
    by_name = {PREFERENCE: np.where(is_preference_N, scored.half_N(), np.nan)}
    pairs_N, best_N = _ordered_N(scored), _best_N(scored)
    for domain in sorted({str(name) for name in scored.subset_N[~is_preference_N]}):
        is_domain_N = scored.subset_N == domain
        by_name[domain + PAIRS] = np.where(is_domain_N, pairs_N, np.nan)
        by_name[domain + BEST] = np.where(is_domain_N, best_N, np.nan)
    return by_name


def _ordered_N(scored: ScoredItems) -> Array:
    """Returns the share of an item's pairs that are ordered right; NaN where a score is missing."""
    margin_NRW = scored.right_NR[:, :, None] - scored.wrong_NW[:, None, :]
    won_NRW = np.nan_to_num((np.sign(margin_NRW) + 1) / 2)
    num_N = (~np.isnan(margin_NRW)).sum(axis=(1, 2))
    share_N = won_NRW.sum(axis=(1, 2)) / np.maximum(num_N, 1)
    return np.where(scored.is_whole_N, share_N, np.nan)


def _best_N(scored: ScoredItems) -> Array:
    """Returns the share of right ones among the samples at the top."""
    top_N1 = np.fmax(scored.best_right_N, scored.best_wrong_N)[:, None]
    num_right_N = (scored.right_NR == top_N1).sum(axis=1)
    num_N = num_right_N + (scored.wrong_NW == top_N1).sum(axis=1)
    return np.where(scored.is_whole_N, num_right_N / np.maximum(num_N, 1), np.nan)


def numbers(means: Means) -> dict[str, Array]:
    """Returns preference, correctness, the lowest domain, best of k, and each domain's pairs."""
    domains = {
        name.removesuffix(PAIRS): mean_B for name, mean_B in means.items() if name.endswith(PAIRS)
    }
    best = {name: 1.0 for name in means if name.endswith(BEST)}
    nothing_B = weighted(means, {})
    lowest_B = np.fmin.reduce(list(domains.values())) if domains else nothing_B
    return {
        PREFERENCE: weighted(means, {PREFERENCE: 1.0}),
        "correctness": weighted({**domains, "": nothing_B}, dict.fromkeys(domains, 1.0)),
        "lowest": lowest_B,
        "best of k": weighted(means, best),
        **domains,
    }


BOARD = Board(
    title="PPE",
    layout="prompt, response_1, response_2 and winner (lmarena-ai/PPE-Human-Preference-V1), or "
    "scores, a verdict on each response (PPE-MATH-Best-of-K and the like)",
    adapt=adapt,
    cells=cells,
    numbers=numbers,
    note="Votes of the arena are in the training data of many reward models.",
)

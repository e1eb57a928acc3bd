"""Scorers that a trained model is compared with: the same model before its first step.

    R_0(x, y+) - R_0(x, y-)                                        untrained
    log pi_0(y+ | x) - log pi_0(y- | x)                            log_probability
    log pi_0(y+ | x) / |y+|  -  log pi_0(y- | x) / |y-|            log_probability_per_token

R_0 is the head that training begins with, and pi_0 the language model below it, where the
checkpoint is one. One forward of each pair gives all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from panoply.config.preference import PreferenceConfig
from panoply.data.schema import digest
from panoply.data.tokens import TokenPairs
from panoply.files import reading, whole_file
from panoply.hub.backbone.backbone import hash_weights
from panoply.hub.policy.trainable import load_untrained
from panoply.preference.distributed import Group
from panoply.preference.policy_outcome import margin_per_token
from panoply.preference.step import PairTree, completion_tokens, evaluate_pairs
from panoply.types import Array, Ints

FILE = "untrained.npz"
UNTRAINED, LOG_PROBABILITY = "untrained", "log_probability"
LOG_PROBABILITY_PER_TOKEN = "log_probability_per_token"
SCORERS = (UNTRAINED, LOG_PROBABILITY, LOG_PROBABILITY_PER_TOKEN)
WAY_OUT = (
    "delete it and run the same command again, which reports without these scorers; with done.json "
    "beside it deleted too, it trains again and has them"
)


def measure_untrained(
    config: PreferenceConfig,
    tokens: TokenPairs,
    rows: Ints,
    folder: Path,
    store: Path,
    group: Group,
) -> None:
    """Writes the margins of a model before training to `folder`, once; the workers share the work.

    What was computed for the same weights and pairs is taken from the store.

    Args:
        config: the run.
        tokens: trees of all pairs.
        rows: rows that are measured.
        folder: folder of the model's checkpoints and results.
        store: root of what runs share.
        group: workers of the run.
    """
    if _all_see(folder / FILE, group):
        return
    net = load_untrained(config.backbone, num_heads=config.num_heads, seed=config.seed)
    trees = [PairTree(tokens.tree(row)) for row in rows]
    stored = store / "untrained" / f"{digest(hash_weights(net), *map(str, trees))}.npz"
    if not _all_see(stored, group):
        numbers = group.shard(range(len(trees)))
        outputs = evaluate_pairs(
            net, [trees[i] for i in numbers], config.schedule.token_budget, policy=True
        )
        columns = {UNTRAINED: outputs.margin_PK.double().mean(1).numpy()}
        if net.lm_head is not None:
            assert outputs.logps_P2 is not None
            columns["logps"] = outputs.logps_P2.double().numpy()
        gathered = {n: group.gather_rows(numbers, x, len(trees)) for n, x in columns.items()}
        if group.rank == 0:
            stored.parent.mkdir(parents=True, exist_ok=True)
            _write(stored, _margins(gathered, trees))
    if group.rank == 0:
        with reading(stored), np.load(stored, allow_pickle=False) as margins:
            _write(folder / FILE, dict(margins))
    group.barrier()


def _write(path: Path, margins: Mapping[str, Array]) -> None:
    with whole_file(path) as partial:
        np.savez(partial, **margins)  # pyright: ignore[reportArgumentType]


def _all_see(path: Path, group: Group) -> bool:
    """Returns to all workers alike whether a file is there, which another run may be writing."""
    return not group.all_reduce_max(int(not path.exists()))


def _margins(columns: Mapping[str, Array], trees: Sequence[PairTree]) -> dict[str, Array]:
    """Returns the margins of each scorer, from the outputs of a forward."""
    margins = {UNTRAINED: columns[UNTRAINED]}
    if (logps_P2 := columns.get("logps")) is not None:
        margins[LOG_PROBABILITY] = logps_P2[:, 0] - logps_P2[:, 1]
        margins[LOG_PROBABILITY_PER_TOKEN] = margin_per_token(logps_P2, completion_tokens(trees))
    return margins


def read_untrained(folder: Path, rows: Ints, num_pairs: int) -> dict[str, Array]:
    """Returns the margins `[P]` of each scorer, NaN but in `rows`; none where none were written.

    Raises:
        ValueError: the file is damaged.
    """
    if not (folder / FILE).exists():
        return {}
    margins: dict[str, Array] = {}
    with reading(folder / FILE, WAY_OUT), np.load(folder / FILE, allow_pickle=False) as stored:
        for name in stored:
            margins[name] = np.full(num_pairs, np.nan)
            margins[name][rows] = stored[name]
    return margins

"""Scoring pairs with a finished reward model: texts -> trees -> scores -> metrics.

Prompts that the model was trained on are recognized by hash and left out of the headline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file

from actors.scorer import Scorer
from panoply.config import EvaluateConfig
from panoply.data.boards import StyledPairs, read_styles
from panoply.data.ingest import Limits, ingest_pairs
from panoply.data.read import Input
from panoply.data.tables import Ints, PairTable, Strings, load_pairs
from panoply.hub.artefact import Card
from panoply.measure.boards import rmbench
from panoply.measure.calibration import reliability
from workflows.cluster import connect, run_folder
from workflows.embed import Pool, Texts, into_shards, shard_rows, wanted_texts
from workflows.page.write import write_page
from workflows.progress import Watch
from workflows.report import write_plots
from workflows.scorers import compare, report_pairs, weights_by_domain
from workflows.tracking import git_commit, write_json

Array: TypeAlias = NDArray[np.float64]
SCORERS = ("gate", "uniform", "best_single", "best_fixed", "linear", "linear_bt", "mlp")


def run_evaluate(config: EvaluateConfig, watch: Watch) -> dict[str, Any]:
    """Scores pairs and returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: no such model or file, or unusable pairs.
    """
    out, folder = run_folder(config.out), Path(config.model).expanduser().absolute()
    if not (folder / "panoply.json").is_file():
        raise FileNotFoundError(
            f"{config.model!r} is no reward model folder: it has no panoply.json. "
            "A run leaves one in OUT/model"
        )
    card = Card.from_json((folder / "panoply.json").read_text())
    limits = Limits(max_rows_per_source=config.max_pairs_per_source or None)
    inputs = [Input(name) for name in config.pairs]
    styled = read_styles(inputs) if config.board == "rmbench" else None
    ingested = ingest_pairs(inputs, out / "data", limits)
    pairs = load_pairs(ingested.path, seed=card.seed, num_folds=2)
    unseen = np.flatnonzero(~is_seen(pairs.split.key_N, folder))
    watch.say(f"data: {len(pairs.gap_P):,} pairs, {len(unseen):,} of prompts not trained on")

    connect(config.num_workers)
    texts = Texts(pairs=(str(ingested.path),))
    scored = score_texts(texts, folder, config.num_workers, watch)
    margins = margins_of(pairs, scored)
    fixed = load_file(folder / "baselines.safetensors")
    scales = {name: float(fixed[f"scale.{name}"]) for name in margins}

    metrics: dict[str, Any] = {
        "model": str(folder),
        "num_pairs": len(pairs.gap_P),
        "num_seen": len(pairs.gap_P) - len(unseen),
        "quarantined": dict(ingested.num_quarantined),
    }
    # The factor to log odds is the model's: nothing is fitted on what is evaluated.
    rows = unseen if len(unseen) else np.arange(len(pairs.gap_P))
    metrics["only_seen"] = not len(unseen)
    if metrics["only_seen"]:
        watch.say("every prompt was trained on: these numbers say nothing about new prompts")
    metrics["pairs"] = report_pairs(margins, pairs, rows, scales)
    rivals = [("gate", name) for name in ("best_fixed", "linear_bt", "mlp")]
    metrics["comparisons"] = compare(margins, pairs, rows, rivals)
    if styled is not None:
        metrics["rmbench"] = report_rmbench(styled, scored, is_seen(styled.key_P, folder))
    weights_PO = scored.weights_NO[scored.rows(pairs.chosen_P)]
    metrics["gate"] = {
        "weights_by_domain": weights_by_domain(weights_PO, card.objectives, pairs.domain_P, rows)
    }
    metrics["reliability"] = {
        name: reliability(margins[name][rows] * scales[name])
        for name in ("gate", "best_fixed", "linear_bt", "mlp")
    }
    out.mkdir(parents=True, exist_ok=True)
    metrics["git_commit"] = git_commit()
    write_json(out / "config.json", asdict(config))
    write_json(out / "metrics.json", metrics)
    write_plots(metrics, out)
    write_page(out)
    return metrics


def is_seen(keys: Strings, folder: Path) -> NDArray[np.bool_]:
    """Returns which split keys the model was trained or chosen on."""
    known = np.load(folder / "seen.npy", allow_pickle=False)
    return np.isin(np.array([int(key[:16], 16) for key in keys], dtype=np.uint64), known)


@dataclass(frozen=True, slots=True)
class TextScores:
    """Scores of texts `[N]` by scorer, and the gate's weights `[N, O]` for their prompts."""

    row: Mapping[str, int]
    """Row of each text id."""
    scores: Mapping[str, Array]
    weights_NO: NDArray[np.float32]

    def rows(self, ids: Strings) -> Ints:
        """Returns the rows of some text ids."""
        return np.array([self.row[str(name)] for name in ids], dtype=np.int64)


def score_texts(texts: Texts, folder: Path, num_workers: int, watch: Watch) -> TextScores:
    """Scores every text of the files with every scorer of the model."""
    plan = into_shards(wanted_texts(texts))
    scored = Pool.of_cluster(num_workers).map(Scorer, (str(folder), 1), shard_rows(texts, plan))
    names: list[str] = []
    parts: list[dict[str, Array]] = []
    with watch.bar("scoring texts", plan.num_rows) as advance:
        for part in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            batch = cast(pa.Table, part)
            own: list[str] = batch["text_id"].to_pylist()
            names += own
            parts.append({c: as_array(batch[c]) for c in batch.column_names if c != "text_id"})
            advance(len(own))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weights_NO = columns.pop("gate_weights").astype(np.float32)
    return TextScores({name: i for i, name in enumerate(names)}, columns, weights_NO)


def as_array(column: pa.ChunkedArray) -> Array:
    """Returns a column of numbers `[N]`, or of lists of one length `[N, O]`."""
    if pa.types.is_list(column.type):
        return np.stack(column.to_numpy(zero_copy_only=False))  # pyright: ignore[reportArgumentType]
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def margins_of(pairs: PairTable, found: TextScores) -> dict[str, Array]:
    """Returns margins by scorer; per-source weights apply where the source is known, else NaN."""
    chosen, rejected = found.rows(pairs.chosen_P), found.rows(pairs.rejected_P)
    margins = {name: found.scores[name][chosen] - found.scores[name][rejected] for name in SCORERS}
    own = np.full(len(chosen), np.nan)
    for source in set(pairs.source_P):
        if (scores := found.scores.get(f"per_source.{source}")) is not None:
            rows = pairs.source_P == source
            own[rows] = scores[chosen[rows]] - scores[rejected[rows]]
    return margins | ({} if np.isnan(own).all() else {"best_fixed_per_source": own})


def report_rmbench(
    styled: StyledPairs, found: TextScores, seen_P: NDArray[np.bool_]
) -> dict[str, Any]:
    """RM-Bench's numbers of every scorer, on prompts not trained on (on all where none is left).

    A pair that was not scored, for example beyond `max_pairs_per_source`, is missing.
    """
    rows = np.flatnonzero(~seen_P) if not seen_P.all() else np.arange(len(seen_P))
    chosen, rejected = (
        np.array([found.row.get(str(name), -1) for name in ids[rows]], dtype=np.int64)
        for ids in (styled.chosen_P, styled.rejected_P)
    )
    missing = (chosen < 0) | (rejected < 0)
    columns = (styled.chosen_style_P[rows], styled.rejected_style_P[rows], styled.subset_P[rows])
    scorers = {
        name: rmbench(np.where(missing, np.nan, scores[chosen] - scores[rejected]), *columns)
        for name, scores in found.scores.items()
        if name in SCORERS
    }
    return {"num_pairs": len(seen_P), "num_seen": int(seen_P.sum()), "scorers": scorers}

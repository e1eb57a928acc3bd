"""Scoring pairs with a finished reward model: texts -> trees -> scores -> metrics.

Prompts that the model was trained on are recognized by hash and left out of the headline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from safetensors.numpy import load_file

from actors.scorer import Scorer
from panoply.config import EvaluateConfig
from panoply.data.ingest import Limits, ingest_pairs
from panoply.data.read import Input
from panoply.data.tables import PairTable, load_pairs
from panoply.hub.artefact import Card
from panoply.measure.calibration import reliability
from workflows.cluster import run_folder
from workflows.embed import SHARD_PROMPTS, Pool, Texts, prompt_trees, wanted_ids
from workflows.report import write_plots
from workflows.scorers import compare, report_pairs
from workflows.tracking import git_commit, write_json

Array: TypeAlias = NDArray[np.float64]
SCORERS = ("gate", "uniform", "best_single", "best_fixed", "linear", "linear_bt", "mlp")


def run_evaluate(config: EvaluateConfig, say: Callable[[str], None]) -> dict[str, Any]:
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
    ingested = ingest_pairs([Input(name) for name in config.pairs], out / "data", limits)
    pairs = load_pairs(ingested.path, seed=card.seed, num_folds=2)
    unseen = np.flatnonzero(~is_seen(pairs, folder))
    say(f"data: {len(pairs.gap_P):,} pairs, {len(unseen):,} of prompts not trained on")

    scores, weights = score_texts(Texts(pairs=(str(ingested.path),)), folder, config.num_workers)
    margins = margins_of(pairs, scores)
    fixed = load_file(folder / "baselines.safetensors")
    scales = {name: float(fixed[f"scale.{name}"]) for name in margins}
    say(f"scored: {len(scores):,} texts")

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
        say("every prompt was trained on: these numbers say nothing about new prompts")
    metrics["pairs"] = report_pairs(margins, pairs, rows, scales)
    rivals = [("gate", name) for name in ("best_fixed", "linear_bt", "mlp")]
    metrics["comparisons"] = compare(margins, pairs, rows, rivals)
    metrics["gate"] = {"weights_by_domain": mean_weights(pairs, weights, card.objectives, rows)}
    metrics["reliability"] = {
        name: reliability(margins[name][rows] * scales[name])
        for name in ("gate", "best_fixed", "linear_bt", "mlp")
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", {"config": asdict(config), "git_commit": git_commit()})
    write_json(out / "metrics.json", metrics)
    write_plots(metrics, out)
    return metrics


def is_seen(pairs: PairTable, folder: Path) -> NDArray[np.bool_]:
    """Returns which pairs have a split key that the model was trained or chosen on."""
    known = np.load(folder / "seen.npy", allow_pickle=False)
    keys = np.array([int(key[:16], 16) for key in pairs.split.key_N], dtype=np.uint64)
    return np.isin(keys, known)


def score_texts(
    texts: Texts, folder: Path, num_workers: int
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """Returns the scores of each text by scorer, and the gate's weights of each text's prompt."""
    ids, _ = wanted_ids(texts)
    pool = Pool.of_cluster(num_workers)
    scored = prompt_trees(texts, frozenset(ids)).map_batches(
        Scorer,
        fn_constructor_args=(str(folder), 1),
        batch_size=SHARD_PROMPTS,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        compute=ActorPoolStrategy(size=pool.num_actors),
    )
    scores: dict[str, dict[str, float]] = {}
    weights: dict[str, list[float]] = {}
    for row in scored.iter_rows():
        name = row.pop("text_id")
        weights[name] = list(row.pop("gate_weights"))
        scores[name] = row
    return scores, weights


def margins_of(pairs: PairTable, scores: dict[str, dict[str, float]]) -> dict[str, Array]:
    """Returns margins by scorer; per-source weights apply where the source is known, else NaN."""

    def margin(chosen: str, rejected: str, name: str) -> float:
        a, b = scores[chosen].get(name), scores[rejected].get(name)
        return float("nan") if a is None or b is None else a - b

    columns = list(zip(pairs.chosen_P, pairs.rejected_P, pairs.source_P, strict=True))
    found = {name: np.array([margin(c, r, name) for c, r, _ in columns]) for name in SCORERS}
    own = np.array([margin(str(c), str(r), f"per_source.{s}") for c, r, s in columns])
    return found | ({} if np.isnan(own).all() else {"best_fixed_per_source": own})


def mean_weights(
    pairs: PairTable,
    weights: dict[str, list[float]],
    objectives: tuple[str, ...],
    rows: NDArray[np.int64],
) -> dict[str, dict[str, float]]:
    """Returns the gate's mean weight on each objective in each domain."""
    return {
        str(domain): dict(
            zip(
                objectives,
                np.mean(
                    [weights[str(pairs.chosen_P[i])] for i in rows if pairs.domain_P[i] == domain],
                    0,
                ).tolist(),
                strict=True,
            )
        )
        for domain in sorted(set(pairs.domain_P[rows]))
    }

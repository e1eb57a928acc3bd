"""Scoring pairs with a finished reward model: texts -> trees -> scores -> metrics.

Prompts that the model was trained on are recognized by hash and left out of the headline.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
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
from panoply.data.tables import PairTable, Split, load_pairs
from panoply.hub.artefact import Card, hash_keys
from panoply.measure.calibration import reliability
from workflows.cluster import run_folder
from workflows.embed import Pool, Texts, prompt_trees, wanted_ids
from workflows.report import write_plots
from workflows.scorers import compare, report_pairs
from workflows.tracking import git_commit

Array: TypeAlias = NDArray[np.float64]
SCORERS = ("gate", "uniform", "best_single", "best_fixed", "linear", "linear_bt", "mlp")
BATCH_PROMPTS = 64


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
    told = pairs if len(unseen) else replace_split(pairs)
    rows = unseen if len(unseen) else np.arange(len(pairs.gap_P))
    metrics["only_seen"] = not len(unseen)
    metrics["pairs"] = report_pairs(margins, told, rows, scales)
    rivals = [("gate", name) for name in ("best_fixed", "linear_bt", "mlp")]
    metrics["comparisons"] = compare(margins, pairs, rows, rivals)
    metrics["gate"] = {"weights_by_domain": mean_weights(pairs, weights, card.objectives, rows)}
    metrics["reliability"] = {
        name: reliability(margins[name][rows] * scales[name])
        for name in ("gate", "best_fixed", "linear_bt", "mlp")
    }
    out.mkdir(parents=True, exist_ok=True)
    config_json = {"config": asdict(config), "git_commit": git_commit()}
    (out / "config.json").write_text(json.dumps(config_json, indent=1))
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    write_plots(metrics, out)
    return metrics

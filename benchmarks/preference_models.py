"""Models of the preference experiments: trained once, and tested on more pairs than they left over.

Legend: `P` test pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from panoply.train.config import PreferenceConfig

OUTLYING = 3.0
"""Margins beyond it are counted: over-rewarded pairs, in MORE's words."""


class Bench:
    """The pairs of one seed, and the models that are trained on them."""

    def __init__(self, config: PreferenceConfig, folder: Path) -> None:
        from workflows.comparisons import read_pairs, tokenize, training_rows
        from workflows.progress import Watch

        self.config, self.folder = config, folder
        self.found = read_pairs(config, folder / "data")
        self.tokens_path = folder / "data" / "tokens.parquet"
        tokens, _ = tokenize(config, self.found, self.tokens_path, Watch())
        self.rows, self.sources, _ = training_rows(config, self.found, tokens)
        self.source_P = self.found.table.source_P

    def task(self, name: str, config: PreferenceConfig, sources: tuple[str, ...] = ()) -> Any:
        """Returns the task of training on some of the sources, by default on all."""
        from actors.task import TrainTask

        rows = self.rows
        if sources:
            train = rows.train[np.isin(self.source_P[rows.train], sources)]
            # Numbers of sources without a gap, those trained on first.
            order = [*sources, *sorted(set(self.source_P) - set(sources))]
            number = np.array([order.index(source) for source in self.source_P])
            select = rows.select[np.isin(self.source_P[rows.select], sources)]
            rows = replace(rows, train=train, select=select, source_P=number)
        return TrainTask(
            config=config,
            pairs=rows,
            tokens=str(self.tokens_path),
            names=self.found.names,
            folder=str(self.folder / name),
            store=config.store,
        )

    def fit(self, name: str, config: PreferenceConfig, sources: tuple[str, ...] = ()) -> Any:
        """Trains a model if it is not there, and returns what it left."""
        from actors.training import DONE, run_task
        from panoply.train.group import Group
        from workflows.preference import Trained

        task, began = self.task(name, config, sources), time.perf_counter()
        if not (Path(task.folder) / DONE).exists():
            run_task(task, Group())
            print(f"{self.folder.name} {name}: {time.perf_counter() - began:.0f} s", flush=True)
        return Trained.read(Path(task.folder))

    def report(
        self, test: Test, trained: Any, sources: tuple[str, ...], calibrated_on: tuple[str, ...]
    ) -> dict[str, float]:
        """Returns metrics on *test*, the mean of the sources', raw and with a temperature."""
        return test.report(
            self.scale(trained.margin_P, calibrated_on), test.score(trained), sources
        )

    def scale(self, margin_P: Any, sources: tuple[str, ...]) -> float:
        """Returns the factor to log odds, fitted on *calibrate*."""
        from panoply.measure.calibration import fit_scale

        known = self.found.table.split.of("calibrate")
        known = known[np.isin(self.source_P[known], sources)]
        return fit_scale(margin_P[known] * self.found.signs_P[known])


class Test:
    """Pairs of the *test* part, more of them than a share of those trained on would give."""

    def __init__(
        self, config: PreferenceConfig, most: int, folder: Path, *, policy: bool = False
    ) -> None:
        from panoply.data.ingest import Limits, ingest_pairs
        from panoply.data.read import Input
        from panoply.data.tables import load_pairs
        from panoply.hub.trainable import load_trainable

        inputs = [Input(name) for name in config.pairs]
        path = ingest_pairs(inputs, folder / "test", Limits()).path
        self.table = load_pairs(path, seed=config.seed, num_folds=2)
        part = self.table.split.of("test")
        source_P = self.table.source_P[part]
        self.rows = np.concatenate([part[source_P == s][:most] for s in sorted(set(source_P))])
        self.budget = config.schedule.token_budget
        self.trainable = load_trainable(config.trunk, policy=policy)
        self.comparisons = list(self._render(path))
        self.reference_P = self._log_ratio() if policy else np.zeros(0)

    def _render(self, path: Path) -> Iterator[Any]:
        from panoply.train.step import Comparison

        table = pq.read_table(path, columns=["prompt", "chosen", "rejected"])
        for row in table.take(self.rows).to_pylist():
            sides = [row["chosen"], row["rejected"]]
            tree = self.trainable.renderer.render(row["prompt"], sides).tree
            yield Comparison(tree, inputs=self.trainable.inputs(tree).float())

    def _log_ratio(self) -> Any:
        from actors.learner import log_ratio
        from panoply.train.step import margins

        with self.trainable.autocast():
            found = margins(self.trainable.net, self.comparisons, self.budget, policy=True)
        return log_ratio(found).double().numpy()

    def score(self, trained: Any) -> Any:
        """Returns the margins `[P]` of a model that was trained."""
        return self.score_state(torch.load(trained.folder / "trained.pt", weights_only=True))

    def score_state(self, state: Mapping[str, torch.Tensor], beta: float = 0.0) -> Any:
        """Returns the margins `[P]` under some weights; with `beta` those of implicit rewards."""
        from panoply.train.step import margins

        net = self.trainable.net
        wrong = net.load_state_dict(dict(state), strict=False).unexpected_keys
        assert not wrong, wrong
        if beta:
            return beta * (self._log_ratio() - self.reference_P)
        return margins(net, self.comparisons, self.budget).margin_PK.mean(1).double().numpy()

    def report(self, scale: float, margin_P: Any, sources: tuple[str, ...]) -> dict[str, float]:
        """Returns metrics, the mean of the sources', raw and with a factor to log odds."""
        from workflows.scorers import report_pairs

        whole_P = np.full(len(self.table.source_P), np.nan)
        whole_P[self.rows] = margin_P
        rows = self.rows[np.isin(self.table.source_P[self.rows], sources)]
        margins, scales = {"raw": whole_P, "fitted": whole_P}, {"raw": 1.0, "fitted": scale}
        found = report_pairs(margins, self.table, rows, scales)
        raw, fitted = found["raw"], found["fitted"]
        return {
            "accuracy": raw["macro"]["accuracy"],
            "balanced": raw["macro"]["accuracy_length_balanced"],
            "log_loss": raw["macro"]["log_loss"],
            "log_loss_fitted": fitted["macro"]["log_loss"],
            "ece": raw["ece"],
            "ece_floor": raw["ece_floor"],
            "ece_fitted": fitted["ece"],
            "ece_fitted_floor": fitted["ece_floor"],
            "margin": float(np.mean(np.abs(whole_P[rows]))),
            "outliers": float(np.mean(np.abs(whole_P[rows]) > OUTLYING)),
            "n": float(len(rows)),
            **{
                f"balanced.{source}": own["accuracy_length_balanced"]
                for source, own in raw["per_source"].items()
            },
        }


def cost(trained: Any) -> dict[str, float]:
    """Returns tokens and seconds of training."""
    steps = trained.history
    return {
        "tokens": float(sum(step["tokens"] for step in steps)),
        "seconds": float(sum(step["seconds"] for step in steps)),
    }

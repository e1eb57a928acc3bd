"""Models of the preference experiments: trained once, and tested on more pairs than they left over.

Legend: `P` test pairs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from panoply.config import as_dict
from panoply.config.preference import PreferenceConfig
from panoply.data.schema import digest


class Bench:
    """The pairs of one seed, and the models that are trained on them."""

    def __init__(self, config: PreferenceConfig, folder: Path) -> None:
        from panoply.report.progress import RunLogger
        from workflows.cluster.prepare_pairs import read_pairs, tokenize, training_rows

        self.config, self.folder = config, folder
        self.found = read_pairs(config, folder / "data")
        self.tokens_path = folder / "data" / "tokens.parquet"
        tokens, _ = tokenize(config, self.found, self.tokens_path, RunLogger())
        rows, self.sources, _ = training_rows(config, self.found, tokens)
        # *test* has pairs of its own.
        split = self.found.table.split
        scored = np.union1d(split.of("select"), split.of("calibrate"))
        self.rows = replace(rows, scored=scored)
        self.alike_P = tokens.alike()
        """Pairs whose responses are the same once cut."""
        self.source_P = self.found.table.source_P

    def task(self, name: str, config: PreferenceConfig, sources: tuple[str, ...] = ()) -> Any:
        """Returns the task of training on some of the sources, by default on all."""
        from actors.reward_trainer import TrainTask

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

    def fit(
        self,
        name: str,
        config: PreferenceConfig,
        sources: tuple[str, ...] = (),
        reference: Path | None = None,
    ) -> Any:
        """Trains a model if it is not there, and returns what it left.

        Args:
            name: of its folder.
            config: what it is.
            sources: trained on; by default all.
            reference: what DPO's reference says of these pairs, where another model left it.

        Raises:
            ValueError: the folder holds a model of another configuration.
        """
        from actors.reward_trainer import RewardTrainer
        from actors.training_loop import DONE
        from panoply.preference.distributed import Group
        from workflows.cluster.preference_results import TrainedRun
        from workflows.cluster.run_folder import check_or_write

        task, began = self.task(name, config, sources), time.perf_counter()
        check_or_write(Path(task.folder) / "config.json", as_dict(config))
        if reference:
            shutil.copyfile(reference, Path(task.folder) / reference.name)
        if not (Path(task.folder) / DONE).exists():
            RewardTrainer(task, Group()).run()
            print(f"{self.folder.name} {name}: {time.perf_counter() - began:.0f} s", flush=True)
        return TrainedRun.read(Path(task.folder))

    def scale(self, margin_P: Any, sources: tuple[str, ...]) -> float:
        """Returns the factor to log odds, fitted on *calibrate*."""
        from panoply.measure.calibration import fit_scale

        known = self.calibrate(sources)
        return fit_scale(margin_P[known] * self.found.signs_P[known])

    def calibrate(self, sources: tuple[str, ...]) -> Any:
        """Returns the rows of *calibrate* of some sources."""
        known = self.found.table.split.of("calibrate")
        return known[np.isin(self.source_P[known], sources)]


class Test:
    """Pairs of the *test* part, more of them than a share of those trained on would give.

    Margins are kept beside a model's weights; what scores is loaded when it is first needed.
    """

    def __init__(
        self,
        config: PreferenceConfig,
        most: Mapping[str, int],
        folder: Path,
        *,
        policy: bool = False,
    ) -> None:
        from panoply.data.ingest import IngestLimits, ingest_pairs
        from panoply.data.read import Input
        from panoply.data.tables import load_pairs

        self.config, self.policy = config, policy
        inputs = [Input(name) for name in config.pairs]
        self.path = ingest_pairs(inputs, folder, IngestLimits()).path
        self.table = load_pairs(self.path, seed=config.seed, num_folds=2)
        part = self.table.split.of("test")
        source_P = self.table.source_P[part]
        self.rows = np.concatenate([part[source_P == s][:n] for s, n in sorted(most.items())])
        ids = (*self.table.chosen_P[self.rows], *self.table.rejected_P[self.rows])
        self.name = f"test-{digest(*ids)[:8]}.npy"

    def score(self, folder: Path, beta: float = 0.0) -> Any:
        """Returns the margins `[P]` of a trained model; with `beta` those of implicit rewards."""
        path = folder / self.name
        if not path.exists():
            state = torch.load(folder / "trained.pt", weights_only=True)
            np.save(path, self._margins(state, beta), allow_pickle=False)
        return np.load(path, allow_pickle=False)

    def _margins(self, state: Mapping[str, torch.Tensor], beta: float) -> Any:
        from panoply.preference.step import evaluate_pairs

        # Before the first weights are loaded: those of the reference.
        reference_P = self.reference_P if self.policy else 0.0
        net = self.trainable.net
        wrong = net.load_state_dict(dict(state), strict=False).unexpected_keys
        assert not wrong, wrong
        if beta:
            return beta * (self._log_ratio() - reference_P)
        budget = self.config.schedule.token_budget
        return evaluate_pairs(net, self.comparisons, budget).margin_PK.mean(1).double().numpy()

    @cached_property
    def trainable(self) -> Any:
        """The network that weights are loaded into."""
        from panoply.hub.policy.trainable import load_trainable

        return load_trainable(self.config.backbone, policy=self.policy)

    @cached_property
    def comparisons(self) -> list[Any]:
        """The pairs' trees with what goes into the trained part, float32."""
        from panoply.preference.step import PairTree

        table = pq.read_table(self.path, columns=["prompt", "chosen", "rejected"])
        found: list[Any] = []
        for row in table.take(self.rows).to_pylist():
            sides = [row["chosen"], row["rejected"]]
            tree = self.trainable.renderer.render(row["prompt"], sides).tree
            found.append(
                PairTree(tree, cached_activations=self.trainable.prefix_activations(tree).float())
            )
        return found

    @cached_property
    def reference_P(self) -> Any:
        """Log-probability ratio of each pair under the weights as they are."""
        return self._log_ratio()

    def _log_ratio(self) -> Any:
        from panoply.preference.step import evaluate_pairs

        budget = self.config.schedule.token_budget
        with self.trainable.autocast():
            found = evaluate_pairs(self.trainable.net, self.comparisons, budget, policy=True)
        return found.log_ratio_P.double().numpy()


def cost(trained: Any) -> dict[str, float]:
    """Returns tokens and seconds of training."""
    steps = trained.history
    return {
        "tokens": float(sum(step["tokens"] for step in steps)),
        "seconds": float(sum(step["seconds"] for step in steps)),
    }

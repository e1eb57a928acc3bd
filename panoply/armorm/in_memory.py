"""ArmoRM (arXiv 2406.12845) in one process, on features in memory: no Ray, no language model.

`workflows.armorm` takes the same steps by the same functions, and distributes them.

Shapes: N rated responses, P pairs, B responses to score, O objectives, F response features,
D gate features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from panoply.armorm.baselines import gate_weights
from panoply.armorm.debias import length_penalties
from panoply.armorm.gated_head import assemble_head
from panoply.armorm.head_training import GateExamples, train_head
from panoply.armorm.out_of_fold import (
    Objectives,
    check_learnable,
    fit_rows,
    rating_units,
    training_folds,
)
from panoply.armorm.pair_features import PairFeatures, predict_pairs
from panoply.config.armorm import GateConfig, ObjectivesConfig
from panoply.data.tables import Split
from panoply.files import whole_file
from panoply.measure.calibration import fit_scale
from panoply.model.gate import make_gate
from panoply.model.reward_model import GatedHead
from panoply.types import Array, Floats, Ints


@dataclass(frozen=True, slots=True)
class RatedResponses:
    """Responses with ratings."""

    features_NF: Floats
    ratings_NO: Array
    """In one scale per objective, for example [0, 1]; NaN where an objective is not rated."""
    length_N: Ints
    """Characters."""
    prompts: Sequence[str]
    """Prompt of each row, or any name of it: rows of one prompt fall into one part and fold."""


@dataclass(frozen=True, slots=True)
class ComparedResponses:
    """Pairs of responses, one of them chosen."""

    chosen_PF: Floats
    rejected_PF: Floats
    gate_PD: Floats
    """Features of the prompts."""
    chosen_length_P: Ints
    rejected_length_P: Ints
    prompts: Sequence[str]
    """Prompt of each pair, named as in the ratings."""


@dataclass(frozen=True, slots=True)
class ArmoRM:
    """A fitted ArmoRM: features in, scores out.

    `head` gives all that a score is made of: `head(features_BF, gate_BD)` takes tensors and returns
    objective values, predicted length, gate weights and scores.
    """

    objectives: tuple[str, ...]
    head: GatedHead
    gate: GateConfig
    temperature: float
    """Score differences divided by it are log odds."""

    @torch.inference_mode()
    def score(self, features_BF: Floats, gate_BD: Floats) -> Floats:
        """Returns the scores `[B]` of responses.

        Args:
            features_BF: of the responses.
            gate_BD: of the prompt of each response.
        """
        features = torch.as_tensor(features_BF, dtype=torch.float32)
        return self.head(features, torch.as_tensor(gate_BD, dtype=torch.float32)).score_B.numpy()

    def save(self, file: Path) -> None:
        """Writes the model as one `.npz`, whole or not at all."""
        about = {
            "objectives": self.objectives,
            "gate": asdict(self.gate),
            "temperature": self.temperature,
        }
        arrays = {name: tensor.numpy() for name, tensor in self.head.state_dict().items()}
        with whole_file(file) as partial:
            np.savez(partial, allow_pickle=False, about=json.dumps(about), **arrays)

    @classmethod
    def load(cls, file: Path) -> ArmoRM:
        """Reads what `save` wrote."""
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            tensors = {n: torch.from_numpy(stored[n]) for n in stored.files if n != "about"}
        objectives, config = tuple(about["objectives"]), GateConfig(**about["gate"])
        gate = make_gate(len(tensors["gate.shift"]), len(objectives), config)
        head = GatedHead(len(objectives), tensors["weight"].shape[1], gate)
        head.load_state_dict(tensors)
        head.eval().requires_grad_(False)
        return cls(objectives, head, config, about["temperature"])


def fit(
    rated: RatedResponses,
    compared: ComparedResponses,
    names: Sequence[str] = (),
    *,
    objectives: ObjectivesConfig | None = None,
    gate: GateConfig | None = None,
    seed: int = 0,
) -> ArmoRM:
    """Fits an ArmoRM on features of any frozen language model.

    The same steps as `workflows.armorm`: a ridge per objective, objective values of the pairs out
    of fold, length taken out, the gate, its temperature. The part of a row is a function of `seed`
    and its prompt: 70 % train, 10 % each select, calibrate and test; rows of *test* are not used.

        import numpy as np
        from panoply.armorm import ComparedResponses, RatedResponses, fit

        rng = np.random.default_rng(0)
        x = rng.normal(size=(3, 600, 16)).astype(np.float32)  # rated, first, second
        ratings = x[0] @ rng.normal(size=(16, 2))             # two objectives
        prompts = rng.normal(size=(600, 8)).astype(np.float32)
        keys = [f"prompt {i}" for i in range(600)]
        first_wins = x[1, :, 0] > x[2, :, 0]
        chosen = np.where(first_wins[:, None], x[1], x[2])
        rejected = np.where(first_wins[:, None], x[2], x[1])
        length = rng.integers(20, 900, size=(3, 600))
        model = fit(
            RatedResponses(x[0], ratings, length[0], keys),
            ComparedResponses(chosen, rejected, prompts, length[1], length[2], keys),
            ["helpful", "concise"],
        )
        model.score(x[1], prompts)                            # [600]

    Args:
        rated: responses with ratings.
        compared: pairs of responses.
        names: of the objectives; none: "0", "1", ...
        objectives: folds, strengths, and the objective that is taken as length; None: defaults.
        gate: size and training of the gate; None: defaults.
        seed: moves the split and the initialization.

    Raises:
        ValueError: shapes that disagree, features that are not finite, or a part without a row.
    """
    objectives, gate = objectives or ObjectivesConfig(), gate or GateConfig()
    names = tuple(names) or tuple(map(str, range(rated.ratings_NO.shape[1])))
    check_learnable(names, objectives.verbosity)
    _check_shapes(rated, compared, len(names))
    ratings_split = Split.make(rated.prompts, seed, objectives.num_folds)
    split = Split.make(compared.prompts, seed, objectives.num_folds)
    train, select, calibrate = split.of("train"), split.of("select"), split.of("calibrate")
    for part, rows in (("train", train), ("select", select), ("calibrate", calibrate)):
        if not len(rows):
            raise ValueError(f"no pair falls into {part!r} with seed {seed}: add pairs of prompts")

    # Stage 1: r_i = w_i . f(x, y) + b_i.
    fitted = _fit_objectives(rated, compared, names, objectives, ratings_split, split)

    # r'_i = r_i / u_i - lambda_i r_v, on values that no rating of the same prompt leaked into.
    features = PairFeatures(compared.chosen_PF, compared.rejected_PF, compared.gate_PD)
    values = predict_pairs(fitted, features, split.fold_N)
    penalties = length_penalties(*values.stacked(train))
    difference_PO = values.debiased(penalties).difference()

    # Stage 2: R(x, y) = sum_i g_i(x) r'_i by the Bradley-Terry loss.
    examples = GateExamples(compared.gate_PD, difference_PO.astype(np.float32))
    module = make_gate(compared.gate_PD.shape[1], len(names), gate)
    module.load_state_dict(train_head(examples, train, select, gate, seed))
    module.eval().requires_grad_(False)
    head = assemble_head(fitted, None, penalties, module, values, train)
    margin_P = (gate_weights(module, compared.gate_PD) * difference_PO).sum(1)
    scale = fit_scale(margin_P[calibrate])
    return ArmoRM(names, head, gate, 1 / scale if scale else float("inf"))


def _fit_objectives(
    rated: RatedResponses,
    compared: ComparedResponses,
    names: tuple[str, ...],
    config: ObjectivesConfig,
    ratings_split: Split,
    split: Split,
) -> Objectives:
    """Returns a ridge for each objective, and one for the length.

    The length r_v is the objective that the settings name, or is fitted: it needs no raters and so
    learns from all responses.
    """
    fold_N, fold_P = training_folds(ratings_split), training_folds(split)
    ridges = fit_rows(rated.features_NF, rated.ratings_NO, fold_N, config)
    if config.verbosity:
        length = ridges.only(names.index(config.verbosity))
    else:
        lengths = [rated.length_N, compared.chosen_length_P, compared.rejected_length_P]
        length = fit_rows(
            np.concatenate([rated.features_NF, compared.chosen_PF, compared.rejected_PF]),
            np.log1p(np.concatenate(lengths))[:, None],
            np.concatenate([fold_N, fold_P, fold_P]),
            config,
        )
    unit_O = rating_units(rated.ratings_NO[ratings_split.of("train")])
    return Objectives(names, ridges, length, unit_O)


def _check_shapes(rated: RatedResponses, compared: ComparedResponses, num_names: int) -> None:
    """Raises a ValueError that names the array whose shape disagrees."""
    num_rated, size = np.shape(rated.features_NF)
    num_pairs = len(compared.gate_PD)
    expected = {
        "ratings_NO": (np.shape(rated.ratings_NO), (num_rated, num_names)),
        "length_N": (np.shape(rated.length_N), (num_rated,)),
        "rated.prompts": ((len(rated.prompts),), (num_rated,)),
        "chosen_PF": (np.shape(compared.chosen_PF), (num_pairs, size)),
        "rejected_PF": (np.shape(compared.rejected_PF), (num_pairs, size)),
        "chosen_length_P": (np.shape(compared.chosen_length_P), (num_pairs,)),
        "rejected_length_P": (np.shape(compared.rejected_length_P), (num_pairs,)),
        "compared.prompts": ((len(compared.prompts),), (num_pairs,)),
    }
    for name, (shape, allowed) in expected.items():
        if shape != allowed:
            raise ValueError(
                f"`{name}` has shape {shape!r}; it must be {allowed!r}, as there are {num_rated} "
                f"ratings, {num_pairs} pairs, {num_names} objectives and {size} response features"
            )

"""Reward models as MLflow loads them: `mlflow.pyfunc.load_model`, `mlflow models serve`.

MLflow imports this module by the name in a model's `MLmodel` file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from panoply.hub.artefact.load import load_reward_model
from panoply.hub.reward_model import RewardModel


class PyfuncScorer:
    """Scores the rows of a table."""

    def __init__(self, model: RewardModel[Any]) -> None:
        self.model = model

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Returns a column `score`, a row for each row of the input.

        Args:
            model_input: columns `prompt`, a text or a list of messages, and `response`.
            params: MLflow's parameters of inference; there are none.
        """
        scores: list[float] = []
        for prompt, response in zip(model_input["prompt"], model_input["response"], strict=True):
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            scores.append(float(self.model.score(list(turns), [response])[0]))
        return pd.DataFrame({"score": scores}, index=model_input.index)


def _load_pyfunc(path: str) -> PyfuncScorer:  # pyright: ignore[reportUnusedFunction]
    """Loads a model; MLflow calls this by its name."""
    return PyfuncScorer(load_reward_model(path))

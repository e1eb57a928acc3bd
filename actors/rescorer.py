"""Any scorer on a worker: shards of prompts with responses in, rows of a score file out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pyarrow as pa

from panoply.config.serve import ServedModelConfig
from panoply.data.score_file import SCORES, score_rows
from panoply.hub.in_process import InProcessModel
from panoply.scorers.where import open_scorer
from panoply.secret import Keys
from panoply.wire.request import Chat


class RescoringActor:
    """Asks one scorer about the items of a shard.

    Input: a row whose `items` are JSON, see `shard_of`. Output: `panoply.data.score_file.SCORES`.
    """

    def __init__(self, config: ServedModelConfig, keys: Keys) -> None:
        keys.export()
        self.name = config.name
        self.scorer = open_scorer(config, open_model=InProcessModel)
        # Clients and locks of a scorer belong to the loop in which they were first used.
        self.runner = asyncio.Runner()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Scores one shard."""
        shard: dict[str, Any] = json.loads(batch["items"][0].as_py())
        items = [
            Chat(tuple(item["prompt"]), tuple(item["responses"]), item["label"])
            for item in shard.values()
        ]
        rows: list[dict[str, Any]] = []
        answers = self.runner.run(self.scorer.score(items))
        for item, scores in zip(shard, answers, strict=True):
            rows += score_rows(self.name, item, scores)
        return pa.Table.from_pylist(rows, SCORES)


def shard_of(items: dict[str, Chat]) -> str:
    """Returns items by their ids as JSON, as an actor takes them."""
    fields = {
        name: {"prompt": list(chat.prompt), "responses": chat.responses, "label": chat.label}
        for name, chat in items.items()
    }
    return json.dumps(fields, default=str)

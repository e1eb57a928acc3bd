"""A reward model as a scorer of this process, for what runs without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from panoply.config.serve import ServedModelConfig
from panoply.serve.calls import ReplicaRequest, each_alone
from panoply.wire.request import Chat, Detail, Item, Score

OBJECTIVES: frozenset[Detail] = frozenset({"objectives"})
"""Details that a composite passes on."""


class InProcessModel:
    """Reward model that is loaded when it is first asked, and scores in a thread, call by call."""

    def __init__(self, config: ServedModelConfig) -> None:
        """Takes the settings; nothing is loaded.

        Args:
            config: of a model whose WHERE is a folder or a hub name.
        """
        self.config = config
        self._turn = asyncio.Lock()

    @cached_property
    def _model(self) -> Any:
        # Torch loads only where something is scored.
        from panoply.hub.artefact.load import load_reward_model

        model = load_reward_model(
            self.config.where, trust_remote_code=self.config.trust_remote_code
        )
        model.prepack()
        return model

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items; those that failed as errors of their response."""
        async with self._turn:
            return await asyncio.to_thread(lambda: tuple(map(self._item, items)))

    def _item(self, item: Item) -> tuple[Score, ...]:
        """Returns the scores of an item, of one that cannot be read those of each response."""
        if isinstance(item, Chat) and not item.prompt:
            why = "a reward model scores a reply to a prompt, and none was sent"
            return (Score(error=why),) * len(item.responses)
        request = ReplicaRequest(items=(item,), bucket=0, timeout=0.0, details=OBJECTIVES)
        try:
            conversations = self._tokenizer.read(item)
            outputs = self._model.outputs(conversations)
            pairs = zip(outputs, conversations, strict=True)
            return tuple(self._model.to_score(*pair, request) for pair in pairs)
        except ValueError as error:
            if len(item.responses) == 1:
                return (Score(error=str(error)),)
        alone = [self._item(single) for single in each_alone(item)]
        return tuple(score for (score,) in alone)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._model.request_tokenizer()

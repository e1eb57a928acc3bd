"""Contexts of a served bandit: what it sees of a prompt, as its file says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import assert_never

import numpy as np

from panoply.bandit.contexts import unit_contexts
from panoply.config import Rendering
from panoply.config.served_bandit import Context, NoContext, StateContext, WordsContext
from panoply.data.schema import Message
from panoply.scorers.bandit.scorer import Contexts, NoContexts, WordContexts
from panoply.synthetic.verifiable import verifiable_prompts
from panoply.types import Array
from panoply.wire.request import Chat, Item, RenderedText

NUM_CENTER = 32
"""Synthetic prompts whose mean state is the center: a server knows none of its prompts before."""


class StateContexts:
    """Contexts of a frozen language model's states, about their mean on synthetic prompts."""

    def __init__(self, config: StateContext) -> None:
        # Torch loads only where a model is asked.
        from actors.prompt_embeddings import PromptEncoder

        rendering = Rendering(max_prompt_tokens=config.max_prompt_tokens)
        self.encoder = PromptEncoder(config.model, config.depth, rendering, config.dtype)
        examples = [example.prompt for example in verifiable_prompts(NUM_CENTER, 0)]
        self.center_D = self.encoder.states(examples).mean(0)
        self.turn = asyncio.Lock()

    async def of(self, items: Sequence[Item]) -> Array:
        """Returns the contexts `[N, 1 + D]`, each computed alone: no neighbor changes its bits."""
        async with self.turn:
            return await asyncio.to_thread(self._contexts, [_turns(item) for item in items])

    def _contexts(self, prompts: Sequence[Sequence[Message]]) -> Array:
        states = [self.encoder.states([prompt])[0] for prompt in prompts]
        return unit_contexts(np.stack(states), self.center_D)


def open_contexts(config: Context) -> Contexts:
    """Returns the contexts of a bandit's file; a model is loaded.

    Raises:
        ValueError, OSError: the model cannot be loaded.
    """
    match config:
        case NoContext():
            return NoContexts()
        case WordsContext():
            return WordContexts(config.size)
        case StateContext():
            return StateContexts(config)
        case _:
            assert_never(config)


def num_features(config: Context) -> int:
    """Returns the numbers in a context; no weights are loaded.

    Raises:
        ValueError, OSError: there is no such model.
    """
    match config:
        case NoContext():
            return 0
        case WordsContext():
            return 1 + config.size
        case StateContext():
            from panoply.hub.backbone.pretrained import state_size

            return 1 + state_size(config.model)
        case _:
            assert_never(config)


def _turns(item: Item) -> Sequence[Message]:
    """Returns the turns of a prompt; a rendered one is the text of one turn."""
    match item:
        case Chat(prompt=prompt) if prompt:
            return prompt
        case RenderedText():
            return ({"role": "user", "content": item.prompt},)
        case _:
            return ({"role": "user", "content": ""},)

"""Conversations that every loaded or saved model is checked on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from panoply.config import Rendering
from panoply.data.schema import Prompt
from panoply.hub.backbone.renderer import Renderer
from panoply.model.tree import TokenTree

EXAMPLE_CONVERSATIONS: tuple[tuple[Prompt, tuple[str, ...]], ...] = (
    (
        [{"role": "user", "content": "How do I boil an egg?"}],
        ("Ten minutes.", "No.", "Put it into boiling water and wait.\n\nThen cool it."),
    ),
    (
        [
            {"role": "user", "content": "Name a prime."},
            {"role": "assistant", "content": "7"},
            {"role": "user", "content": "A larger one, please: I need it for an example."},
        ],
        ("97", "There is none larger than 7, é ∑ 数.", "101 is prime, " * 8),
    ),
)
"""Prompts, each with responses."""
UNCUT = Rendering(max_prompt_tokens=2**16, max_response_tokens=2**16)


def example_trees(tokenizer: Any) -> list[TokenTree]:
    """Returns the token trees of the conversations, of which no limit cuts anything."""
    renderer = Renderer(tokenizer, UNCUT)
    return [renderer.render(prompt, responses).tree for prompt, responses in EXAMPLE_CONVERSATIONS]


def sequences(trees: Sequence[TokenTree]) -> list[tuple[int, ...]]:
    """Returns the tokens of every conversation in some trees, tree by tree."""
    rows: list[tuple[int, ...]] = []
    for tree in trees:
        rows += [tree.shared + branch.tokens for branch in tree.branches]
    return rows


def example_chats() -> list[list[dict[str, str]]]:
    """Returns the turns of each conversation."""
    chats: list[list[dict[str, str]]] = []
    for prompt, responses in EXAMPLE_CONVERSATIONS:
        turns = [dict(turn) for turn in prompt]
        chats += [[*turns, {"role": "assistant", "content": response}] for response in responses]
    return chats


def example_chat_ids(tokenizer: Any) -> list[list[int]]:
    """Returns the token ids of each conversation, as a user of transformers alone gets them."""
    chats = example_chats()
    return tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True)["input_ids"]

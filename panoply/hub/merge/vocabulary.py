"""Vocabularies united: which row of each model's embedding is of which token of the merged model.

    E[token] = the merge of all models' rows    a token that several know
             = E_1[token]                       one that the reward model alone knows, as its pad
             = E_s[token]                       one that was added to the tokenizer of s alone

Tokens are matched by their text, since the same token may have another number elsewhere. A model
that does not know a token takes part with the reward model's row. Tokens of another vocabulary
itself, which are pieces of its own way of cutting words, are left out: the tokenizer of the merged
model is the reward model's and never writes them.

Legend: `V` rows of an embedding, `D` hidden size, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SharedRows:
    """Rows of a model beside those of the reward model, for the tokens that both know."""

    here_T: Tensor
    """Rows of the model."""
    there_T: Tensor
    """Rows of the reward model, of the same tokens."""
    num_left_out: int
    """Tokens of the model that the merged one does not know."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of a merged model, and where each token's row comes from."""

    tokenizer: Any
    """The reward model's, with the tokens that it gained."""
    shared: tuple[SharedRows, ...]
    """By model behind the first."""
    gained: tuple[tuple[int, int, int], ...]
    """Of each token that the tokenizer gained: its row, the model that it is of, its row there."""
    num_rows: int
    """Rows of the merged embedding."""

    def merged(
        self,
        merge: Callable[[Sequence[Tensor]], Tensor],
        first_VD: Tensor,
        others: Sequence[Tensor],
    ) -> Tensor:
        """Returns the merged embedding `[V, D]`.

        Args:
            merge: of tensors of one shape, the reward model's first.
            first_VD: the reward model's embedding.
            others: those of the models behind it.
        """
        is_shared_V = torch.zeros(len(first_VD), dtype=torch.bool)
        aligned: list[Tensor] = [first_VD]
        for embedding_VD, rows in zip(others, self.shared, strict=True):
            placed_VD = first_VD.float().clone()
            placed_VD[rows.there_T] = embedding_VD[rows.here_T].float()
            aligned.append(placed_VD)
            is_shared_V[rows.there_T] = True
        merged_VD = torch.where(is_shared_V[:, None], merge(aligned), first_VD)
        result_VD = merged_VD.new_zeros(self.num_rows, merged_VD.shape[1])
        result_VD[: len(merged_VD)] = merged_VD
        for row, model, place in self.gained:
            result_VD[row] = others[model][place].to(result_VD.dtype)
        return result_VD


def unite(
    tokenizers: Sequence[Any], sizes: Sequence[int], *, has_base: bool = False
) -> Vocabulary | None:
    """Returns the vocabulary of all models together; None where all have the very same.

    Args:
        tokenizers: of the models, the reward model's first, which gains tokens.
        sizes: rows of their embeddings.
        has_base: whether the last model is the base of all, of which no token is gained.

    Raises:
        ValueError: a model shares no token with the reward model.
    """
    tokenizer, num_rows = tokenizers[0], sizes[0]
    tokens: dict[str, int] = tokenizer.get_vocab()
    vocabularies: list[dict[str, int]] = [each.get_vocab() for each in tokenizers[1:]]
    if len(set(sizes)) == 1 and all(vocabulary == tokens for vocabulary in vocabularies):
        return None
    added: dict[str, Any] = {}
    origins: list[tuple[int, int]] = []
    givers = tokenizers[1:-1] if has_base else tokenizers[1:]
    for model, (other, size) in enumerate(zip(givers, sizes[1:], strict=False)):
        for place, token in sorted(other.added_tokens_decoder.items()):
            if place < size and token.content not in tokens and token.content not in added:
                added[token.content] = token
                origins.append((model, place))
    tokenizer.add_tokens(list(added.values()))
    rows: list[int] = [tokenizer.convert_tokens_to_ids(text) for text in added]
    shared: list[SharedRows] = []
    for vocabulary, size in zip(vocabularies, sizes[1:], strict=True):
        both = [text for text in tokens if vocabulary.get(text, size) < size]
        both = [text for text in both if tokens[text] < num_rows]
        if not both:
            raise ValueError(
                "a model has no token of the reward model's vocabulary, so that its embedding "
                "cannot be merged: merge models of one base"
            )
        here, there = [vocabulary[text] for text in both], [tokens[text] for text in both]
        num_left_out = len(vocabulary.keys() - tokens.keys() - added.keys())
        shared.append(SharedRows(torch.tensor(here), torch.tensor(there), num_left_out))
    return Vocabulary(
        tokenizer=tokenizer,
        shared=tuple(shared),
        gained=tuple((row, *origin) for row, origin in zip(rows, origins, strict=True)),
        num_rows=1 + max([num_rows - 1, *rows]),
    )

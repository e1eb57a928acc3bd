"""Backbones: load any Hugging Face decoder, render conversations, make token trees.

A conversation is rendered once by the model's own chat template. What responses share is the
longest common prefix of the rendered *token ids*, never of separately tokenized pieces.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from panoply.config import DType, Rendering
from panoply.data.schema import Message, Prompt
from panoply.hub.backbone.attention import attend_by_trees
from panoply.hub.backbone.smollm2 import NAME, embedded_model
from panoply.hub.backbone.turns import Turns, splitting_token
from panoply.model.budget import calibrate, within_memory
from panoply.model.decoder import Decoder, find_layers
from panoply.model.forward import Features, encode, encode_plain, takes_tree_masks
from panoply.model.gather import Tokenized
from panoply.model.tree import TokenTree, common_prefix

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models, whose tokenizer has no chat template."""
DATE = "26 Jul 2024"
"""What a template that asks for today's date is told, so that a score is the same tomorrow: what
Llama 3.1's template writes where it has no clock."""
FIXED_CLOCK = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro %}}{{{{ '' }}}}"
PAD_RULE = "positions and pooling follow token lists; no pad token is ever read"


@dataclass(frozen=True, slots=True)
class RenderedTree:
    """A token tree and how much of its texts the limits cut off."""

    tree: TokenTree
    prompt_tokens_cut: int
    num_responses_cut: int
    response_tokens_cut: int
    """Of all responses together."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Where the parts of a prompt end that opens the assistant's turn, in tokens."""

    body: int
    """Tokens of the prompt without the assistant's header."""
    header: int
    """Index of the header's first token."""
    size: int
    """Tokens of the prompt with the header."""


def reads_clock(template: str) -> bool:
    """Returns whether a chat template writes the date of the day on which it renders."""
    return "strftime_now" in template and not template.startswith(FIXED_CLOCK)


class Renderer:
    """Turns a prompt and its responses into tokens."""

    def __init__(self, tokenizer: Any, rendering: Rendering) -> None:
        self.tokenizer = tokenizer
        self.rendering = rendering
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = PLAIN_TEMPLATE
        if reads_clock(tokenizer.chat_template):
            tokenizer.chat_template = FIXED_CLOCK + tokenizer.chat_template
        self.turns = Turns(tokenizer, self.text)
        self.mark = splitting_token(tokenizer, self.turns.header)
        start = tokenizer("")["input_ids"]
        self.bos = list(start[:1]) if start and start[0] == tokenizer.bos_token_id else []
        a, b = self.ids([self._text("a", "a"), self._text("a", "b")])
        self.num_closing = common_prefix(a[::-1], b[::-1])
        self.closing = tuple(a[len(a) - self.num_closing :])
        a, b = self.ids([self._text(text, None, header=False) for text in ("a", "b")])
        self.num_turn_closing = common_prefix(a[::-1], b[::-1])

    @property
    def template_hash(self) -> str:
        """Names the chat template, for artefacts and cache keys."""
        return hashlib.blake2b(self.tokenizer.chat_template.encode(), digest_size=8).hexdigest()

    def check_template(self, wanted: str, folder: Path) -> None:
        """Checks that a model's tokenizer still renders as in training.

        Raises:
            ValueError: the template has another hash than the wanted one.
        """
        if self.template_hash != wanted:
            raise ValueError(
                f"the chat template in {str(folder)!r} has hash {self.template_hash}, the model "
                f"was trained with {wanted}: restore the tokenizer files it came with"
            )

    def text(self, turns: Sequence[Mapping[str, str]], opens: bool) -> str:
        """Returns turns as the template writes them.

        Args:
            turns: role and content of each.
            opens: whether the assistant's header is to stand behind them.

        Raises:
            Exception: whatever the template raises, which means that it refuses the turns.
        """
        return self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=opens
        )

    def _text(self, prompt: str | Prompt, response: str | None, header: bool = True) -> str:
        opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        closing: list[Message] = []
        if response is not None:
            content = self.turns.without_end(response)
            closing = [{"role": "assistant", "content": content}]
        turns = [*map(dict, opening), *closing]
        asks = response is None and header
        try:
            return self.text(turns, asks)
        except Exception as error:  # whatever a template raises means: not renderable
            roles = [turn["role"] for turn in opening]
            raise ValueError(f"the chat template refuses roles {roles!r}: {error}") from error

    def ids(self, texts: Sequence[str], head: str = "") -> list[list[int]]:
        """Returns the tokens of rendered texts, BOS once.

        Args:
            texts: whole conversations, or beginnings of them.
            head: beginning of most of them, up to an assistant's header. It is tokenized once
                where the header's first token splits texts.
        """
        splits = bool(self.mark and head)
        shares = [splits and (t == head or t.startswith(head + self.mark)) for t in texts]
        rest = [t[len(head) :] if share else t for t, share in zip(texts, shares, strict=True)]
        pieces = [head if splits else "", *rest]
        first, *rows = cast(
            list[list[int]], self.tokenizer(pieces, add_special_tokens=False)["input_ids"]
        )
        whole = [first + row if share else row for row, share in zip(rows, shares, strict=True)]
        return [self.with_bos(row) for row in whole]

    def with_bos(self, ids: list[int]) -> list[int]:
        """Returns tokens with BOS in front once: many templates already write it."""
        return ids if ids[: len(self.bos)] == self.bos else self.bos + ids

    def opening(self, prompt: Prompt) -> list[int]:
        """Returns the tokens that a policy goes on from: the prompt and the assistant's header.

        Raises:
            ValueError: the template refuses the conversation.
        """
        ids = self.ids([self._text(prompt, None)])[0]
        return self.shortened(ids, max(0, len(ids) - self.rendering.max_prompt_tokens))

    def render(self, prompt: Prompt, responses: Sequence[str]) -> RenderedTree:
        """Returns the token tree of a prompt and its responses.

        Raises:
            ValueError: no response, or the template refuses the conversation (for example a
                system turn where the model knows none).
        """
        conversations = self.conversations(prompt, responses)
        shared = min(each.start for each in conversations)
        tree = TokenTree(
            shared=conversations[0].tokens[:shared],
            branches=tuple(each.branch(shared) for each in conversations),
            gate=min(each.gate for each in conversations),
        )
        cut = [each.response_tokens_cut for each in conversations]
        return RenderedTree(
            tree, conversations[0].prompt_tokens_cut, sum(size > 0 for size in cut), sum(cut)
        )

    def conversations(self, prompt: Prompt, responses: Sequence[str]) -> list[Tokenized]:
        """Returns each response behind its prompt, as it would be alone.

        A response may bring the token that ends it, as a policy's text does: it comes once.

        Raises:
            ValueError: see `render`.
        """
        if not responses:
            raise ValueError("a token tree needs at least one response")
        body, opening = self._text(prompt, None, header=False), self._text(prompt, None)
        return self.read(body, opening, [self._text(prompt, response) for response in responses])

    def read(self, body: str, opening: str, wholes: Sequence[str]) -> list[Tokenized]:
        """Returns rendered conversations with the same prompt as tokens, cut to the limits.

        Args:
            body: the prompt alone.
            opening: the prompt and the assistant's header.
            wholes: the conversations, with a reply that is closed.
        """
        body_ids, opening_ids, *rows = self.ids([body, opening, *wholes], head=body)
        size = len(body_ids)
        alike = size if all(ids[:size] == body_ids for ids in (opening_ids, *rows)) else 0
        starts = [alike + common_prefix(opening_ids[alike:], ids[alike:]) for ids in rows]
        header = alike + common_prefix(body_ids[alike:], opening_ids[alike:])
        prompt = Opening(size, header, len(opening_ids))
        return self.cut(prompt, list(zip(rows, starts, strict=True)))

    def cut(
        self, prompt: Opening, rows: Sequence[tuple[list[int], int]], *, is_closed: bool = True
    ) -> list[Tokenized]:
        """Returns conversations that share a prompt, cut to the limits.

        Args:
            prompt: its parts.
            rows: tokens of each conversation, and where its reply begins.
            is_closed: whether the template's closing tokens stand behind the replies.
        """
        num_closing = self.num_closing if is_closed else 0
        # An empty response may leave no token of its own: the last one stands for it.
        starts = [min(start, len(ids) - 1) for ids, start in rows]
        # Counted on what the prompt alone gives, so that siblings do not move the cut.
        surplus = max(0, prompt.size - self.rendering.max_prompt_tokens)
        dropped = max(0, min(surplus, min(starts) - 1))
        return [
            self._cut_one(ids, start, self._gate(prompt, start), dropped, num_closing)
            for (ids, _), start in zip(rows, starts, strict=True)
        ]

    def _cut_one(
        self, ids: list[int], start: int, gate: int, dropped: int, num_closing: int
    ) -> Tokenized:
        stop = max(start + 1, len(ids) - num_closing)
        kept = min(stop, start + self.rendering.max_response_tokens)
        tokens = self.shortened(ids[:kept], dropped) + ids[stop:]
        return Tokenized(
            tokens=tuple(tokens),
            gate=max(0, gate - dropped),
            start=start - dropped,
            stop=kept - dropped,
            prompt_tokens_cut=dropped,
            response_tokens_cut=stop - kept,
        )

    def shortened(self, ids: list[int], dropped: int) -> list[int]:
        """Returns a prompt without its beginning, but for BOS: models lean on it."""
        kept = ids[dropped:]
        if dropped:
            kept[: len(self.bos)] = self.bos
        return kept

    def _gate(self, prompt: Opening, start: int) -> int:
        """Returns the position that conditions the gate, by construction and not by a pattern.

        Where a template closes a turn with no token of its own, `turn_end` is the header's first.
        """
        wanted = {
            "turn_end": min(prompt.header, prompt.body - self.num_turn_closing),
            "header_first": prompt.header,
            "prompt_last": start - 1,
        }
        return min(max(0, wanted[self.rendering.gate]), start - 1)


class Backbone:
    """A frozen decoder with its renderer: texts in, features out."""

    def __init__(self, name: str, model: nn.Module, renderer: Renderer, depths: Sequence[int]):
        self.name = name
        self.renderer = renderer
        self.weights_hash = hash_weights(model)
        self.decoder = Decoder(model, depths)
        self.shares_prefixes = attend_by_trees(self.decoder) or takes_tree_masks(self.decoder)
        """False where the model takes neither tree attention nor a tree mask and runs on plain
        batches instead."""

        self.token_budget = 0
        """Tokens of a row that suit this machine; 0 until they are measured."""
        self.most_tokens = 2**31
        """Tokens of a row that fit into memory, as far as is known."""

    def features(self, trees: Sequence[TokenTree], budget: int = 0) -> Features:
        """Features of trees, by the cheapest exact path that this model allows.

        Args:
            trees: prompts with their responses.
            budget: tokens of a row; 0: as measured by a short calibration on first use.
        """
        if not self.shares_prefixes:
            return encode_plain(self.decoder, trees)
        if not budget:
            budget = self.token_budget = self.token_budget or calibrate(self.decoder)
        wanted = min(budget, self.most_tokens)
        one = self.decoder.attends_by_trees or self.decoder.device.type == "cpu"
        rows = 1 if one else 16
        run = partial(encode, self.decoder, trees, rows_per_forward=rows)
        features, fitting = within_memory(lambda tokens: run(budget=tokens), wanted)
        if fitting < wanted:
            self.most_tokens = fitting
        return features


def check_vocabulary(renderer: Renderer, model: nn.Module) -> None:
    """Checks that a model has an embedding for every token that its tokenizer may give.

    Tokens that were added to a tokenizer and not to the model would fail deep inside a forward, or
    on an accelerator read what is not theirs.

    Raises:
        ValueError: a token id lies beyond the vocabulary, with the fix.
    """
    token, last = max(renderer.tokenizer.get_vocab().items(), key=lambda item: item[1])
    size = cast(Any, model).get_input_embeddings().weight.shape[0]
    if last >= size:
        raise ValueError(
            f"the tokenizer gives token {token!r} the id {last}, but the model has {size} "
            f"embeddings (ids 0 to {size - 1}): call model.resize_token_embeddings({last + 1}), "
            "train and save it so, or take the tokenizer that the model came with"
        )


def hash_weights(model: nn.Module) -> str:
    """Returns a hash of all parameters: names, shapes and bytes."""
    return hash_tensors(model.state_dict())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns a hash of tensors: names, shapes and bytes."""
    seen = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        seen.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # scalars have no bytes to view
        seen.update(flat.view(torch.uint8).numpy().data)
    return seen.hexdigest()


def resolve(name: str) -> str:
    """Returns a folder or hub name that transformers can load, after looking at it.

    Raises:
        FileNotFoundError: a local path that is no model folder, or a hub name that is neither
            a local folder nor reachable.
    """
    from transformers import AutoConfig

    if name == NAME:
        return str(embedded_model())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model folder {name!r} has no config.json")
        return str(path)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(
            f"model {name!r} is neither a folder nor a hub name 'owner/name' nor {NAME!r}"
        )
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model {name!r} is no local folder, and the hub could not give it: "
            f"{str(error).splitlines()[0]} Name a local folder, or {NAME!r}"
        ) from error
    return name


def choose_dtype(wanted: DType, device: torch.device) -> torch.dtype:
    """Returns bfloat16 where the hardware multiplies it fast, float32 elsewhere.

    That is CUDA, and CPUs with AMX (3x float32) or AVX512-BF16 (1.7x); without either it is
    emulated, 5x slower than float32.
    """
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has_amx = torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    has_avx = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if has_amx or has_avx else torch.float32


def load_backbone(
    name: str,
    *,
    depths: Sequence[int] | None = None,
    rendering: Rendering | None = None,
    dtype: DType = "auto",
) -> Backbone:
    """Loads a frozen backbone.

    Args:
        name: 'embedded', a Hugging Face folder, or a hub name.
        depths: layers whose states are wanted; the model is cut to the deepest. None: all.
        rendering: token limits and gate position.
        dtype: 'auto' takes bfloat16 where it is fast.

    Raises:
        FileNotFoundError: see `resolve`.
        ValueError: the model is no decoder that gives hidden states.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = resolve(name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=choose_dtype(dtype, device))
    layers = len(cast(nn.ModuleList, model.get_submodule(find_layers(model))))
    renderer = Renderer(tokenizer, rendering or Rendering())
    return Backbone(name, model.to(device), renderer, depths or [layers])


def count_layers(name: str) -> int:
    """Returns the number of layers of a model without loading its weights."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(resolve(name)).num_hidden_layers)


def quiet() -> None:
    """Keeps transformers' progress bars and advice out of a run's output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

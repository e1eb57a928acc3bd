"""Rendering: a prompt and its responses -> tokens, by the model's own chat template.

A conversation is rendered once. What responses share is the longest common prefix of the rendered
*token ids*, never of separately tokenized pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from panoply.config import Rendering
from panoply.data.schema import Message, Prompt
from panoply.hub.backbone.control_tokens import ControlTokens
from panoply.hub.backbone.turns import Turns, splitting_token
from panoply.hub.backbone.verbatim_template import VerbatimTemplate
from panoply.model.gather import Tokenized
from panoply.model.tree import TokenTree, common_prefix
from panoply.wire.conversation import Turn, check_responses, read_prompt

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Template of base models, whose tokenizer has none."""
DATE = "26 Jul 2024"
"""Date that templates write in place of today's, so that a score is the same tomorrow; Llama 3.1's
template writes it where it has no clock."""
FIXED_CLOCK = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro %}}{{{{ '' }}}}"


@dataclass(frozen=True, slots=True)
class RenderedTree:
    """A token tree and how much of its texts the limits cut off."""

    tree: TokenTree
    prompt_tokens_cut: int
    num_responses_cut: int
    response_tokens_cut: int
    """Tokens cut off all responses together."""
    num_cut_R: tuple[int, ...] = ()
    """Tokens cut off each conversation, of its prompt and its response."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Ends of the parts of a prompt that opens the assistant's turn, in tokens."""

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
        self._template = VerbatimTemplate(tokenizer.chat_template, self.text)
        self._refusals: dict[tuple[str, ...], str] = {}
        self.turns = Turns(tokenizer, self.text)
        self.control_tokens = ControlTokens(tokenizer, self.turns.markers)
        self.write_reply: Callable[[str], str] = self.control_tokens.hide
        """Writes a response as content of its turn; a process reward model's marks its steps."""
        self.separator_id: int | None = None
        """Token that such a model has behind each step; None of any other."""
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
        """Hash of the chat template, for artefacts and cache keys."""
        return hashlib.blake2b(self.tokenizer.chat_template.encode(), digest_size=8).hexdigest()

    def check_template(self, expected: str, folder: Path) -> None:
        """Checks that a model's tokenizer still renders as in training.

        Raises:
            ValueError: the template has another hash than the expected one.
        """
        if self.template_hash != expected:
            raise ValueError(
                f"the chat template in {str(folder)!r} has hash {self.template_hash}, the model "
                f"was trained with {expected}: restore the tokenizer files it came with"
            )

    def text(self, turns: Sequence[Mapping[str, str]], opens: bool) -> str:
        """Returns turns as the template writes them.

        Args:
            turns: role and content of each.
            opens: whether the assistant's header follows them.

        Raises:
            Exception: whatever the template raises, which means that it refuses the turns.
        """
        return self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=opens
        )

    def _text(self, prompt: str | Sequence[Turn], response: str | None, header: bool = True) -> str:
        """Returns a prompt, with its content hidden, and a response as the template writes them."""
        opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        closing: list[Message] = []
        if response is not None:
            content = self.write_reply(self.turns.without_end(response))
            closing = [{"role": "assistant", "content": content}]
        turns = [*map(dict, opening), *closing]
        asks = response is None and header
        try:
            return self._template.write(turns, asks)
        except Exception as error:  # whatever a template raises means: not renderable
            roles = [turn["role"] for turn in opening]
            raise ValueError(f"the chat template refuses roles {roles!r}: {error}") from error

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of rendered texts, whole or beginnings, BOS once.

        Where the assistant's header begins with a token that splits texts, they are taken apart
        in front of each, and what many of them hold (a prompt, a system turn) is tokenized once.
        """
        split = [self._pieces(text) for text in texts]
        pieces = list(dict.fromkeys(chain.from_iterable(split)))
        ids = dict(zip(pieces, self.control_tokens.tokenize(pieces), strict=True))
        return [
            self.with_bos(list(chain.from_iterable(ids[piece] for piece in row))) for row in split
        ]

    def _pieces(self, text: str) -> list[str]:
        if not self.mark:
            return [text]
        first, *turns = text.split(self.mark)
        return [first, *(self.mark + turn for turn in turns)]

    def with_bos(self, ids: list[int]) -> list[int]:
        """Returns tokens with BOS in front once: many templates already write it."""
        return ids if ids[: len(self.bos)] == self.bos else self.bos + ids

    def refusal(self, prompt: Prompt) -> str:
        """Returns why the template cannot write turns of a prompt's roles; empty where it can.

        It refuses them (some know no system turn), or it leaves a turn out without a word.
        """
        roles = tuple(turn["role"] for turn in prompt)
        if roles not in self._refusals:
            self._refusals[roles] = self._try_roles(roles)
        return self._refusals[roles]

    def _try_roles(self, roles: Sequence[str]) -> str:
        turns = [{"role": role, "content": f"turn{i}."} for i, role in enumerate(roles)]
        try:
            text = self._text([*turns, {"role": "assistant", "content": "reply."}], None, False)
        except ValueError as error:
            return str(error)
        dropped = [turn["role"] for turn in turns if turn["content"] not in text]
        return f"the chat template leaves out turns of role {dropped[0]!r}" if dropped else ""

    def opening(self, prompt: Prompt) -> list[int]:
        """Returns the tokens that a policy goes on from: the prompt and the assistant's header.

        Raises:
            ValueError: a turn cannot be read, or the template refuses the conversation.
        """
        ids = self.ids([self._text(self._hidden(prompt), None)])[0]
        return self.shortened(ids, max(0, len(ids) - self.rendering.max_prompt_tokens))

    def render(self, prompt: Prompt, responses: Sequence[str]) -> RenderedTree:
        """Returns the token tree of a prompt and its responses.

        Raises:
            ValueError: no response, a turn or a response that is no text, a prompt that ends with
                the assistant's turn, or the template refuses the conversation (for example a
                system turn where the model knows none).
        """
        return self.render_all([(prompt, responses)])[0]

    def render_all(self, items: Sequence[tuple[Prompt, Sequence[str]]]) -> list[RenderedTree]:
        """Returns what `render` does for each of many prompts with their responses.

        One call of the tokenizer reads them all, which takes less time than a call for each.

        Raises:
            ValueError: see `render`.
        """
        written = [self._written(prompt, responses) for prompt, responses in items]
        ids = iter(self.ids(list(chain.from_iterable(written))))
        return [_tree(self._tokenized(list(islice(ids, len(texts))))) for texts in written]

    def conversations(self, prompt: Prompt, responses: Sequence[str]) -> list[Tokenized]:
        """Returns each response behind its prompt, as it would be alone.

        A response may bring the token that ends it, as a policy's text does: it comes once.

        Raises:
            ValueError: see `render`.
        """
        return self._tokenized(self.ids(self._written(prompt, responses)))

    def _written(self, prompt: Prompt, responses: Sequence[str]) -> list[str]:
        """Returns as the template writes them: the prompt, the prompt with header, all replies."""
        check_responses(responses)
        if not responses:
            raise ValueError("a token tree needs at least one response")
        turns = self._hidden(prompt)
        body, opening = self._text(turns, None, header=False), self._text(turns, None)
        return [body, opening, *(self._text(turns, response) for response in responses)]

    def _hidden(self, prompt: Prompt) -> list[Turn]:
        """Returns the turns of a prompt, with stand-ins for the control tokens that they spell."""
        hide = self.control_tokens.hide
        return [
            {key: value if key == "role" else hide(value) for key, value in turn.items()}
            for turn in read_prompt(prompt)
        ]

    def read(self, body: str, opening: str, wholes: Sequence[str]) -> list[Tokenized]:
        """Returns rendered conversations with the same prompt as tokens, cut to the limits.

        Args:
            body: the prompt alone.
            opening: the prompt and the assistant's header.
            wholes: the conversations, with a reply that is closed.
        """
        return self._tokenized(self.ids([body, opening, *wholes]))

    def _tokenized(self, ids: list[list[int]]) -> list[Tokenized]:
        """Returns conversations cut to the limits, from the tokens of the texts of `read`."""
        body_ids, opening_ids, *rows = ids
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
        most = self.rendering.max_response_tokens
        if self.rendering.max_tokens:
            room = self.rendering.max_tokens - (start - dropped) - num_closing
            most = max(1, min(most, room))
        kept = min(stop, start + most)
        if kept < stop and ids[kept - 1] == self.separator_id:
            kept -= 1  # a response that is cut never ends like a whole one
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
        positions = {
            "turn_end": min(prompt.header, prompt.body - self.num_turn_closing),
            "header_first": prompt.header,
            "prompt_last": start - 1,
        }
        return min(max(0, positions[self.rendering.gate]), start - 1)


def _tree(conversations: Sequence[Tokenized]) -> RenderedTree:
    """Returns the tree of conversations that share a prompt."""
    shared = min(each.start for each in conversations)
    tree = TokenTree(
        shared=conversations[0].tokens[:shared],
        branches=tuple(each.branch(shared) for each in conversations),
        gate=min(each.gate for each in conversations),
    )
    cut = [each.response_tokens_cut for each in conversations]
    return RenderedTree(
        tree,
        conversations[0].prompt_tokens_cut,
        sum(size > 0 for size in cut),
        sum(cut),
        tuple(each.num_cut for each in conversations),
    )

"""Tokens of requests: messages, text that went through a template, or token ids.

Text in the model's own template becomes what messages would have become: the last reply is found
by the assistant's header, prompt and reply are tokenized as messages are, BOS stands once, the
reply is closed, limits cut prompt and reply as in training. Token ids are kept as they stand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from panoply.data.schema import Prompt
from panoply.hub.backbone.renderer import Opening, Renderer
from panoply.hub.backbone.turns import ReplySpan, Turns
from panoply.model.gather import Tokenized
from panoply.model.tree import common_prefix
from panoply.wire.request import Chat, Item, RenderedText, Tokens


class RequestTokenizer:
    """Tokenizes conversations for one model.

    Args:
        renderer: of the model.
        vocabulary: number of token ids that the model embeds.
        needs_turns: whether its scores depend on where the response begins (a gate, a mean).
    """

    def __init__(self, renderer: Renderer, vocabulary: int, *, needs_turns: bool) -> None:
        self.renderer = renderer
        self.vocabulary = vocabulary
        self.needs_turns = needs_turns
        self.turns = renderer.turns
        self.decoded = Turns(renderer.tokenizer, self._write_decoded)
        """The template's turns as their tokens decode, for some tokenizers give back another text
        than they read."""
        convert = renderer.tokenizer.convert_tokens_to_ids
        self.mark: int | None = convert(renderer.mark) if renderer.mark else None
        """Token that the assistant's header begins with, where it splits texts."""
        self.ends = frozenset(map(convert, self.turns.ends))
        """Tokens that end a reply."""
        opened = self.turns.header + self.turns.prefix
        self.header: list[int] = renderer.tokenizer(opened, add_special_tokens=False)["input_ids"]
        """Tokens that the template puts behind a prompt so that a policy replies."""

    def read(self, item: Item) -> list[Tokenized]:
        """Reads every response of an item.

        Raises:
            ValueError: see `messages`, `text` and `ids`.
        """
        match item:
            case Chat():
                return self.messages(item.prompt, item.responses)
            case RenderedText():
                return self.text(item.prompt, item.responses)
            case Tokens():
                return [self.ids(tokens) for tokens in item.responses]

    def messages(self, prompt: Prompt, responses: Sequence[str]) -> list[Tokenized]:
        """Reads a prompt in turns with responses to it.

        Raises:
            ValueError: the template refuses the conversation.
        """
        return self.renderer.conversations(prompt, responses) if responses else []

    def text(self, prompt: str, responses: Sequence[str]) -> list[Tokenized]:
        """Reads rendered text; an empty prompt means that the text is not known to have one.

        Raises:
            ValueError: there is no text, or it cannot be told where its last reply begins, and the
                model needs to know.
        """
        read: dict[int, Tokenized] = {}
        by_prompt: dict[tuple[str, str], dict[int, str]] = {}
        for i, response in enumerate(responses):
            text, prompt_size = self._begun(prompt, response)
            place = self._place((self.turns, self.decoded), text, prompt_size)
            if place is None:
                read[i] = self._text_without_place(text, prompt_size)
                continue
            opening = text[: place.header], text[: place.reply] + self.turns.prefix
            # The prompt is structure as it stands; where the reply begins is known: it is content.
            reply = self.renderer.write_reply(self.turns.reply(text[place.reply :]))
            whole = text[: place.reply] + reply + self.turns.closing
            by_prompt.setdefault(opening, {})[i] = whole
        for opening, texts in by_prompt.items():
            conversations = self.renderer.read(*opening, list(texts.values()))
            read |= zip(texts, conversations, strict=True)
        return [read[i] for i in range(len(responses))]

    def ids(self, tokens: Sequence[int]) -> Tokenized:
        """Reads a whole conversation in token ids.

        Raises:
            ValueError: the model has no such token, or as for `text`.
        """
        if unknown := [i for i in tokens if not 0 <= i < self.vocabulary]:
            raise ValueError(
                f"token id {unknown[0]} is not among the model's {self.vocabulary}: send ids of "
                "its own tokenizer, or text"
            )
        ids = self.renderer.with_bos(list(tokens))
        text = self._decode(ids)
        if self.decoded.lacks_bos(text):
            ids = [self.renderer.tokenizer.bos_token_id, *ids]
            text = self._decode(ids)
        self._check_size(ids)
        place = self._place((self.decoded,), text, 0)
        if place is not None and self.mark is None:
            return self._ids_without_mark(ids, text, place)
        at = None if place is None else self._mark_at(ids, len(text) - place.header)
        if at is None:
            in_template = bool(self.decoded.header) and self.decoded.header in text
            return self._without_place(self._closed(ids, 0) if in_template else ids, 0, in_template)
        # The header's last token may have merged with the first one of the reply.
        start = at + common_prefix(self.header, ids[at:])
        prompt = Opening(body=at, header=at, size=at + len(self.header))
        return self.renderer.cut(prompt, [(self._closed(ids, start), start)])[0]

    def _begun(self, prompt: str, response: str) -> tuple[str, int]:
        """Returns prompt and response with the template's first token, and the prompt's size."""
        text = prompt + response
        lost = self.turns.bos if self.turns.lacks_bos(text) else ""
        return lost + text, len(lost + prompt) if prompt else 0

    def _place(self, forms: Iterable[Turns], text: str, prompt_size: int) -> ReplySpan | None:
        """Returns the place of the reply; None where it is unknown and moves no score.

        Args:
            forms: of the template's turns, in one of which the text may be.
            text: the conversation.
            prompt_size: see `Turns.place`.

        Raises:
            ValueError: it is unknown and moves scores.
        """
        errors: list[str] = []
        for turns in forms:
            try:
                return turns.place(text, prompt_size)
            except ValueError as error:
                errors.append(str(error))
        return self._unplaced(errors[0])

    def _unplaced(self, why: str) -> None:
        if self.needs_turns:
            raise ValueError(
                f"{why}, and the model needs to know where the response begins: send messages "
                "(`/v1/rewards`), send the prompt beside its responses, or serve the model with "
                "`rendered_by` set to the template that wrote the text"
            )

    def _text_without_place(self, text: str, prompt_size: int) -> Tokenized:
        in_template = bool(self.turns.header) and self.turns.header in text
        text = self.turns.closed(text, prompt_size) if in_template else text
        opening, ids = self.renderer.ids([text[:prompt_size], text])
        self._check_size(ids)
        start = common_prefix(opening, ids) if prompt_size else 0
        return self._without_place(ids, start, in_template)

    def _without_place(self, ids: list[int], start: int, in_template: bool) -> Tokenized:
        """Returns a conversation for a model that scores its last token, wherever the reply begins.

        Args:
            ids: its tokens.
            start: index of the response's first token, by the client's prompt; 0: unknown.
            in_template: whether the model's own template wrote it, so that it is closed.

        Raises:
            ValueError: it has to be cut, and the place of its reply is unknown.
        """
        if start:
            prompt = Opening(body=start, header=start, size=start)
            return self.renderer.cut(prompt, [(ids, start)], is_closed=in_template)[0]
        limits = self.renderer.rendering
        surplus = len(ids) - limits.max_prompt_tokens - limits.max_response_tokens
        if surplus <= 0:
            return Tokenized(tuple(ids), 0, len(ids) - 1, len(ids))
        if in_template:
            raise ValueError(
                f"a text of {len(ids)} tokens is {surplus} longer than the model's limits, and "
                "what to cut depends on where its last reply begins, which cannot be told: send "
                "messages (`/v1/rewards`), or the prompt beside its responses"
            )
        kept = self.renderer.shortened(ids, surplus)  # the end is what is scored
        return Tokenized(tuple(kept), 0, len(kept) - 1, len(kept), prompt_tokens_cut=surplus)

    def _ids_without_mark(self, ids: list[int], text: str, place: ReplySpan) -> Tokenized:
        """Returns token ids in a template whose header may merge with what stands before it."""
        if self.renderer.ids([text]) == [ids]:
            return self.text("", [text])[0]
        prefix = common_prefix(self.decoded.prefix, text[place.reply :])
        header = self._token_at(ids, place.header)
        start = self._token_at(ids, place.reply + prefix)
        closing = list(self.renderer.closing)
        merged = (
            text.endswith(self.decoded.closing, place.reply) and ids[-len(closing) :] != closing
        )
        prompt = Opening(body=header, header=header, size=start)
        return self.renderer.cut(prompt, [(ids if merged else self._closed(ids, start), start)])[0]

    def _mark_at(self, ids: list[int], num_characters: int) -> int | None:
        """Returns the index of the header with so many characters from its begin to the end."""
        for at in reversed(range(len(ids))):
            if ids[at] == self.mark and (size := len(self._decode(ids[at:]))) >= num_characters:
                if size == num_characters:
                    return at
                break
        return self._unplaced(
            f"the last assistant header ({self.turns.shown!r}) is spelled in tokens of plain text"
        )

    def _token_at(self, ids: list[int], character: int) -> int:
        """Returns the index of the token that holds a character of the decoded text."""
        return bisect_right(
            range(len(ids)), character, key=lambda i: len(self._decode(ids[: i + 1]))
        )

    def _closed(self, ids: list[int], start: int) -> list[int]:
        """Returns token ids whose reply begins at `start`, closed as the template closes it."""
        closing = list(self.renderer.closing)
        end = len(ids)
        if closing and ids[start:][-len(closing) :] == closing:
            end -= len(closing)
        while True:
            stripped = end
            while stripped > start and self._decode(ids[stripped - 1 : stripped]).isspace():
                stripped -= 1
            if stripped == start or ids[stripped - 1] not in self.ends:
                return ids[:end] + closing
            end = stripped - 1

    def _decode(self, ids: Sequence[int]) -> str:
        return self.renderer.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _write_decoded(self, turns: Sequence[Mapping[str, str]], opens: bool) -> str:
        return self._decode(self.renderer.ids([self.renderer.text(turns, opens)])[0])

    def _check_size(self, ids: Sequence[int]) -> None:
        if len(ids) - len(self.renderer.bos) < 2:
            raise ValueError(f"{len(ids)} tokens are no conversation: send prompt and response")

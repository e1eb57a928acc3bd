"""What clients send -> tokens: messages, text that went through a template, token ids.

Text in the model's own template becomes what messages would have become: BOS stands once, the
template's closing tokens are completed, limits cut prompt and response as in training. The turns
are found by the token ids of the assistant's header, which every chat template writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from panoply.data.schema import Prompt
from panoply.hub.backbone import Renderer
from panoply.model.gather import Tokenized, apart
from panoply.model.tree import common_prefix


class Reader:
    """Reads conversations for one model.

    Args:
        renderer: of the model.
        vocabulary: how many token ids the model embeds.
        needs_turns: whether its scores depend on where the response begins (a gate, a mean).
    """

    def __init__(self, renderer: Renderer, vocabulary: int, *, needs_turns: bool) -> None:
        self.renderer = renderer
        self.vocabulary = vocabulary
        self.needs_turns = needs_turns
        asked = [{"role": "user", "content": "a"}]
        render = renderer.tokenizer.apply_chat_template
        body, opening, full = renderer.ids(
            [
                render(asked, tokenize=False, add_generation_prompt=False),
                render(asked, tokenize=False, add_generation_prompt=True),
                render([*asked, {"role": "assistant", "content": "b"}], tokenize=False),
            ]
        )
        self.header = opening[common_prefix(body, opening) :]
        self.closing = full[len(full) - renderer.num_closing :]

    def messages(self, prompt: Prompt, responses: Sequence[str]) -> list[Tokenized]:
        """Reads a prompt in turns with responses to it.

        Raises:
            ValueError: the template refuses the conversation.
        """
        return apart(self.renderer.render(prompt, responses).tree) if responses else []

    def text(self, prompt: str, responses: Sequence[str]) -> list[Tokenized]:
        """Reads rendered text; an empty prompt means that the text is not known to have one.

        Raises:
            ValueError: there is no text, or its turns are needed and not found.
        """
        if not responses:
            return []
        given, *full = self.renderer.ids([prompt, *(prompt + response for response in responses)])
        known = [common_prefix(given, ids) if prompt else 0 for ids in full]
        return [self._read(ids, start) for ids, start in zip(full, known, strict=True)]

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
        return self._read(self.renderer.with_bos(list(tokens)), 0)

    def _read(self, ids: list[int], start: int) -> Tokenized:
        """Returns one conversation, cut to the limits.

        Args:
            ids: its tokens, BOS included.
            start: where the response begins, as far as the client said; 0: nothing is known.
        """
        if len(ids) - len(self.renderer.bos) < 2:
            raise ValueError(f"{len(ids)} tokens are no conversation: send prompt and response")
        header = self._header_before(ids, start)
        if header >= 0:  # the model's own template
            start = header + len(self.header)
            ids = ids + self.closing[_begun(ids[start:], self.closing) :]
        elif self.needs_turns:
            raise ValueError(
                "the text has no assistant header of the model's template "
                f"({self.renderer.tokenizer.decode(self.header)!r}), and the model needs to know "
                "where the response begins: send messages (`/v1/rewards`), or serve the model with "
                "`rendered_by` set to the template that wrote the text"
            )
        start = min(start, len(ids) - 1)
        limits = self.renderer.rendering
        if not start:
            return self._unknown(ids, limits.max_prompt_tokens + limits.max_response_tokens)
        stop = max(start + 1, len(ids) - (len(self.closing) if header >= 0 else 0))
        cut = min(stop, start + limits.max_response_tokens)
        dropped = max(0, start - limits.max_prompt_tokens)
        kept = ids[dropped:cut] + ids[stop:]
        if dropped:
            kept[: len(self.renderer.bos)] = self.renderer.bos
        gate = start - 1
        if header >= 0 and limits.gate != "prompt_last":
            gate = header - (self.renderer.num_turn_closing if limits.gate == "turn_end" else 0)
        gate, start = max(0, gate - dropped), start - dropped
        return Tokenized(tuple(kept), min(gate, start - 1), start, cut - dropped)

    def _unknown(self, ids: list[int], most: int) -> Tokenized:
        """Returns a text without known turns: its end is what is scored, so its end is kept."""
        dropped = max(0, len(ids) - most)
        kept = ids[dropped:]
        if dropped:
            kept[: len(self.renderer.bos)] = self.renderer.bos
        return Tokenized(tuple(kept), 0, len(kept) - 1, len(kept))

    def _header_before(self, ids: list[int], start: int) -> int:
        """Returns where the last header before the response begins, -1 if there is none.

        Without a known start that is the last one of all.
        """
        size = len(self.header)
        if not size:
            return -1
        places = range(min(start or len(ids), len(ids) - size), -1, -1)
        return next((i for i in places if ids[i : i + size] == self.header), -1)


def _begun(ids: Sequence[int], closing: Sequence[int]) -> int:
    """Returns how many of the closing tokens stand at the end of a response already."""
    sizes = range(min(len(ids), len(closing)), 0, -1)
    return next((k for k in sizes if list(ids[-k:]) == list(closing[:k])), 0)

r"""Parser of text that one family's chat template wrote, for a model that has another template.

    as_chat(RenderedText("<|user|>\nWhy?</s>\n<|assistant|>\n", ("So.</s>",)), "zephyr")
    Chat(({"role": "user", "content": "Why?"},), ("So.",))

Text is parsed only where content and template can be told apart: a marker of the family inside of a
turn, a turn that does not end, and text in front of the first are refused. A user who wrote a whole
turn, markers and all, cannot be told from two turns, here or by any model that reads the text.

The turns are those that the template was given, up to what it does itself:
1. White space around content, where the family's templates trim it (Llama-3, Gemma, Mistral,
   Vicuna).
2. A system prompt that it puts into the user's turn (Gemma, Mistral) stays there, as does a tool's
   answer (Qwen); one of its own (Qwen) is a system turn. The dates that Llama 3.1 writes in front
   of the system prompt are left out, for they are written at every rendering.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from panoply.wire.chat_templates import TEMPLATES, Template, without_bos
from panoply.wire.request import Chat, Message, RenderedText, RequestError


def parse(text: str, template: str) -> tuple[tuple[Message, ...], str | None]:
    """Returns the turns of a text, and the content of an assistant's turn that is still open.

    The content is None where the last turn has ended, and empty where a prompt ends with the header
    of the assistant's turn.

    Raises:
        ValueError: there is no such template.
        RequestError: 422, the text is none of this template's, or cannot be told apart.
    """
    form = _form(template)
    try:
        return _parse(text, form)
    except ValueError as error:
        raise _refusal(template, str(error), text) from error


def detect(text: str) -> str | None:
    """Returns the family whose templates write such a text; None if there is none."""
    for name, form in TEMPLATES.items():
        try:
            _parse(text, form)
        except ValueError:
            continue
        return name
    return None


def render(turns: Iterable[Message], template: str) -> str:
    """Returns turns as the family writes them, each of them ended and without BOS.

    Raises:
        ValueError: there is no such template.
        RequestError: 422, it has no turn of such a role, or a turn holds a marker.
    """
    form, written = _form(template), ""
    for turn in turns:
        role, first = turn["role"], form.has_head and not written
        opening = form.openings.get(role, "" if role == "system" and first else None)
        try:
            if opening is None:
                raise ValueError(f"has no place, only {list(form.openings)} have")
            content = form.content(turn["content"])
            if form.pattern.search(content):
                raise ValueError("holds the opening of a turn")
        except ValueError as error:
            why = f"a turn of the role {role!r} {error}"
            raise RequestError(f"no conversation for template {template!r}: {why}", 422) from error
        written += f"{opening}{form.pad if opening else ''}{content}{form.closings[role][0]}"
    return written


def as_chat(item: RenderedText, template: str) -> Chat:
    """Returns the turns of a rendered prompt and the responses to it, without what ended them.

    A prompt ends where the assistant's turn opens; what a template puts behind that (`<think>`) is
    the start of each response. Where there is no prompt, each response is a whole conversation,
    whose last turn is the response, and all of them have the other turns in common.

    Raises:
        ValueError: there is no such template.
        RequestError: 422, a text is none of this template's, or cannot be told apart.
    """
    form = _form(template)
    if not item.prompt:
        split = [_last_turn(text, template) for text in item.responses]
        prompt = split[0][0] if split else ()
        if any(turns != prompt for turns, _ in split):
            why = "its conversations share no prompt; send an item for each"
            raise _refusal(template, why, item.responses[0])
        return Chat(prompt, tuple(reply for _, reply in split), item.label)
    turns, opened = parse(item.prompt, template)
    if opened is None:
        opening = form.openings["assistant"]
        why = f"the prompt does not end where the assistant's turn opens, with {opening!r}"
        raise _refusal(template, why, item.prompt)
    _check_prompt(turns, template, item.prompt)
    responses: list[str] = []
    for i, response in enumerate(item.responses):
        reply = form.without_end(opened + response)
        try:
            if opening := form.pattern.search(reply):
                raise ValueError(f"opens a turn with {opening[0]!r}, as part of the prompt may")
            responses.append(form.content(reply))
        except ValueError as error:
            raise _refusal(template, f"response {i} {error}", item.prompt) from error
    return Chat(turns, tuple(responses), item.label)


def _last_turn(text: str, template: str) -> tuple[tuple[Message, ...], str]:
    turns, reply = parse(text, template)
    if reply is None:
        if turns[-1]["role"] != "assistant":
            why = f"it ends with a turn of the role {turns[-1]['role']!r} and has no response"
            raise _refusal(template, why, text)
        *others, last = turns
        turns, reply = tuple(others), last["content"]
    _check_prompt(turns, template, text)
    return turns, reply


def _check_prompt(turns: tuple[Message, ...], template: str, text: str) -> None:
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        why = "no turn of a user or a tool stands before the response"
        raise _refusal(template, why, text)


def _parse(text: str, form: Template) -> tuple[tuple[Message, ...], str | None]:
    turns: list[Message] = []
    for role, inside, is_last in _turns(without_bos(text), form):
        if role == "assistant" and is_last:
            content = form.without_end(inside)
            is_open = content == inside
        else:
            content, is_open = form.closed(role, inside), False
        try:
            if content is None:
                ends = " or ".join(map(repr, form.closings[role]))
                raise ValueError(f"does not end with {ends}")
            content = form.content(content)
        except ValueError as error:
            raise ValueError(f"turn {len(turns) + 1} ({role}) {error}") from error
        if is_open:
            return tuple(turns), content
        if role == "system" and (preamble := re.match(form.preamble, content)) and preamble[0]:
            content = content[preamble.end() :].strip()
            if not content:
                continue
        turns.append({"role": role, "content": content})
    return tuple(turns), None


def _turns(body: str, form: Template) -> Iterator[tuple[str, str, bool]]:
    """Yields the role of each turn, the text inside of it, and whether it is the last."""
    first = form.pattern.search(body) if form.has_head else form.pattern.match(body)
    if first is None:
        opening = form.openings["user"]
        raise ValueError(f"it begins with {body[:40]!r} and not with a turn as {opening!r}")
    head, openings = body[: first.start()], list(form.pattern.finditer(body))
    roles = [str(opening.lastgroup) for opening in openings]
    if form.alternates:
        has_system_turn = not head and roles[0] == "system"
        others = roles[1:] if has_system_turn else roles
        if others != (["user", "assistant"] * len(others))[: len(others)]:
            raise ValueError(f"the roles {roles[:20]} do not alternate, so a marker may be content")
    if head:
        yield "system", head, False
    ends = [opening.start() for opening in openings[1:]]
    for i, opening in enumerate(openings):
        is_last = i == len(ends)
        yield roles[i], body[opening.end() : None if is_last else ends[i]], is_last


def _form(template: str) -> Template:
    if template not in TEMPLATES:
        raise ValueError(f"unknown template {template!r}; expected one of {list(TEMPLATES)}")
    return TEMPLATES[template]


def _refusal(template: str, why: str, text: str) -> RequestError:
    other = detect(text)
    hint = f"; it looks like {other!r}" if other not in (None, template) else ""
    return RequestError(f"no text of template {template!r}: {why}{hint}", 422)

"""Checks of a reward model's chat template: the same every day, and nothing left out."""

from __future__ import annotations

from typing import Any

from panoply.hub.backbone.renderer import DATE, FIXED_CLOCK, PLAIN_TEMPLATE
from panoply.hub.door.templates import AS_PARTS
from panoply.hub.reward_model import RewardModel
from panoply.measure.conformance import Finding

USER, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SECRETS = ("Be brief.", "Answer in rhyme.")
"""Texts of a turn that a template must not write alike."""


def template(model: RewardModel[Any]) -> Finding:
    """Checks that there is a chat template, and that it renders the same every day."""
    renderer = model.backbone.renderer
    written: str = renderer.tokenizer.chat_template
    text, verdict, advice = f"hash {renderer.template_hash}", "ok", ""
    if written == PLAIN_TEMPLATE:
        text, verdict = f"none; plain turns, {text}", "warning"
        advice = "put the template it was trained with into chat_template.jinja"
    elif written.startswith(FIXED_CLOCK):
        text, verdict = f"writes the date, held to {DATE}; {text}", "warning"
        advice = (
            "elsewhere scores move with the calendar: write a fixed date into the template, "
            "the one that training saw"
        )
    elif AS_PARTS in written:
        text, verdict = f"reads turns as parts, and is given them so; {text}", "warning"
        advice = "elsewhere plain texts are left out: send content as a list of text parts"
    return Finding("template", text, verdict, advice, {"hash": renderer.template_hash})


def turns(model: RewardModel[Any]) -> Finding:
    """Checks that system turns, earlier turns and a reply's reasoning are written, or refused."""
    system = _states(model, [[{"role": "system", "content": text}, USER] for text in SECRETS])
    earlier = _states(model, [[{"role": "user", "content": text}, REPLY, USER] for text in SECRETS])
    thoughts = [f"<think>{text}</think>So." for text in SECRETS]
    replies = [[USER, {"role": "assistant", "content": thought}] for thought in thoughts]
    reasoning = _states(model, replies, opens=False)
    values = {"system": system, "earlier": earlier, "reasoning": reasoning}
    text = f"system turns are {system}, earlier turns {earlier}, <think> of a reply is {reasoning}"
    lost = [name for name in ("system", "earlier") if values[name] == "left out"]
    advice: list[str] = []
    if lost:
        advice.append(
            f"a prompt with {' and '.join(lost)} turns has the score of one without: write what "
            "they say into the last user turn, or mend the template if training saw them"
        )
    if reasoning == "left out":
        advice.append("what a reply thinks moves no score: mend the template if training saw it")
    verdict = "warning" if advice else "ok"
    return Finding("turns", text, verdict, "; ".join(advice), values)


def _states(
    model: RewardModel[Any], conversations: list[list[dict[str, str]]], *, opens: bool = True
) -> str:
    """Returns whether two conversations that differ in one turn are written, refused or alike.

    Args:
        model: with the template.
        conversations: both of them.
        opens: whether the assistant's header follows them.
    """
    renderer = model.backbone.renderer
    try:
        first, second = (renderer.text(turns, opens) for turns in conversations)
    except Exception:  # whatever a template raises means that it refuses
        return "refused"
    return "left out" if first == second else "written"

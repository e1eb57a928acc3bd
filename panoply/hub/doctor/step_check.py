"""Check of a process reward model: where steps end, what stands behind them, and their rule."""

from __future__ import annotations

from typing import Any

from panoply.config.steps import BLANK_LINES, LINES
from panoply.hub.published.process import ProcessModel
from panoply.hub.reward_model import RewardModel
from panoply.measure.conformance import Finding

PROMPT = [{"role": "user", "content": "What is 2 + 3 + 4?"}]
PARTS = ("2 + 3 is 5.", "5 + 4 is 9.", "The answer is 9.")
BREAKS = {BLANK_LINES: "\n\n", LINES: "\n"}


def steps(model: RewardModel[Any]) -> Finding:
    """Reports rule and separator, and checks that a text which spells it is no step more."""
    assert isinstance(model, ProcessModel)
    rule, separator = model.rule, model.separator
    response = BREAKS.get(rule.split, rule.split).join(PARTS)
    spelled = f"{PARTS[0]}{separator}{PARTS[1]}"
    [scores, joined] = model.outputs(
        model.backbone.renderer.conversations(PROMPT, [response, spelled])
    )
    text = (
        f"{rule.steps} of the steps, which end at {rule.split!r}; {separator!r} behind each; "
        f"{len(scores)} in an example of {len(PARTS)}"
    )
    values = {"rule": rule.steps, "split": rule.split, "separator": separator, "scores": scores}
    if len(scores) != len(PARTS) or None in scores:
        advice = "the template drops or doubles separators: use the template of its training"
        return Finding("steps", text, "fail", advice, values)
    if len(joined) != len(rule.split_text(spelled)):
        advice = (
            "a response that spells the separator makes steps: convert the tokenizer to a fast one"
        )
        return Finding("steps", text, "fail", advice, values)
    return Finding("steps", text, "ok", values=values)

"""slime's remote reward model: `--rm-type remote_rm --rm-url http://HOST/models/NAME/slime`.

    {"prompt": "..." | [messages], "response": "...", "label": any}
    0.7

Any JSON value is the reward. `/slime` answers with a number; `/slime/details` with an object, for
`--reward-key score` and logs, and with `"truncated": true` where the model's limits cut the text. A
prompt that is text went through the policy's template already.

The response is what the policy's tokens decode to, special ones included, so that it brings the
token that ended it. Behind messages that token is no content, and is taken off.
"""

from __future__ import annotations

from pydantic import JsonValue

from panoply.wire.chat_templates import ENDS, without_end
from panoply.wire.dialect import DialectPayload
from panoply.wire.messages import PromptTurns, messages
from panoply.wire.request import (
    Chat,
    Item,
    Payload,
    RenderedText,
    ScoreAnswer,
    ScoreRequest,
    beside_score,
    require_score,
    single_model_scores,
)


class SlimeSample(DialectPayload):
    """One sample, answered with its score."""

    prompt: str | PromptTurns
    response: str
    label: JsonValue = None

    def request(self) -> ScoreRequest:
        """Returns one item with one response."""
        item: Item
        if isinstance(self.prompt, str):
            item = RenderedText(self.prompt, (self.response,), self.label)
        else:
            reply = without_end(self.response, ENDS)
            item = Chat(messages(self.prompt), (reply,), self.label)
        return ScoreRequest(items=(item,))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the number itself."""
        _, (score,) = single_model_scores(answer, request)
        return require_score(score)


class DetailedSlimeSample(SlimeSample):
    """One sample, answered with its score and its objectives."""

    def request(self) -> ScoreRequest:
        """Returns one item with one response."""
        return ScoreRequest(items=super().request().items, details=frozenset({"objectives"}))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns an object with the key `score`."""
        model, (score,) = single_model_scores(answer, request)
        objectives = score.details.objectives
        entry = {"score": require_score(score), "model": model.model, "objectives": objectives}
        return entry | beside_score(score)

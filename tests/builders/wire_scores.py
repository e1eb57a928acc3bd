"""A scorer of texts that say their own score, and the way of a payload through an endpoint.

A response that ends with `#1.5` scores 1.5; `#nan` is a model's NaN, `#lost` a lost replica. Of one
that holds `[cut]` three tokens were cut. Token ids score their sum over 10.
"""

import json
import re

from panoply.wire.dialect import decode
from panoply.wire.limits import RequestLimits
from panoply.wire.request import (
    Driver,
    ModelAnswer,
    RequestError,
    Score,
    ScoreAnswer,
    scored,
    sigmoid,
)
from panoply.wire.routes import endpoint_at

LIMITS = RequestLimits()


def say(text, details):
    """The score of one response."""
    if not isinstance(text, str):
        return scored(sum(text) / 10, num_tokens=len(text))
    word = re.match(r"[\w.+-]*", text.rpartition("#")[2])[0]  # and no marker of a turn's end
    if word == "lost":
        return Score(error="the replica was lost", transient=True)
    value = float(word)
    return scored(
        value,
        objectives={"helpfulness": value / 2, "brevity": -value} if "objectives" in details else {},
        gate={"helpfulness": 0.75, "brevity": 0.25} if "gate" in details else {},
        drivers=[Driver("helpfulness", value / 2, value)] if "drivers" in details else [],
        num_tokens=len(text),
        num_cut=3 * ("[cut]" in text),
    )


def prefer(a, b):
    """The probability that the first of two responses is better, at a temperature of 1."""
    first, second = say(a, ()), say(b, ())
    if failed := first.error or second.error:
        return Score(error=failed, transient=first.transient or second.transient)
    num_cut = first.num_cut + second.num_cut
    return scored(sigmoid(first.score - second.score), num_cut=num_cut)


def scores_of(item, details, compares):
    """What a model says of an item."""
    if compares:
        return (prefer(*item.responses),)
    return tuple(say(response, details) for response in item.responses)


def answer_to(request):
    """What a server would answer."""
    provenance = {"weights": "w", "template": "t"} if "provenance" in request.details else {}
    models = tuple(
        ModelAnswer(
            model=model,
            items=tuple(
                scores_of(item, request.details, request.compares) for item in request.items
            ),
            provenance=provenance,
        )
        for model in request.models or ("default",)
    )
    return ScoreAnswer(models=models, id="7", created=1_700_000_000)


def post_bytes(path, body, limits=LIMITS, answer_to=answer_to):
    """Status and payload, as a gateway answers a body."""
    endpoint = endpoint_at(path)
    try:
        payload = decode(body, limits)
        endpoint = endpoint_at(path, payload)
        call = endpoint.parse(payload)
        request = limits.check(call.request())
        return 200, call.render(answer_to(request), request)
    except RequestError as error:
        return endpoint.refuse(error)


def post(path, payload, limits=LIMITS):
    """Status and payload, both through JSON as on a wire."""
    status, answer = post_bytes(path, json.dumps(payload).encode(), limits)
    return status, json.loads(json.dumps(answer, allow_nan=False))


def request_of(path, payload):
    """The request that a payload becomes."""
    return endpoint_at(path, payload).parse(payload).request()

"""The endpoint `/v1/feedback`: what came of a bandit's decisions."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from actors.api_reference import described
from actors.gateway import Gateway
from actors.hardened import refusal_headers
from actors.intake import Intake
from actors.internal_error import internal_error
from panoply.serve.calls import FeedbackRequest
from panoply.wire.dialect import decode
from panoply.wire.feedback import FeedbackPayload, Outcome, feedback_answer, parse_feedback
from panoply.wire.limits import RequestLimits
from panoply.wire.openrlhf import refuse
from panoply.wire.request import RequestError

FEEDBACK = "/v1/feedback"


class FeedbackCall:
    """A payload of outcomes; `read` has to be called first."""

    model: str | None
    outcomes: tuple[Outcome, ...]
    num_characters: int

    def read(self, body: bytes, limits: RequestLimits) -> None:
        """Parses a body.

        Raises:
            RequestError: it is wrong, or has too many outcomes.
        """
        payload = parse_feedback(decode(body, limits))
        if len(payload.outcomes) > limits.max_responses:
            what = f"{len(payload.outcomes)} outcomes in one request, at most"
            raise RequestError(f"{what} {limits.max_responses}: send several requests", 413)
        self.model = payload.model
        self.outcomes = tuple(outcome.outcome() for outcome in payload.outcomes)
        self.num_characters = len(body)


def add_feedback(
    app: FastAPI,
    gateway: Gateway,
    intake: Intake,
    answered: Callable[[str, int, float], None],
    prefix: str,
) -> None:
    """Adds the endpoint, with and without a model in its path.

    Args:
        app: the HTTP application.
        gateway: answers.
        intake: checks and reads requests.
        answered: counts an answer, by its path, status and seconds.
        prefix: of a path that names a model.
    """

    async def feedback(request: Request) -> Response:
        begun, call, name = time.monotonic(), FeedbackCall(), request.path_params.get("name")
        try:
            caller = intake.caller(request, name)
            await intake.read(request, caller, call, name)
            model = name or call.model or gateway.default
            gateway.check_name(model)
            intake.keys.check(caller, [model])
            intake.rates.charge(caller, call.num_characters)
            outcomes = FeedbackRequest(
                outcomes=call.outcomes, caller=caller.name, timeout=gateway.timeout
            )
            answers = await gateway.feedback(model, outcomes)
            status, payload, headers = 200, feedback_answer(model, answers), {}
        except Exception as error:
            refused = error if isinstance(error, RequestError) else internal_error(FEEDBACK, error)
            status, payload = refuse(refused)
            headers = refusal_headers(refused)
        answered(FEEDBACK, status, time.monotonic() - begun)
        return JSONResponse(payload, status, headers)

    for before in ("", prefix):
        about = described(before, [FeedbackPayload], ["panoply"])
        app.add_api_route(before + FEEDBACK, feedback, methods=["POST"], **about)

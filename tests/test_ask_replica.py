"""One map of Ray's errors to statuses, for whoever asks a replica."""

import asyncio
import logging

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from actors.ask_replica import ask_replica
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Chat, ModelAnswer, RequestError, scored
from panoply.wire.retry import RETRIED
from workflows.cluster.arms import RETRIED_STATUSES

ITEM = Chat(({"role": "user", "content": "SECRET"},), ("yes",))
ANSWER = ModelAnswer(model="a", items=((scored(1.0),),))


def ask(*script, timeout=30.0):
    """What comes of a request to replicas that answer or fail as scripted, and their requests."""
    requests, left = [], list(script)

    async def replica(request):
        requests.append(request)
        step = left.pop(0)
        if isinstance(step, float):
            await asyncio.sleep(step)
            return ANSWER
        if isinstance(step, Exception) and not isinstance(step, RequestError):
            raise step
        return step

    request = ReplicaRequest(items=(ITEM,), bucket=3, timeout=timeout)
    return asyncio.run(ask_replica("a", replica, request)), requests


def test_an_answer_and_a_refusal_of_the_replica_come_as_they_are():
    refusal = RequestError("no objective", 400)
    assert ask(ANSWER)[0] is ANSWER
    assert ask(refusal)[0] is refusal


def test_a_lost_replica_is_asked_again_once_within_the_time_that_is_left():
    answer, requests = ask(RayActorError(), ANSWER)
    assert answer is ANSWER
    first, second = requests
    assert second.bucket == first.bucket
    assert 0 < second.timeout <= first.timeout == 30.0


@pytest.mark.parametrize(
    ("script", "status", "retry_after", "message"),
    [
        ((5.0,), 503, None, "'a' gave no answer within 0.05 s"),
        ((RayActorError(), 5.0), 503, None, "'a' gave no answer within 0.05 s"),
        ((RayActorError(), RayActorError()), 503, None, "lost the replica that was scoring, twice"),
        ((BackPressureError(9, 9),), 429, 1.0, "'a' is busy"),
        ((RayActorError(), BackPressureError(9, 9)), 429, 1.0, "'a' is busy"),
        ((KeyError("SECRET"),), 500, None, "model 'a' failed with KeyError"),
    ],
)
def test_every_failure_has_a_status_that_clients_act_on(script, status, retry_after, message):
    error, _ = ask(*script, timeout=0.05)
    assert isinstance(error, RequestError)
    assert (error.status, error.retry_after) == (status, retry_after)
    assert message in error.message
    assert "SECRET" not in error.message


def test_what_may_pass_is_what_our_client_and_lasers_arms_ask_again_on():
    assert set(RETRIED_STATUSES) == {429, 503}
    assert set(RETRIED_STATUSES) <= set(RETRIED)


def test_an_unforeseen_error_is_logged_by_class_and_place_without_its_text(caplog):
    with caplog.at_level(logging.ERROR):
        ask(KeyError("SECRET"))
    assert "model 'a' failed: KeyError at" in caplog.text
    assert "SECRET" not in caplog.text

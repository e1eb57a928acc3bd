"""What comes from another server is bounded: bytes, time, waits; one that fails is left alone."""

import asyncio
import contextlib
import gzip
import json
import resource
import time

import httpx2
import pytest

from actors.function_replica import FunctionReplica
from panoply.config.serve import ServedModelConfig
from panoply.scorers.endpoint import EndpointScorer
from panoply.scorers.function import FunctionScorer
from panoply.serve.calls import ReplicaRequest
from panoply.wire import bounded, breaker, retry
from panoply.wire.bounded import BoundedAnswer
from panoply.wire.breaker import FAILURES, OUTAGE_SECONDS, CircuitBreaker
from panoply.wire.request import Chat
from panoply.wire.retry import RetryingRequest, RewardServerError
from tests.builders.wire_server import serving

CHAT = Chat(({"role": "user", "content": "q"},), ("a#1",))


def post(url, timeout):
    with httpx2.Client() as http:
        return RetryingRequest(url, lambda _: {}, lambda answer: answer, timeout).post(http)


def post_async(url, timeout):
    async def run():
        async with httpx2.AsyncClient() as http:
            request = RetryingRequest(url, lambda _: {}, lambda answer: answer, timeout)
            return await request.post_async(http)

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("post", [post, post_async])


@BOTH
def test_a_server_that_says_to_come_back_at_once_is_not_asked_as_fast_as_the_network_goes(post):
    with serving(*[(429, {"Retry-After": "0"}, {})] * 100) as (url, seen):
        with pytest.raises(TimeoutError):
            post(f"{url}/slime", 1.5)
        assert 2 <= len(seen) <= 6


def test_clients_do_not_return_together_and_a_long_wait_is_shortened(monkeypatch):
    monkeypatch.setattr(retry, "LONGEST_WAIT", 2.0)
    pauses = set()
    for _ in range(8):
        request = RetryingRequest("http://h", lambda _: {}, lambda answer: answer, 100.0)
        pauses.add(request._pause("busy", 3600.0).seconds)
    assert len(pauses) == 8
    assert 2.0 <= min(pauses) < max(pauses) <= 2.0 * (1 + retry.JITTER)


@BOTH
def test_a_compressed_answer_is_not_inflated(post):
    bomb = gzip.compress(b"[" + b" " * 60_000_000 + b"]", 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        serving((200, {"Content-Encoding": "gzip"}, bomb)) as (url, seen),
        pytest.raises(RewardServerError, match="is compressed"),
    ):
        post(f"{url}/slime", 30.0)
    assert seen[0][1]["accept-encoding"] == "identity"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


@BOTH
def test_an_endless_answer_is_read_up_to_its_bound(post, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_ANSWER", 10_000)
    with (
        serving((200, {}, b"[" * 10_001)) as (url, _),
        pytest.raises(RewardServerError, match="more than 10000 bytes"),
    ):
        post(f"{url}/slime", 30.0)


@BOTH
def test_an_answer_that_drips_ends_at_the_timeout(post):
    async def drip(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            writer.close()

    async def run():
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/slime"
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(post, url, 0.4)
        return time.monotonic() - begun

    assert asyncio.run(run()) < 5


OK = b"HTTP/1.1 200 OK\r\n"


@BOTH
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 9),
        (OK, b"X-A: " + b"b" * 999 + b"\r\n"),
        (b"HTTP/1.1 200 ", b"x" * 999),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 999),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X-A: b\r\n" * 99),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 99),
        (OK + b"\r\n", b" " * 999),
    ],
    ids=["interim", "headers", "status", "extension", "trailers", "chunks", "body"],
)
def test_an_answer_that_never_begins_or_never_ends_is_given_up_in_time(head, piece, post):
    async def flood(reader, writer):
        floods.append(asyncio.current_task())
        # A client on a busy core may give up before its request is written.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while not over.is_set():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
        writer.close()

    async def run():
        server = await asyncio.start_server(flood, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/slime"
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(post, url, 0.3)
        seconds = time.monotonic() - begun
        server.close()
        over.set()
        await asyncio.gather(*floods)
        return seconds

    floods, over = [], asyncio.Event()
    assert asyncio.run(run()) < 5


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "wait",
    ["Fri, 31 Dec 1999 23:59:59 GMT", "-5", "1e9", "9" * 400, "nan", "0.0", "0, 0", "", "soon"],
)
def test_a_server_s_wait_is_bounded_however_it_is_written(wait, status):
    request = RetryingRequest("http://h", lambda _: {}, lambda answer: answer, 1000.0)
    answer = BoundedAnswer(status, httpx2.Headers({"Retry-After": wait}), b"")
    assert retry.SHORTEST_WAIT <= request._answer(answer).seconds <= retry.LONGEST_WAIT * 1.25


@pytest.mark.parametrize("place", ["file:///etc/passwd", "http://127.0.0.1:1/", "//evil", "/x"])
def test_a_redirect_is_not_followed(place):
    with serving((307, {"Location": place}, {})) as (url, seen):
        with pytest.raises(RewardServerError, match="HTTP 307"):
            post(f"{url}/slime", 5.0)
        assert len(seen) == 1


def test_a_circuit_opens_after_an_outage_probes_once_and_closes_by_a_success():
    now = [0.0]
    circuit = CircuitBreaker(lambda: now[0])
    for _ in range(FAILURES):
        circuit.failed()
    assert circuit.state == "closed"  # a short outage is left to the retries
    now[0] = OUTAGE_SECONDS
    circuit.failed()
    assert (circuit.state, circuit.seconds_left) == ("open", breaker.FIRST_PAUSE)
    assert not circuit.admits()
    for pause in (4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        now[0] += circuit.seconds_left
        assert circuit.state == "half-open"
        assert [circuit.admits(), circuit.admits()] == [True, False]
        circuit.failed()
        assert circuit.seconds_left == pause
    now[0] += 60.0
    assert circuit.admits()
    circuit.abandoned()
    assert circuit.admits()
    circuit.succeeded()
    assert circuit.state == "closed"
    assert all(circuit.admits() for _ in range(3))


def test_a_call_that_hangs_counts_from_its_begin():
    circuit = CircuitBreaker(lambda: 1000.0)
    for _ in range(FAILURES):
        circuit.failed(OUTAGE_SECONDS)
    assert circuit.state == "open"


def test_a_dead_server_is_taken_out_costs_nothing_and_comes_back():
    async def run(url):
        now = [0.0]
        scorer = EndpointScorer(url, "slime", timeout=0.3)
        scorer.breaker.clock = lambda: now[0]
        states, errors = [], []
        for _ in range(FAILURES + 1):
            ((score,),) = await scorer.score([CHAT])
            now[0] += OUTAGE_SECONDS
            states.append(scorer.circuit)
            errors.append(score)
        now[0] = 0.0
        scorer.breaker._probe_at = 1.0
        begun = time.monotonic()
        ((refused,),) = await scorer.score([CHAT])
        assert time.monotonic() - begun < 0.1
        now[0] = 2.0
        return scorer, states, errors, refused

    async def back(scorer):
        ((score,),) = await scorer.score([CHAT])
        return score

    async def whole():
        with serving(*[(503, {}, {})] * 100) as (url, seen):
            scorer, states, errors, refused = await run(url)
            num_asked = len(seen)
        assert "open" not in states[:3]
        assert states[-1] in ("open", "half-open")
        assert all(score.transient and score.score is None for score in [*errors, refused])
        assert "times in a row, and is tried again in" in refused.error
        with serving() as (url, _):
            scorer.url = f"{url}/slime"
            scorer.timeout = 30.0
            score = await back(scorer)
        return num_asked, score, scorer.circuit

    num_asked, score, circuit = asyncio.run(whole())
    assert num_asked >= FAILURES
    assert (score.score, circuit) == (1.0, "closed")


def test_a_function_that_hangs_for_good_makes_its_replica_unhealthy_and_says_so():
    replica = FunctionReplica(
        ServedModelConfig(name="m", where="function:panoply.serve.verifiers:length")
    )
    replica.check_health()
    before = replica.fingerprint

    def hangs(response):
        time.sleep(3)

    async def run():
        replica.scorer = FunctionScorer(hangs, timeout=0.05, max_concurrent=2)
        items = (Chat((), ("a",)), Chat((), ("b",)))
        request = ReplicaRequest(items=items, bucket=0, timeout=60.0)
        await replica.answer(request)
        assert replica.about()["circuit"] == "open"
        assert replica.fingerprint != before  # so that the gateway asks anew
        with pytest.raises(RuntimeError, match="2 calls of the function hang"):
            replica.check_health()
        return (await replica.answer(request)).items[0][0]

    score = asyncio.run(run())
    assert score.transient


def test_a_function_s_call_ends_with_the_time_of_its_request():
    replica = FunctionReplica(
        ServedModelConfig(name="m", where="function:panoply.serve.verifiers:length")
    )

    async def slow(response):
        await asyncio.sleep(60)

    async def run():
        replica.scorer = FunctionScorer(slow)
        return await replica.answer(ReplicaRequest(items=(CHAT,), bucket=0, timeout=0.1))

    ((score,),) = asyncio.run(run()).items
    assert (score.transient, score.error) == (True, "'m' gave no score in time")
    assert json.dumps(replica.about())

"""The worst allowed request: what it costs each endpoint, each kind of scorer, and neighbors."""

import asyncio
import json
import resource
import time

import httpx2
import pytest

from actors.function_replica import FunctionReplica
from actors.model_replica import RewardModelReplica
from panoply.config.serve import BatchConfig, ScalingConfig, ServedModelConfig
from panoply.scorers.endpoint import POST_CHARACTERS, EndpointScorer
from panoply.serve import verifiers
from panoply.serve.calls import ReplicaRequest
from panoply.wire.limits import RequestLimits
from panoply.wire.request import Chat, RenderedText, RequestError, ScoreRequest, Tokens
from panoply.wire.routes import ENDPOINTS
from tests.builders.gateway import Formula, serving
from tests.builders.models import save_small
from tests.builders.tokenizers import TURNS, WORDS, byte_tokenizer
from tests.builders.wire_server import serving as serving_scores

LIMITS = RequestLimits()
LONG = LIMITS.max_text - 100
MANY = LIMITS.max_responses
EACH = "x" * 900 + "#1"
TURN = {"role": "user", "content": "q"}
MAX_SECONDS = 15.0
"""Processor time of one request; an idle core needs a third of it."""
MAX_BYTES = 400 * 2**20

WORST = {
    "/v1/rewards": {"items": [{"prompt": [TURN], "responses": [EACH] * MANY, "label": "g" * 50}]},
    "/v1/compare": {"pairs": [{"prompt": [TURN], "a": EACH, "b": EACH}] * (MANY // 2)},
    "/get_reward": {"query": [EACH] * MANY, "prompts": ["x" * 800] * MANY, "labels": ["g"] * MANY},
    "/slime": {"prompt": "q", "response": "x" * LONG + "#1", "label": "g"},
    "/slime/details": {"prompt": "q", "response": "x" * LONG + "#1", "label": "g"},
    "/pooling": {"input": [EACH] * MANY},
    "/score": {"text_1": "q", "text_2": [EACH] * MANY},
    "/v1/rerank": {"query": "q", "documents": [EACH] * MANY},
    "/v1/classify": {"input": [[1] * 240] * MANY},
    "/sglang/classify": {"text": [EACH] * MANY},
    "/sglang/v1/embeddings": {"input": [EACH] * MANY},
    "/sglang/v1/rerank": {"query": "q", "documents": [EACH] * MANY},
    "/predict": {"inputs": [[EACH]] * MANY, "raw_scores": True},
    "/rerank": {"query": "q", "texts": [EACH] * MANY, "raw_scores": True},
    "/v1/score/evaluation": {"model": "a", "messages": [EACH] * MANY},
}
"""A payload near its limits for every endpoint."""


class Cost:
    """Processor time and memory of what is done in the context."""

    def __enter__(self):
        self.begun, self.before = time.process_time(), peak()
        return self

    def __exit__(self, *_):
        self.seconds, self.bytes = time.process_time() - self.begun, peak() - self.before

    def check(self):
        """Fails beyond the bounds."""
        assert self.seconds < MAX_SECONDS
        assert self.bytes < MAX_BYTES


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_every_endpoint_is_in_the_table():
    for endpoint in ENDPOINTS:
        assert set(endpoint.paths) & set(WORST), endpoint.paths


@pytest.mark.parametrize("path", WORST)
def test_the_worst_request_of_an_endpoint_is_answered_in_bounded_time_and_memory(path):
    app, _ = serving(Formula("a"), timeout=300.0)

    async def run():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.post(path, content=body)

    body = json.dumps(WORST[path]).encode()
    with Cost() as cost:
        answer = asyncio.run(run())
    assert answer.status_code in (200, 422), answer.text[:300]
    cost.check()


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Chat((TURN,), ("x",) * (MANY + 1)), "texts in one request"),
        (Chat((TURN,), ("x" * 2000,) * MANY), "characters or tokens in one request"),
        (Chat((TURN,), ("x",) * MANY, "g" * 2000), "characters or tokens in one request"),
        (Chat((TURN,), ("x",) * MANY, ["g" * 2000]), "characters or tokens in one request"),
        (Chat((TURN | {"name": "n" * 4_000_000},), ("x",)), "characters or tokens in one"),
        (Chat((TURN | {"content": "q" * 400_000},), ("x",) * 64), "a prompt counted with each"),
        (RenderedText("q" * 400_000, ("x",) * 64), "a prompt counted with each"),
        (RenderedText("q" * 400_000, ("x" * 200_000,)), "a conversation of 600000"),
        (Tokens(((1,) * 600_000,)), "a conversation of 600000"),
        (Chat((TURN | {"content": ""},) * 20_000, ("x",)), "a conversation of 720001"),
        (Chat((TURN,), ("\ufdfa" * 30_000,)), "a conversation of 540037"),
        (RenderedText("\ufdfb" * 20_000, ("x",) * 200), "a prompt counted with each"),
    ],
)
def test_what_costs_more_is_refused_before_any_of_it_is_done(item, reason):
    with pytest.raises(RequestError, match=reason) as refused, Cost() as cost:
        LIMITS.check(ScoreRequest(items=(item,)))
    assert refused.value.status == 413
    assert cost.seconds < 1
    many = tuple(map(str, range(LIMITS.max_models + 1)))
    with pytest.raises(RequestError, match="17 models in one request, at most 16"):
        LIMITS.check(ScoreRequest(items=(), models=many))
    with pytest.raises(RequestError, match="characters or tokens in one request"):
        LIMITS.check(ScoreRequest(items=(), weights={"n" * 4_000_001: 1.0}))


def request(*items, timeout=60.0, **changes):
    return ReplicaRequest(items=items, bucket=0, timeout=timeout, **changes)


def replica_of(folder, template):
    save_small(folder, byte_tokenizer(template))  # a token a byte: no tokenizer makes more
    config = ServedModelConfig(
        name="m", where=str(folder), scaling=ScalingConfig(cpus=1), batch=BatchConfig()
    )
    return RewardModelReplica(config)


SMALL = Chat((TURN,), ("No.",))
PROMPT = TURN | {"content": "q" * 100_000}


@pytest.mark.parametrize(
    ("template", "item", "compares"),
    [
        (TURNS, Chat((PROMPT,), ("x",) * 158), False),
        (TURNS, RenderedText("q" * 100_000, ("x",) * 20), False),
        (TURNS, Chat((TURN | {"content": "q" * LONG},), ("x", "y")), True),
        (TURNS, Tokens(((5,) * LONG,)), False),
    ],
)
def test_the_worst_request_to_a_model_leaves_its_neighbors_their_turn(
    template, item, compares, tmp_path
):
    replica = replica_of(tmp_path / "m", template)

    async def run():
        worst = asyncio.create_task(replica.answer(request(item, compares=compares)))
        waits = []
        while not worst.done():
            begun = time.process_time()
            answer = await replica.answer(request(SMALL))
            waits.append(time.process_time() - begun)
            assert answer.items[0][0].score is not None
        await worst
        return max(waits)

    with Cost() as cost:
        assert asyncio.run(run()) < MAX_SECONDS / 3
    cost.check()


def test_reading_ends_with_the_time_of_its_request_and_with_its_client(tmp_path):
    replica = replica_of(tmp_path / "m", WORDS)  # which has to read the prompt with each response
    portions = []
    read_all = replica._read_all

    def counted(turn, compares):
        portions.extend(turn)
        return read_all(turn, compares)

    replica._read_all = counted
    worst = request(Chat((PROMPT,), ("x",) * 158), timeout=0.2)

    async def run():
        late = await replica.answer(worst)
        num_late = len(portions)
        task = asyncio.create_task(replica.answer(request(*worst.items)))
        while len(portions) == num_late:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        num_canceled = len(portions) - num_late
        answer = await replica.answer(request(SMALL))
        return late, num_late, num_canceled, answer

    late, num_late, num_canceled, answer = asyncio.run(run())
    assert late.status == 503
    assert "did not read the request within 0.2 s" in str(late)
    assert num_late < 80
    assert num_canceled <= 2
    assert answer.items[0][0].score is not None
    assert replica.num_reading == 0


def test_what_is_read_counts_for_the_queue_s_bound(tmp_path):
    replica = replica_of(tmp_path / "m", TURNS)
    replica.queue.config = BatchConfig(max_queued=8, max_wait=0.0)

    async def run():
        first = asyncio.create_task(replica.answer(request(Chat((PROMPT,), ("x",) * 8))))
        await asyncio.sleep(0)
        second = await replica.answer(request(SMALL))
        return await first, second

    first, second = asyncio.run(run())
    assert len(first.items[0]) == 8
    assert (second.status, second.retry_after) == (429, 1.0)


def test_more_tokens_than_ever_may_wait_are_refused_and_a_prompt_counts_once(tmp_path):
    replica = replica_of(tmp_path / "m", TURNS)
    replica.queue.config = BatchConfig(max_queued_tokens=400)
    prompt = TURN | {"content": "q" * 150}
    fits = Chat((prompt,), ("x",) * 8)
    several = [Chat((prompt | {"content": f"{i}" * 150},), ("x",)) for i in range(4)]
    answers = [asyncio.run(replica.answer(request(*items))) for items in ([fits], several)]
    assert all(score.score is not None for score in answers[0].items[0])
    assert answers[1].status == 413
    assert "tokens in one request, at most 400" in str(answers[1])


@pytest.mark.parametrize("name", ["length", "exact", "last_number", "regex"])
def test_the_worst_request_to_a_function_is_answered_in_bounded_time_and_memory(name):
    where = f"function:panoply.serve.verifiers:{name}"
    replica = FunctionReplica(ServedModelConfig(name="m", where=where))
    few, long = ("\\boxed{" * 50_000,) * 8, ("1," * 225_000,) * 8
    items = (Chat((TURN,), few, "7"), Chat((TURN,), long, "7"), Chat((TURN,), ("x",) * 4000, "7"))
    LIMITS.check(ScoreRequest(items=items[:1]))
    LIMITS.check(ScoreRequest(items=items[1:]))
    with Cost() as cost:
        answer = asyncio.run(replica.answer(request(*items)))
    assert list(map(len, answer.items)) == [8, 8, 4000]
    cost.check()


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:" * 12 + "a" + "){1,9}" * 12,
        "(?:a{1,1000}){1,1000}",
        "|".join(f"ab{i}" for i in range(330)),
        "(?i)" + "".join(chr(0x100 + i) for i in range(1900)),
        "(?:abc){e<=3}" * 150,
    ],
)
def test_a_pattern_is_compiled_in_bounded_time(pattern):
    assert len(pattern) <= 2000
    with Cost() as cost:
        verifiers.regex("x", pattern)
    assert cost.seconds < 3


def test_a_pattern_that_compiles_for_ever_is_refused():
    for pattern in ("(?:" * 40 + "a" + "){1,9}" * 40, "a" * 2001, "(" * 1_500_000):
        with pytest.raises(ValueError, match="at most 2000 characters and 12 parentheses"):
            verifiers.regex("x", pattern)
    assert verifiers.regex("((((((((((((((x", r"\(\(\(\(\(\(\(\(\(\(\(\(\(\(x") == 1


def test_what_is_passed_on_has_a_bound_and_a_long_prompt_goes_in_several_posts():
    item = RenderedText("q" * 100_000, ("x#1",) * 100)
    with serving_scores() as (url, seen):

        async def run(dialect):
            scorer = EndpointScorer(url, dialect)
            try:
                return await scorer.score([item])
            finally:
                await scorer.close()

        (scores,) = asyncio.run(run("openrlhf"))
        assert [score.score for score in scores] == [1.0] * 100
        assert len(seen) == 6
        for _, headers, payload, _ in seen:
            assert int(headers["content-length"]) < 2.1 * POST_CHARACTERS
            assert len(payload["query"]) <= 20
        seen.clear()
        asyncio.run(run("panoply"))  # which sends the prompt once
        assert len(seen) == 1

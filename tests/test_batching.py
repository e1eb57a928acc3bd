"""The queue before a model: order, groups, budget, deadlines, overload, failures."""

import asyncio
import time

import pytest

from panoply.config.serve import BatchConfig
from panoply.model.gather import Tokenized
from panoply.serve.batching import Batcher, Overloaded


def talk(prompt, response, size=4):
    """A conversation whose score is its response."""
    return Tokenized((*[prompt] * size, response), size - 1, size, size + 1)


class Model:
    """Scores a conversation by its last token, and remembers its batches."""

    def __init__(self, seconds=0.0, broken=()):
        self.batches, self.seconds, self.broken = [], seconds, broken

    def __call__(self, conversations):
        """Scores one batch."""
        self.batches.append([c.tokens[0] for c in conversations])
        time.sleep(self.seconds)
        if any(c.tokens[-1] in self.broken for c in conversations):
            raise RuntimeError("this text breaks the model")
        return [float(c.tokens[-1]) for c in conversations]


def batcher(model, **config):
    return Batcher(model, BatchConfig(**config))


async def ask(queue, asked, timeout=60.0):
    return await asyncio.gather(*(queue.score([c], timeout) for c in asked))


def test_everyone_gets_their_own_answer_in_order():
    model = Model()
    queue = batcher(model, max_tokens=50)
    asked = [[talk(p, 10 * p + r) for r in range(p % 4)] for p in range(20)]

    async def run():
        return await asyncio.gather(*(queue.score(cs, 60.0) for cs in asked))

    found = asyncio.run(run())
    assert found == [[float(c.tokens[-1]) for c in cs] for cs in asked]
    assert queue.num_queued == 0


def test_requests_of_one_prompt_meet_in_one_batch_however_they_came():
    model = Model(seconds=0.02)
    queue = batcher(model, max_tokens=4 + 6)  # a prompt and six responses
    asked = [talk(p, r) for r in range(6) for p in (1, 2, 3)]
    asyncio.run(ask(queue, asked))
    assert model.batches == [[1] * 6, [2] * 6, [3] * 6]


def test_a_batch_keeps_the_budget_with_shared_tokens_counted_once():
    model = Model()
    queue = batcher(model, max_tokens=12)
    asyncio.run(ask(queue, [talk(1, r) for r in range(20)]))
    assert [len(batch) for batch in model.batches] == [8, 8, 4]


def test_a_batch_is_what_is_soon_done_and_parts_no_prompt():
    class Slow(Model):
        def __call__(self, conversations):
            time.sleep(0.005 * len(conversations))
            return super().__call__(conversations)

    model = Slow()
    queue = batcher(model, max_seconds=0.04, max_wait=0.0)
    asked = [[talk(p, r) for r in range(5)] for p in range(12)]

    async def run():
        return await asyncio.gather(*(queue.score(cs, 60.0) for cs in asked))

    asyncio.run(run())
    assert all(len(batch) <= 15 for batch in model.batches)
    prompts = [prompt for batch in model.batches for prompt in set(batch)]
    assert sorted(prompts) == list(range(12))


def test_a_conversation_above_the_budget_is_scored_alone():
    model = Model()
    queue = batcher(model, max_tokens=8)
    assert asyncio.run(ask(queue, [talk(1, 5, size=40), talk(2, 6)])) == [[5.0], [6.0]]
    assert model.batches == [[1], [2]]


def test_the_longest_waiting_goes_first():
    model = Model(seconds=0.05)
    queue = batcher(model, max_tokens=5, max_wait=0.0)

    async def run():
        tasks = []
        for prompt in (3, 1, 2):
            tasks.append(asyncio.create_task(queue.score([talk(prompt, 0)], 60.0)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert model.batches == [[3], [1], [2]]


def test_what_arrives_in_the_wait_joins_the_first_batch():
    model = Model()
    queue = batcher(model, max_wait=0.5)

    async def run():
        tasks = []
        for response in range(5):
            tasks.append(asyncio.create_task(queue.score([talk(1, response)], 60.0)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert model.batches == [[1] * 5]


def test_nobody_waits_for_siblings_that_do_not_come():
    queue = batcher(Model(), max_wait=2.0)
    begun = time.monotonic()
    asyncio.run(ask(queue, [talk(1, 1)]))
    assert time.monotonic() - begun < 1.5


def test_a_request_that_waited_past_its_deadline_is_not_computed():
    model = Model(seconds=0.2)
    queue = batcher(model, max_wait=0.0)

    async def run():
        first = asyncio.create_task(queue.score([talk(1, 1)], 60.0))
        await asyncio.sleep(0.05)
        late = await queue.score([talk(2, 2)], 0.05)
        return await first, late

    first, late = asyncio.run(run())
    assert first == [1.0]
    assert isinstance(late[0], TimeoutError)
    assert model.batches == [[1]]


def test_a_full_queue_turns_requests_away_with_the_time_to_come_back():
    model = Model(seconds=0.1)
    queue = batcher(model, max_queued=4, max_tokens=5, max_wait=0.0)

    async def run():
        tasks = [asyncio.create_task(queue.score([talk(p, p)], 60.0)) for p in range(4)]
        await asyncio.sleep(0.02)  # the first is taken out of the queue
        tasks.append(asyncio.create_task(queue.score([talk(4, 4)], 60.0)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="4 responses wait, at most 4") as full:
            await queue.score([talk(9, 9)], 60.0)
        assert full.value.retry_after >= 1
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [[float(p)] for p in range(5)]


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits():
    queue = batcher(Model(), max_queued=3)
    found = asyncio.run(queue.score([talk(1, r) for r in range(10)], 60.0))
    assert found == [float(r) for r in range(10)]


def test_a_text_that_breaks_the_model_fails_alone():
    queue = batcher(Model(broken=(3,)))
    found = asyncio.run(queue.score([talk(1, r) for r in range(6)], 60.0))
    assert [f for f in found if not isinstance(f, Exception)] == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert str(found[3]) == "this text breaks the model"


def test_a_caller_that_leaves_costs_the_others_nothing():
    model = Model(seconds=0.05)
    queue = batcher(model, max_tokens=5, max_wait=0.0)

    async def run():
        tasks = [asyncio.create_task(queue.score([talk(p, p)], 60.0)) for p in (1, 2, 3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert (found[0], found[2]) == ([1.0], [3.0])
    assert model.batches == [[1], [3]]
    assert queue.num_queued == 0


@pytest.mark.parametrize(
    "config", [{"max_tokens": 0}, {"max_seconds": 0.0}, {"max_wait": -1.0}, {"max_queued": 0}]
)
def test_settings_that_make_no_sense_are_refused(config):
    with pytest.raises(ValueError, match=r"`batch\.max_"):
        BatchConfig(**config)

"""The queue before a model: order, groups, budget, deadlines, overload, failures."""

import asyncio
import math
import threading

import pytest

from panoply.config.serve import BatchConfig
from panoply.model.gather import Tokenized
from panoply.serve.batching import NUM_POLLS, PAUSE_SHARE, WAIT_SHARE, Batcher, Overloaded


def talk(prompt, response, size=4):
    """A conversation whose score is its response."""
    return Tokenized((*[prompt] * size, response), size - 1, size, size + 1)


class Model:
    """Scores a conversation by its last token, remembers its batches, and waits when told to."""

    def __init__(self, broken=()):
        self.batches, self.broken = [], broken
        self.entered, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def __call__(self, conversations):
        """Scores one batch."""
        self.batches.append([c.tokens[0] for c in conversations])
        self.entered.set()
        assert self.may_go_on.wait(60)
        if any(c.tokens[-1] in self.broken for c in conversations):
            raise RuntimeError("this text breaks the model")
        return [float(c.tokens[-1]) for c in conversations]

    async def hold(self, queue):
        """Starts a forward of one conversation, which ends when `may_go_on` is set."""
        self.may_go_on.clear()
        task = asyncio.create_task(queue.score([talk(0, 0)], 60.0))
        await asyncio.to_thread(self.entered.wait, 60)
        return task


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Seconds since the start."""
        return self.now

    async def sleep(self, seconds):
        """Lets time pass, and others run."""
        self.now += seconds
        await asyncio.sleep(0)


def batcher(model, clock=None, **config):
    clock = clock or Clock()
    return Batcher(model, BatchConfig(**config), clock=clock, sleep=clock.sleep)


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
    model = Model()
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
    clock = Clock()

    class Slow(Model):
        def __call__(self, conversations):
            clock.now += 0.005 * len(conversations)
            return super().__call__(conversations)

    model = Slow()
    queue = batcher(model, clock, max_seconds=0.04, max_wait=0.0)
    asked = [[talk(p, r) for r in range(5)] for p in range(12)]

    async def run():
        return await asyncio.gather(*(queue.score(cs, 60.0) for cs in asked))

    asyncio.run(run())
    # The first batch has no speed to go by. Of 13 tokens a prompt in .025 s, .04 s are 20.8.
    assert [len(batch) for batch in model.batches] == [5, 10, 10, 10, 10, 10, 5]
    prompts = [prompt for batch in model.batches for prompt in set(batch)]
    assert sorted(prompts) == list(range(12))


def test_a_conversation_above_the_budget_is_scored_alone():
    model = Model()
    queue = batcher(model, max_tokens=8)
    assert asyncio.run(ask(queue, [talk(1, 5, size=40), talk(2, 6)])) == [[5.0], [6.0]]
    assert model.batches == [[1], [2]]


def test_the_longest_waiting_goes_first():
    model = Model()
    queue = batcher(model, max_tokens=5, max_wait=0.0)

    async def run():
        tasks = [await model.hold(queue)]
        for prompt in (3, 1, 2):
            tasks.append(asyncio.create_task(queue.score([talk(prompt, 0)], 60.0)))
            await asyncio.sleep(0)
        model.may_go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert model.batches == [[0], [3], [1], [2]]


def test_a_batch_is_filled_up_with_what_shares_the_forward_of_its_first():
    model = Model()
    queue = batcher(model, max_tokens=10, max_wait=0.0)
    queue.kind = lambda c: c.tokens[0] % 2

    async def run():
        tasks = [await model.hold(queue)]
        for prompt in (1, 2, 3, 4, 5, 6, 8):
            tasks.append(asyncio.create_task(queue.score([talk(prompt, 0)], 60.0)))
            await asyncio.sleep(0)
        model.may_go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert model.batches == [[0], [1, 3], [2, 4], [5, 6], [8]]


def test_what_arrives_in_the_wait_joins_the_first_batch():
    model, clock, tasks = Model(), Clock(), []
    queue = batcher(model, clock, max_wait=0.5)

    async def sleep(seconds):
        if len(tasks) < 3:
            tasks.append(asyncio.create_task(queue.score([talk(1, len(tasks))], 60.0)))
        await clock.sleep(seconds)

    queue.sleep = sleep

    async def run():
        await queue.score([talk(1, 9)], 60.0)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert model.batches == [[1] * 4]


def test_a_wait_ends_though_more_keep_coming():
    model, clock, tasks = Model(), Clock(), []
    queue = batcher(model, clock, max_wait=0.5)

    async def sleep(seconds):
        tasks.append(asyncio.create_task(queue.score([talk(1, len(tasks))], 60.0)))
        await clock.sleep(seconds)

    queue.sleep = sleep

    async def run():
        await queue.score([talk(1, 9)], 60.0)
        queue.sleep = clock.sleep
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert len(model.batches[0]) == 1 + NUM_POLLS


def test_nobody_waits_for_siblings_that_do_not_come():
    clock = Clock()
    queue = batcher(Model(), clock, max_wait=2.0)
    asyncio.run(ask(queue, [talk(1, 1)]))
    assert clock.now == pytest.approx(2.0 / NUM_POLLS)


def test_a_long_text_waits_longer_for_siblings_but_not_where_none_come():
    model, clock, tasks = Model(), Clock(), []
    queue = batcher(model, clock, max_wait=0.02)

    def forward(conversations):
        clock.now += 0.1 * len(conversations[0].tokens)
        return Model.__call__(model, conversations)

    queue.run = forward

    async def run():
        before = clock.now
        await queue.score([talk(1, 0, size=99)], 60.0)  # 100 tokens, 10 s; no speed is known before
        first_wait = clock.now - before - 10.0
        before = clock.now
        await queue.score([talk(1, 0, size=99)], 60.0)
        alone = clock.now - before - 10.0

        async def sleep(seconds):
            if len(tasks) < 15:
                tasks.append(asyncio.create_task(queue.score([talk(1, len(tasks), 99)], 60.0)))
            await clock.sleep(seconds)

        queue.sleep = sleep
        await queue.score([talk(1, 9, size=99)], 60.0)
        queue.sleep = clock.sleep
        await asyncio.gather(*tasks)
        return first_wait, alone

    first_wait, alone = asyncio.run(run())
    assert first_wait == pytest.approx(0.02 / NUM_POLLS)
    assert alone == pytest.approx(PAUSE_SHARE * 10.0)
    # Pauses of a fiftieth, for a quarter of the forward.
    assert len(model.batches[2]) == 1 + math.ceil(WAIT_SHARE / PAUSE_SHARE)


def test_a_request_that_waited_past_its_deadline_is_not_computed():
    model, clock = Model(), Clock()
    queue = batcher(model, clock, max_wait=0.0)

    async def run():
        first = await model.hold(queue)
        late = asyncio.create_task(queue.score([talk(2, 2)], 0.05))
        await asyncio.sleep(0)
        clock.now += 0.2
        model.may_go_on.set()
        return await first, await late

    first, late = asyncio.run(run())
    assert first == [0.0]
    assert isinstance(late[0], TimeoutError)
    assert model.batches == [[0]]


def test_a_full_queue_turns_requests_away_with_the_time_to_come_back():
    model = Model()
    queue = batcher(model, max_queued=4, max_tokens=5, max_wait=0.0)

    async def run():
        tasks = [await model.hold(queue)]
        tasks += [asyncio.create_task(queue.score([talk(p, p)], 60.0)) for p in range(1, 5)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="4 responses wait, at most 4") as full:
            await queue.score([talk(9, 9)], 60.0)
        assert full.value.retry_after >= 1
        model.may_go_on.set()
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
    model = Model()
    queue = batcher(model, max_tokens=5, max_wait=0.0)

    async def run():
        tasks = [await model.hold(queue)]
        tasks += [asyncio.create_task(queue.score([talk(p, p)], 60.0)) for p in (2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        model.may_go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(run())
    assert (answers[0], answers[2]) == ([0.0], [3.0])
    assert model.batches == [[0], [3]]
    assert queue.num_queued == 0


@pytest.mark.parametrize(
    "config", [{"max_tokens": 0}, {"max_seconds": 0.0}, {"max_wait": -1.0}, {"max_queued": 0}]
)
def test_settings_that_make_no_sense_are_refused(config):
    with pytest.raises(ValueError, match=r"`batch\.max_"):
        BatchConfig(**config)

"""Background work goes on after a fault at any await, and what is known follows the models."""

import asyncio
import time

import httpx2
import pytest

from actors.gateway import Gateway, Model, ModelStatus
from actors.relayed_metrics import RelayedMetrics
from panoply.serve.calls import fingerprint_of
from panoply.serve.supervised import SupervisedLoop
from panoply.wire.request import Chat, ModelAnswer, ScoreRequest
from tests.builders.gateway import Formula, serving

ASK = ScoreRequest(items=(Chat(({"role": "user", "content": "q"},), ("x#1",)),), models=("a",))


def get(app, path):
    async def run():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.get(path)

    return asyncio.run(run())


def loop_of(work, **settings):
    return SupervisedLoop(name="poll", work=work, pause=0.0, deadline=0.05, **settings)


async def raises():
    raise KeyError("SECRET")


async def hangs():
    await asyncio.sleep(60)


@pytest.mark.parametrize("fault", [raises, hangs])
def test_a_loop_logs_a_fault_goes_on_and_tells_its_age(fault, caplog):
    now, script = [100.0], [fault, None, fault]

    async def work():
        now[0] += 10
        step = script.pop(0)
        if step:
            await step()

    async def run():
        ages = []
        for _ in range(3):
            await loop.round()
            ages.append(loop.age)
        return ages

    loop = loop_of(work, clock=lambda: now[0], max_age=30.0)
    assert asyncio.run(run()) == [10, 0, 10]
    assert loop.is_well
    now[0] += 30
    assert not loop.is_well
    lines = [record.getMessage() for record in caplog.records if record.name == "ray.serve"]
    assert len(lines) == 2
    assert "poll failed: " in lines[0]
    assert "SECRET" not in caplog.text


def test_a_loop_runs_until_its_context_ends_whatever_it_raises():
    rounds = []

    async def work():
        rounds.append(1)
        raise ValueError

    async def run():
        with loop_of(work).running():
            while len(rounds) < 5:
                await asyncio.sleep(0)
        num_rounds = len(rounds)
        await asyncio.sleep(0.01)
        return num_rounds

    assert asyncio.run(run()) == len(rounds) == 5


def test_a_gateway_lives_while_its_loops_do_and_is_ready_while_a_model_can_answer():
    now = [0.0]
    loop = loop_of(hangs, clock=lambda: now[0])
    app, gateway = serving(Formula("a"), Formula("b"), loops=(loop,))
    asyncio.run(loop.round())
    for state, status in (("starting", 503), ("ready", 200), ("idle", 200), ("failed", 503)):
        statuses = {"a": ModelStatus(state, ""), "b": ModelStatus("failed", "no weights")}
        asyncio.run(gateway.learn(statuses))
        assert get(app, "/ready").status_code == status
        assert get(app, "/health").status_code == 200
        assert get(app, "/ready").json()["models"] == {"a": state, "b": "failed"}
    now[0] = 31.0
    answer = get(app, "/health")
    assert answer.status_code == 503
    assert answer.json()["loops"] == {"poll": 31.0}
    assert "poll" in answer.json()["status"]


class Versioned:
    """A model whose weights change."""

    def __init__(self, weights="v1", objectives=("helpfulness",)):
        self.description = {
            "objectives": [{"name": name} for name in objectives],
            "provenance": {"weights": weights},
        }
        self.num_told = 0
        self.fault = None

    async def about(self):
        """Says what it is."""
        self.num_told += 1
        if self.fault:
            await self.fault()
        return self.description

    async def ask(self, request):
        """Scores."""
        items = Formula("a")
        answer = await items.ask(request)
        return ModelAnswer(
            model="a",
            items=answer.items,
            provenance=self.description["provenance"],
            fingerprint=fingerprint_of(self.description),
        )


def gateway_of(**models):
    return Gateway({name: Model(m.ask, m.about) for name, m in models.items()}, "a", 30.0)


def weights_told(gateway, name="a"):
    return gateway.entry(name).get("provenance", {}).get("weights")


@pytest.mark.parametrize("notices", ["deployment", "answer"])
def test_a_live_upgrade_is_told_within_a_poll_by_its_deployment_or_by_its_first_answer(notices):
    model = Versioned()
    gateway = gateway_of(a=model)
    status = ModelStatus("ready", "", "1 RUNNING")

    async def run():
        await gateway.learn({"a": status})
        await gateway.learn({"a": status})
        assert (weights_told(gateway), model.num_told) == ("v1", 1)
        model.description = Versioned("v2", ("helpfulness", "safety")).description
        if notices == "deployment":
            await gateway.learn({"a": status._replace(deployed="2 DEPLOYING")})
            await gateway.learn({"a": status._replace(deployed="2 RUNNING")})
        else:
            answer = await gateway.score(ASK)
            assert answer.models[0].provenance == {"weights": "v2"}
            await gateway.learn({"a": status})
        assert weights_told(gateway) == "v2"
        assert gateway.models["a"].objectives == ["helpfulness", "safety"]
        num_told = model.num_told
        await gateway.score(ASK)
        await gateway.learn(
            {"a": status if notices == "answer" else status._replace(deployed="2 RUNNING")}
        )
        assert model.num_told == num_told

    asyncio.run(run())


@pytest.mark.parametrize("fault", [raises, hangs])
def test_a_model_that_cannot_describe_itself_freezes_no_other_and_is_asked_again(
    fault, monkeypatch, caplog
):
    monkeypatch.setattr("actors.gateway.ABOUT_SECONDS", 0.1)
    a, b, c = Versioned(), Versioned(), Versioned()
    a.fault = b.fault = fault
    gateway = gateway_of(a=a, b=b, c=c)

    async def run():
        begun = time.monotonic()
        await gateway.learn({name: ModelStatus("ready", "") for name in "abc"})
        assert time.monotonic() - begun < 3  # together, and not one after the other
        assert [weights_told(gateway, name) for name in "abc"] == [None, None, "v1"]
        assert {model.state for model in gateway.models.values()} == {"ready"}
        a.fault = None
        await gateway.learn({name: ModelStatus("ready", "") for name in "abc"})
        assert [weights_told(gateway, name) for name in "abc"] == ["v1", None, "v1"]

    asyncio.run(run())
    assert "SECRET" not in caplog.text


def test_a_model_that_failed_is_asked_as_soon_as_it_recovers():
    gateway = gateway_of(a=Versioned())

    async def run():
        await gateway.learn({"a": ModelStatus("failed", "lost its GPU")})
        failed = (await gateway.score(ASK)).models[0].items[0][0]
        await gateway.learn({"a": ModelStatus("ready", "")})
        return failed, (await gateway.score(ASK)).models[0].items[0][0]

    failed, healed = asyncio.run(run())
    assert "lost its GPU" in failed.error
    assert healed.score == 1.0


def test_many_who_ask_for_metrics_at_once_cost_the_nodes_one_request():
    now, asked = [0.0], []

    async def agents():
        asked.append(now[0])
        await asyncio.sleep(0)
        return []

    relayed = RelayedMetrics(agents, lambda: now[0])

    async def crowds():
        for seconds in (0.0, 0.5, 1.0, 2.5):
            now[0] = seconds
            await asyncio.gather(*(relayed.text() for _ in range(50)))

    asyncio.run(crowds())
    assert asked == [0.0, 1.0, 2.5]

"""A served bandit: decisions are in the log before they are answered, and outcomes count once."""

import asyncio
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actors.bandit_contexts import StateContexts, num_features
from actors.bandit_replica import BanditReplica
from actors.gateway import Gateway, Model
from actors.http import make_app
from actors.online_bandit import OnlineBanditActor, RemoteBandit
from panoply.bandit.bandits import Exp3, LinUCB, Thompson
from panoply.bandit.contexts import word_contexts
from panoply.bandit.update import select_arms, uniforms, update
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.config.doctor import DoctorConfig
from panoply.config.serve import ServedModelConfig
from panoply.config.served_bandit import StateContext
from panoply.laser.log import Log, LogDiffers, column, matrix, replay, state_version, to_choice
from panoply.laser.online import AskedPrompt, OnlineBandit
from panoply.laser.rounds import initial_state
from panoply.lease import LeaseLost
from panoply.report.progress import RunLogger
from panoply.scorers.bandit.opening import read_bandit
from panoply.scorers.bandit.scorer import BanditScorer, WordContexts
from panoply.scorers.where import key_variables, local_models, open_scorer, parse_where
from panoply.serve.calls import FeedbackRequest, ReplicaRequest
from panoply.wire.client import Client
from panoply.wire.feedback import Outcome
from panoply.wire.request import Chat, RequestError, Score, ScoreRequest, Tokens
from tests.builders.app_server import serving
from tests.builders.gateway import intake, no_agents, nothing_beside
from workflows.cluster.resolve_model import check_logs, resolve_model
from workflows.doctor import run_doctor

ROOT = Path(__file__).parents[1]
ARMS = ("ann", "bob", "cy")
VERIFIER = SelectorConfig(bandit=Thompson(), signal=SignalConfig(name="verifier"), seed=3)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1e9

    def __call__(self):
        """Returns the time."""
        return self.now


def bandit(folder, config=VERIFIER, *, clock=None, hold=60.0, arms=ARMS, context=None):
    size = 5 if isinstance(config.bandit, LinUCB | Thompson) else 0
    return OnlineBandit(
        config,
        arms,
        size,
        str(folder),
        context=context or {"kind": "words"},
        reward_range=(0.0, 1.0),
        hold_seconds=hold,
        clock=clock or Clock(),
    )


def asked(name, caller="key", size=5):
    rng = np.random.default_rng(sum(map(ord, name)))
    return AskedPrompt(name, caller, rng.normal(size=size) / 3)


def told(choice, **measures):
    return Outcome(decision=choice.decision, measures=measures)


def statuses(answers):
    return [answer.status for answer in answers]


def record_of(folder):
    return Log(str(folder), ARMS, in_rounds=False).read()


# Decisions, and the outcomes that come of them


def test_a_decision_is_in_the_log_when_it_is_answered(tmp_path):
    live = bandit(tmp_path)
    for i in range(5):
        (choice,) = live.decide([asked(f"p{i}")])
        logged = record_of(tmp_path).decisions.to_pylist()[-1]
        assert (logged["arm"], logged["propensity"]) == (choice.arm, choice.propensity)
        assert (logged["decision_id"], logged["sources"]) == (choice.decision, ["key"])
        assert logged["probabilities"][ARMS.index(choice.arm)] == choice.propensity


def test_outcomes_count_once_however_late_often_and_in_whatever_order_they_come(tmp_path):
    live = bandit(tmp_path)
    first, second, third = live.decide([asked(f"p{i}") for i in range(3)])
    (late,) = bandit(tmp_path / "other").decide([asked("p")])
    outcomes = [told(third, reward=1.0), told(late, reward=1.0), told(first, reward=0.25)]
    answers = live.learn("key", outcomes)
    assert statuses(answers) == ["counted", "unknown", "counted"]
    assert [answer.reward for answer in answers] == [1.0, None, 0.25]
    before = live.status()
    again = [told(first, verifier=0.25), told(third, reward=0.0), told(third, reward=1.0)]
    assert statuses(live.learn("key", again)) == ["repeated", "differs", "repeated"]
    assert live.status() == before
    for i in range(3, 40):
        live.decide([asked(f"p{i}")])
    twice = [told(second, reward=0.5), told(second, reward=0.5), told(second, reward=0.6)]
    assert statuses(live.learn("key", twice)) == ["counted", "repeated", "differs"]
    assert record_of(tmp_path).rewards_N.tolist() == [1.0, 0.25, 0.5]
    assert live.state.bandit.pulls_K.sum() == 3


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"reward": 1.1}, r"`reward` must be within \[0, 1\], got 1.1"),
        ({"lose": 0.5}, "`lose` is no measurement: there is reward, loss"),
        ({"reward": 0.5, "verifier": 0.5}, "name one of both"),
        ({}, "must have a number"),
    ],
)
def test_a_number_that_is_none_is_refused_alone_and_leaves_its_decision_open(
    tmp_path, measures, message
):
    live = bandit(tmp_path)
    one, other = live.decide([asked("a"), asked("b")])
    answers = live.learn("key", [told(one, **measures), told(other, reward=1.0)])
    assert statuses(answers) == ["refused", "counted"]
    assert re.search(message, answers[0].error)
    assert statuses(live.learn("key", [told(one, reward=1.0)])) == ["counted"]


def test_no_other_key_teaches_or_learns_of_a_decision(tmp_path):
    live = bandit(tmp_path)
    (choice,) = live.decide([asked("same", "ann's")])
    (other,) = live.decide([asked("same", "bob's")])
    assert other.decision != choice.decision
    for wrong in (
        choice.decision,
        "",
        "-",
        "zz-1",
        "ff-1-2",
        "0-",
        "1" * 99,
        "0" + choice.decision,
    ):
        answers = live.learn("bob's", [Outcome(decision=wrong, measures={"reward": 0.0})])
        assert statuses(answers) == ["unknown"]
    assert live.status().num_outcomes == 0
    assert statuses(live.learn("ann's", [told(choice, reward=1.0)])) == ["counted"]


def test_a_prompt_keeps_its_decision_until_its_outcome_or_the_time_is_over(tmp_path):
    clock = Clock()
    live = bandit(tmp_path, clock=clock)
    first, same, other = live.decide([asked("p"), asked("p"), asked("q")])
    assert first == same != other
    assert live.decide([asked("p")]) == [first]
    assert bandit(tmp_path, clock=clock).decide([asked("p")]) == [first]  # after a restart too

    live = bandit(tmp_path, clock=clock)
    live.learn("key", [told(first, reward=1.0)])
    (second,) = live.decide([asked("p")])
    assert second.decision != first.decision
    clock.now += 61
    (third,) = live.decide([asked("p")])
    assert third.decision != second.decision
    live.learn("key", [told(second, reward=1.0)])  # of an earlier one: the held one stays
    assert live.decide([asked("p")]) == [third]
    alone, again = bandit(tmp_path / "alone", hold=0).decide([asked(""), asked("")])
    assert alone.decision != again.decision


# Deaths, replay, and one writer


@pytest.mark.parametrize(
    ("kind", "signal"),
    [(Thompson(), "verifier"), (LinUCB(), "negative_loss"), (Exp3(), "advantage")],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_bandit_that_dies_after_every_call_goes_on_with_the_same_bits(tmp_path, kind, signal):
    config = replace(VERIFIER, bandit=kind, signal=SignalConfig(name=signal), suspend_rounds=4)
    rng, clock = np.random.default_rng(0), Clock()
    size = 0 if isinstance(kind, Exp3) else 5
    live, open_choices = bandit(tmp_path, config, clock=clock), []
    for i in range(25):
        clock.now += 20 * rng.random()
        prompts = [asked(f"p{i}-{j}", size=size) for j in range(rng.integers(1, 4))]
        open_choices += live.decide(prompts)
        if rng.random() < 0.6:
            rng.shuffle(open_choices)
            chosen, open_choices = open_choices[:2], open_choices[2:]
            outcomes = [told(c, reward=rng.random(), loss=rng.random()) for c in chosen]
            if rng.random() < 0.3:
                outcomes[0] = Outcome(decision=chosen[0].decision, failure="no score")
            live.learn("key", outcomes)
        before, live = live, bandit(tmp_path, config, clock=clock)
        assert live.status() == before.status()
        assert live.status().replayed_alike
        assert live.state.counted == before.state.counted
        for one in (live, before):
            one.held.expire(clock())
        assert list(live.held.names.items()) == list(before.held.names.items())
        assert repr(live.state.signals) == repr(before.state.signals)
    assert live.state.bandit.visits_K.sum() > 10


def test_a_log_replays_to_the_same_decisions_and_the_same_state(tmp_path):
    live = bandit(tmp_path)
    for i in range(30):
        choices = live.decide([asked(f"p{i}-{j}") for j in range(3)])
        live.learn("key", [told(c, reward=float(c.arm == "bob")) for c in choices[: i % 3]])
    record = record_of(tmp_path)
    start = initial_state(VERIFIER, 3, 5)
    assert state_version(replay(record, start)) == live.status().state

    # Segment by segment: each decision comes out again of the state that led to it.
    log, state = Log(str(tmp_path), ARMS, in_rounds=False), start
    by_id = {row["decision_id"]: i for i, row in enumerate(record.decisions.to_pylist())}
    for number in range(live.state.number):
        table = log.read_segment("decisions", number)
        if table is None:
            rewards = log.read_segment("rewards", number)
            rows = [by_id[name] for name in rewards["decision_id"].to_pylist()]
            choice = to_choice(record.decisions.take(rows), ARMS)
            state = update(state, choice, column(rewards, "reward"))
            continue
        draws = uniforms(VERIFIER.seed, number, table["decision_id"].to_pylist())
        choice = select_arms(VERIFIER.bandit, state, matrix(table["context"]), draws)
        assert [ARMS[k] for k in choice.arms_B] == table["arm"].to_pylist()
        assert choice.propensities_BK.tolist() == table["probabilities"].to_pylist()
        assert set(table["state"].to_pylist()) == {state_version(state)}
    assert state_version(state) == live.status().state


def test_outcomes_that_come_together_teach_what_they_teach_one_by_one(tmp_path):
    config = replace(VERIFIER, signal=SignalConfig(name="negative_loss", window=6))
    live = bandit(tmp_path / "one", config)
    choices = live.decide([asked(f"p{i}") for i in range(12)])
    (tmp_path / "all").mkdir()
    together = bandit(tmp_path / "all", config)
    for path in (tmp_path / "one").glob("*.parquet"):
        (tmp_path / "all" / path.name).write_bytes(path.read_bytes())
    outcomes = [told(c, loss=(7 * i) % 5) for i, c in enumerate(choices)]
    for outcome in outcomes:
        live.learn("key", [outcome])
    together.learn("key", outcomes)
    assert live.status().state == together.status().state
    assert np.isfinite(record_of(tmp_path / "one").rewards_N).sum() == 8  # with a history


def test_a_second_writer_takes_over_and_the_first_writes_nothing_more(tmp_path):
    first = bandit(tmp_path)
    (choice,) = first.decide([asked("p")])
    second = bandit(tmp_path)
    (other,) = first.decide([asked("q")])  # it is being started, and ends nobody yet
    assert second.decide([asked("q")]) == [other]
    for _ in range(2):
        with pytest.raises(LeaseLost, match="taken over"):
            first.decide([asked("r")])
        with pytest.raises(LeaseLost):
            first.learn("key", [told(choice, reward=1.0)])
    assert record_of(tmp_path).decisions.num_rows == 2
    assert statuses(second.learn("key", [told(choice, reward=1.0)])) == ["counted"]
    assert second.decide([asked("p2")])


def test_a_log_of_another_bandit_or_with_a_gap_is_refused(tmp_path):
    live = bandit(tmp_path)
    for i in range(3):
        live.decide([asked(f"p{i}")])
    with pytest.raises(LogDiffers, match="other context"):
        bandit(tmp_path, context={"kind": "state"})
    with pytest.raises(LogDiffers, match="other arms"):
        bandit(tmp_path, arms=ARMS[::-1])
    (tmp_path / "decisions-00000001.parquet").unlink()
    with pytest.raises(ValueError, match="lacks segment 1, but holds later"):
        bandit(tmp_path).open()


# The scorer, its arms, and what it learns

REWARDS = """\
def count(response):
    return float(response.count("1"))

def rhyme(response):
    return float(response.count("ee"))

def flat(response):
    return -float(len(response))
"""
FILE = """\
arms:
  count: {where: "function:rewards.py:count"}
  rhyme: {where: "function:rewards.py:rhyme"}
bandit: {kind: thompson, reward_std: 0.3}
context: {kind: words}
log: log
"""


def write(folder, text=FILE, rewards=REWARDS):
    (folder / "rewards.py").write_text(rewards)
    (folder / "bandit.yaml").write_text(text)
    return folder / "bandit.yaml"


def replica_of(path, actor=None):
    """A replica and the bandit behind it, in this process."""
    config = ServedModelConfig(name="router", where=f"bandit:{path}")
    size = num_features(read_bandit(path).context)
    actor = actor or OnlineBanditActor("router", str(path), size)
    remote = RemoteBandit(actor.decide, actor.learn)
    return BanditReplica(config, bandit=remote), actor


def chat(text, *responses):
    return Chat(({"role": "user", "content": text},), responses or ("1", "ee 1"))


def call(*items, caller="key", timeout=30.0):
    return ReplicaRequest(items=items, bucket=0, timeout=timeout, caller=caller)


def choices_of(answer):
    return [item[0].details.choice for item in answer.items]


def test_the_right_arm_wins_by_the_kind_of_the_prompt(tmp_path):
    rng = np.random.default_rng(0)
    things = ["apples", "pears", "sheep", "geese", "trees", "seeds", "wheels", "feet"]

    def item(kind):
        thing, other = rng.choice(things, 2)
        if kind == "count":
            return chat(f"Add {thing} and {other}: how many are there in all?")
        return chat(f"Write a short poem with a rhyme on {thing} and {other}.")

    async def play(rounds):
        replica, _ = replica_of(write(tmp_path))
        share, propensities = [], []
        for _ in range(rounds):
            kinds = rng.choice(["count", "rhyme"], 4).tolist()
            answer = await replica.answer(call(*map(item, kinds)))
            choices = choices_of(answer)
            right = {c: float(c.arm == k) for c, k in zip(choices, kinds, strict=True)}
            outcomes = tuple(told(choice, reward=reward) for choice, reward in right.items())
            feedback = FeedbackRequest(outcomes=outcomes, caller="key", timeout=9.0)
            answers = await replica.feedback(feedback)
            assert {one.status for one in answers} == {"counted"}
            share.append(np.mean([one.reward for one in answers]))
            propensities.append([choice.propensity for choice in choices])
        return propensities[0], share

    propensities, share = asyncio.run(play(40))
    assert set(propensities) == {0.5}  # at first it knows nothing
    assert np.mean(share[-15:]) > 0.9


def test_each_item_is_scored_by_its_arm_and_items_of_one_prompt_by_one(tmp_path):
    replica, _ = replica_of(write(tmp_path))
    items = [chat("same", "1 1"), chat("same", "ee"), chat("other", "1", "ee ee"), Tokens(((1,),))]

    answer = asyncio.run(replica.answer(call(*items)))
    *choices, none = choices_of(answer)
    assert choices[0] == choices[1]
    for item, row, choice in zip(items, answer.items, choices, strict=False):
        text = {"count": "1", "rhyme": "ee"}[choice.arm]
        assert [score.score for score in row] == [r.count(text) for r in item.responses]
    assert none is None
    assert "tokenizer" in answer.items[3][0].error
    about = replica.about()
    assert (about["kind"], about["arms"], about["bandit"], about["signal"]) == (
        "bandit",
        ["count", "rhyme"],
        "thompson",
        "verifier",
    )


class Arm:
    """An arm that gives every response the same score, or none."""

    def __init__(self, **score):
        self.answer = Score(**score)

    async def score(self, items):
        """Answers."""
        return tuple((self.answer,) * len(item.responses) for item in items)


@pytest.mark.parametrize("transient", [True, False])
def test_an_arm_that_is_down_is_left_alone_and_one_that_refuses_a_text_is_not(tmp_path, transient):
    path = write(tmp_path)
    _, actor = replica_of(path)
    arms = {"count": Arm(score=1.0), "rhyme": Arm(error="none", transient=transient)}
    remote = RemoteBandit(actor.decide, actor.learn)
    scorer = BanditScorer(read_bandit(path), arms, WordContexts(63), remote)

    async def ask():
        rows = [(await scorer.score_for("key", [chat(f"ask {i}")]))[0][0] for i in range(20)]
        return rows, await actor.status()

    rows, status = asyncio.run(ask())
    chosen = [row.details.choice.arm for row in rows]
    assert [bool(row.error) for row in rows] == [arm == "rhyme" for arm in chosen]
    assert chosen.count("rhyme") == 1 if transient else chosen.count("rhyme") > 0
    assert [one.arm for one in status.suspended] == ["rhyme"] * transient
    assert actor.bandit.state.bandit.rejected_K.tolist() == [0, transient]


def test_agreement_with_the_other_arms_teaches_on_the_stated_share(tmp_path):
    text = """\
arms:
  count: {where: "function:rewards.py:count"}
  long: {where: "function:panoply.serve.verifiers:length"}
  odd: {where: "function:rewards.py:flat"}
bandit: {kind: epsilon-greedy, epsilon: 0.3}
signal: {name: agreement}
agreement_share: 0.5
hold_seconds: 0
seed: 7
log: log
"""
    path = write(tmp_path, text)

    async def play():
        replica, actor = replica_of(path)
        choices = []
        for i in range(80):
            answer = await replica.answer(call(chat(f"question {i}", "1", "1 1 1")))
            choices += choices_of(answer)
            await asyncio.gather(*replica.scorer.checks)
        return choices, actor.bandit

    choices, live = asyncio.run(play())
    arms = ("count", "long", "odd")
    rewards = Log(str(tmp_path / "log"), arms, in_rounds=False).read().rewards
    checked = {c.decision for c in choices if uniforms(8, 0, [c.decision])[0] < 0.5}
    assert set(rewards["decision_id"].to_pylist()) == checked
    assert 15 < len(checked) < 65
    expected = {"count": 0.5, "long": 0.5, "odd": 0.0}
    for row in rewards.to_pylist():
        assert row["reward"] == expected[row["arm"]]
    assert live.state.bandit.mean_K[2] == 0 < live.state.bandit.mean_K[0]


def test_requests_at_the_same_time_share_a_record(tmp_path):
    replica, actor = replica_of(write(tmp_path))

    async def ask():
        calls = [replica.answer(call(chat(f"question {i}"))) for i in range(50)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    assert len({choices_of(answer)[0].decision for answer in answers}) == 50
    assert actor.bandit.state.number < 25


def test_a_replica_whose_log_was_taken_over_answers_with_the_reason_and_no_score(tmp_path):
    path = write(tmp_path)
    first, _ = replica_of(path)
    second, _ = replica_of(path)

    async def ask(replica, text):
        return await replica.answer(call(chat(text)))

    asyncio.run(ask(first, "a"))
    asyncio.run(ask(second, "b"))
    refused = asyncio.run(ask(first, "c"))
    assert isinstance(refused, RequestError)
    assert (refused.status, "another server" in refused.message) == (503, True)


# HTTP


def app_of(path, **settings):
    """The gateway before one bandit in this process, which knows what it is."""
    replica, actor = replica_of(path)

    async def about():
        return replica.about()

    model = Model(replica.answer, about, learn=replica.feedback, state="ready")
    model.description = replica.about()
    length = Model(replica.answer, about, state="ready", description={"kind": "function"})
    gateway = Gateway({"router": model, "length": length}, "router", 30.0)
    checks = intake(open_models=("router", "length"), **settings)
    return make_app(gateway, checks, no_agents, nothing_beside), actor


PROMPT = [{"role": "user", "content": "How many ones are there?"}]


def test_every_dialect_carries_the_decision_in_its_body_or_in_a_header(tmp_path):
    import httpx2

    app, _actor = app_of(write(tmp_path, FILE + "hold_seconds: 0\n"))
    payloads = {
        "/v1/rewards": {"items": [{"prompt": PROMPT, "responses": ["1", "ee"]}]},
        "/get_reward": {"query": ["ask 1", "ask 2"], "prompts": ["ask ", "ask "]},
        "/slime": {"prompt": PROMPT, "response": "1"},
        "/slime/details": {"prompt": PROMPT, "response": "1"},
        "/classify": {"input": ["a 1"]},
        "/v1/score": {"text_1": "a", "text_2": ["1"]},
        "/v1/rerank": {"query": "a", "documents": ["1", "ee"]},
        "/predict": {"inputs": "a 1"},
    }
    with serving(app) as url, httpx2.Client(base_url=url, timeout=30) as http:
        for path, payload in payloads.items():
            answer = http.post(path, json=payload)
            assert answer.status_code == 200, (path, answer.text)
            ids = re.findall(r"router=([\w-]+)", answer.headers["X-Panoply-Decisions"])
            assert ids, path
            outcomes = [{"decision": name, "reward": 1.0} for name in dict.fromkeys(ids)]
            told_ = http.post("/v1/feedback", json={"outcomes": outcomes}).json()
            assert {one["status"] for one in told_["outcomes"]} == {"counted"}, path
            if path != "/slime":
                assert ids[0] in json.dumps(answer.json()), path
        entry = http.post("/v1/rewards", json=payloads["/v1/rewards"]).json()["results"][0]
        assert {"arm", "propensity", "decision"} < set(entry["items"][0][0])
        many = {"items": [{"prompt": PROMPT, "responses": ["1"]}] * 65}
        assert "X-Panoply-Decisions" not in http.post("/v1/rewards", json=many).headers


def test_a_client_asks_tells_and_is_answered_one_by_one(tmp_path):
    app, _ = app_of(write(tmp_path))
    item = chat("How many ones?", "1", "11")
    with serving(app) as url, Client(url) as client:
        (model,) = client.score(ScoreRequest(items=(item,), models=("router",))).models
        choice = model.items[0][0].details.choice
        assert 0 < choice.propensity <= 1
        outcomes = [told(choice, reward=1.0), Outcome(decision="1-2-3", measures={"reward": 1.0})]
        assert statuses(client.feedback("router", outcomes)) == ["counted", "unknown"]
        assert statuses(client.feedback("router", outcomes)) == ["repeated", "unknown"]


@pytest.mark.parametrize(
    ("payload", "status", "message"),
    [
        ({}, 400, "outcomes"),
        ({"outcomes": []}, 400, "outcomes"),
        ({"outcomes": [{"reward": 1.0}]}, 400, "decision"),
        ({"outcomes": [{"decision": "a", "reward": "1"}]}, 400, "reward"),
        ({"outcomes": [{"decision": "a", "reward": True}]}, 400, "reward"),
        ({"outcomes": [{"decision": "a" * 129}]}, 400, "decision"),
        ({"outcomes": [{"decision": "a"}], "more": 1}, 400, "more"),
        ({"outcomes": [{"decision": "a"}] * 11}, 413, "11 outcomes in one request, at most 10"),
        ({"outcomes": [{"decision": "a"} | {f"n{i}": i for i in range(17)}]}, 413, "16 numbers"),
        ({"model": "no", "outcomes": [{"decision": "a"}]}, 404, "no model is called 'no'"),
        ({"model": "length", "outcomes": [{"decision": "a"}]}, 400, "'length' is no bandit"),
    ],
)
def test_wrong_feedback_is_refused_whole(tmp_path, payload, status, message):
    from starlette.testclient import TestClient

    app, _actor = app_of(write(tmp_path), max_responses=10)
    answer = TestClient(app, base_url="http://localhost").post("/v1/feedback", json=payload)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_feedback_asks_for_the_model_s_key_and_another_key_teaches_nothing(tmp_path):
    from starlette.testclient import TestClient

    app, _actor = app_of(write(tmp_path), keys={"router": ("one", "two")})
    client = TestClient(app, base_url="http://localhost")
    headers = {key: {"X-API-Key": key} for key in ("one", "two", "wrong")}
    items = [{"prompt": PROMPT, "responses": ["1"]}]
    answer = client.post("/v1/rewards", json={"items": items}, headers=headers["one"]).json()
    name = answer["results"][0]["items"][0][0]["decision"]
    outcomes = {"outcomes": [{"decision": name, "reward": 0.0}]}
    for path in ("/v1/feedback", "/models/router/v1/feedback"):
        assert client.post(path, json=outcomes).status_code == 401
        assert client.post(path, json=outcomes, headers=headers["wrong"]).status_code == 401
        told_ = client.post(path, json=outcomes, headers=headers["two"]).json()
        assert told_["outcomes"][0]["status"] == "unknown"
    told_ = client.post("/v1/feedback", json=outcomes, headers=headers["one"]).json()
    assert told_["outcomes"][0]["status"] == "counted"


def test_feedback_counts_for_the_rate_of_its_key(tmp_path):
    from starlette.testclient import TestClient

    app, _ = app_of(write(tmp_path), rate=1.0)
    client = TestClient(app, base_url="http://localhost")
    outcomes = {"outcomes": [{"decision": "a", "reward": 0.0}]}
    codes = [client.post("/v1/feedback", json=outcomes).status_code for _ in range(2)]
    assert codes == [200, 429]


# Files


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("log: log", "lgo: log", 6, "`lgo` is no setting: there is log"),
        ("kind: thompson", "kind: tomson", 4, "`bandit.kind` must be one of .*'thompson'"),
        ("reward_std: 0.3", "std: 0.3", 4, "`bandit.std` is no setting: there is reward_std"),
        ("reward_std: 0.3", "reward_std: -1", 4, "`bandit.reward_std` must be positive"),
        ("reward_std: 0.3", "reward_std: much", 4, "`bandit.reward_std`: input should be a valid"),
        ("kind: thompson, reward_std: 0.3", "kind: exp3", 4, "'exp3' needs `context.kind`"),
        ("context: {kind: words}", "", 4, "'thompson' needs `context.kind` to be one of"),
        ("kind: thompson, reward_std: 0.3", "kind: moss", 4, "'moss' needs `horizon`"),
        ("kind: words", "kind: words, size: 0", 5, "`size` must be within"),
        ("kind: words", "kind: word", 5, "`context.kind` must be one of"),
        ("kind: words", "kind: state, model: /nowhere", 5, "`context.model`: .*nowhere"),
        ("log: log", "log: log\nsignal: {name: held_out}", 7, "`signal.name` must be one"),
        ("log: log", "log: log\nagreement_share: 0.1", 7, "`agreement_share` must be 0 with"),
        ("log: log", "log: log\nreward_range: [1, 0]", 7, "`reward_range` must be"),
        ("rewards.py:count", "rewards.py:none", 2, "`arms.count.where`: .*none"),
        ("function:rewards.py:count", "bandit:bandit.yaml", 2, "is no arm of another"),
        ("function:rewards.py:count", "replay:none.jsonl", 2, "`arms.count.where`: .*none.jsonl"),
        ("function:rewards.py:count", "nowhere", 2, "`arms.count.where`: .*no folder"),
        ('count"}', 'count", cost: 2}', 2, "`cost` must be within"),
        ('  rhyme: {where: "function:rewards.py:rhyme"}\n', "", 1, "two arms or more"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line(tmp_path, old, new, line, message):
    assert old in FILE
    path = write(tmp_path, FILE.replace(old, new))
    config = ServedModelConfig(name="router", where=f"bandit:{path}")
    with pytest.raises(ValueError, match=f"(?i){message}") as caught:
        resolve_model(config, is_served=True)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "log").exists()


def test_a_bandit_runs_in_a_server_alone_and_elsewhere_is_refused_with_the_way(tmp_path):
    path = write(tmp_path)
    config = ServedModelConfig(name="router", where=f"bandit:{path}")
    composite = tmp_path / "c.yaml"
    composite.write_text(
        "parts:\n  a: {where: bandit:bandit.yaml}\n"
        "  b: {where: function:rewards.py:count}\nrule: {kind: sum}\nscale: raw\n"
    )
    part = ServedModelConfig(name="both", where=f"combine:{composite}")
    for refused in (partial(resolve_model, config), partial(open_scorer, part)):
        with pytest.raises(ValueError, match=r"is a bandit, which writes.*jobs\.serve"):
            refused()
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.yaml"):
        resolve_model(ServedModelConfig(name="m", where="bandit:nowhere.yaml"), is_served=True)


def test_two_bandits_of_a_server_do_not_write_one_log(tmp_path):
    where = f"bandit:{write(tmp_path)}"
    (tmp_path / "other.yaml").write_text(FILE.replace("log: log", f"log: {tmp_path}/sub/../log"))
    other = ServedModelConfig(name="b", where=f"bandit:{tmp_path}/other.yaml")
    check_logs([other])
    with pytest.raises(ValueError, match="'a' and 'b' would write one log"):
        check_logs([ServedModelConfig(name="a", where=where), other])


def test_keys_and_models_of_all_arms_are_known_before_anything_is_opened(tmp_path):
    (tmp_path / "model").mkdir()
    text = FILE.replace("function:rewards.py:count", "model").replace(
        "function:rewards.py:rhyme", "vllm+http://host:1?key_variable=ARM_KEY#m"
    )
    where = f"bandit:{write(tmp_path, text)}"
    assert key_variables(parse_where(where)) == ["ARM_KEY"]
    (model,) = local_models(ServedModelConfig(name="router", where=where))
    assert (model.name, model.where) == ("count", str(tmp_path / "model"))


def test_the_doctor_asks_every_arm_and_reads_the_log_without_writing_it(tmp_path):
    path = write(tmp_path)

    def findings():
        found = run_doctor(DoctorConfig(model=f"bandit:{path}"), RunLogger())
        return {finding["check"]: finding for finding in found}

    before = findings()
    assert {one["verdict"] for one in before.values()} == {"ok"}
    assert "is empty" in before["log"]["finding"]
    assert not (tmp_path / "log").exists()
    replica, actor = replica_of(path)

    async def play():
        answer = await replica.answer(call(chat("a"), chat("b")))
        outcomes = [told(c, reward=1.0) for c in choices_of(answer)[:1]]
        await actor.learn("key", outcomes)
        return (await actor.status()).state

    state = asyncio.run(play())
    after = findings()["log"]
    assert after["values"]["state"] == state
    assert after["finding"].startswith("2 decisions, 1 outcomes, 1 rewards")
    write(tmp_path, FILE.replace("0.3", "0.4"))
    assert findings()["log"]["verdict"] == "fail"


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "bandits").glob("*.yaml")))
def test_the_examples_can_be_read(path):
    config = read_bandit(path)
    assert config.selector.signal.name


# Contexts


def test_hashed_words_are_of_unit_length_and_tell_kinds_of_prompts_apart():
    texts = ["Add two and three", "add THREE and two", "Write a poem on snow", ""]
    contexts = word_contexts(texts, 63)
    assert contexts.shape == (4, 64)
    assert np.linalg.norm(contexts[:3], axis=1) == pytest.approx(1)
    assert contexts[3, 1:].tolist() == [0] * 63
    assert np.array_equal(contexts[0], contexts[1])
    assert contexts[0] @ contexts[2] < 0.8
    assert np.array_equal(word_contexts(texts[2:3], 63), contexts[2:3])


def test_states_of_a_model_are_contexts_that_no_neighbor_changes(tiny_model_folder):
    settings = StateContext(model=str(tiny_model_folder), depth=1.0)
    contexts = StateContexts(settings)
    items = [chat("one"), chat("a much longer question about two"), Chat((), ("no prompt",))]
    together = asyncio.run(contexts.of(items))
    assert together.shape == (3, num_features(settings))
    assert np.linalg.norm(together, axis=1) == pytest.approx(1)
    assert np.array_equal(asyncio.run(contexts.of(items[:1])), together[:1])
    assert not np.array_equal(together[0], together[1])

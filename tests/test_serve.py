"""Serving on Ray: many models behind one gateway, through deaths, and nothing left behind."""

import os
import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise

import httpx2
import psutil
import pytest
from transformers import AutoTokenizer

from panoply.config.serve import ScalingConfig, ServeConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.laser.log import Log, replay, state_version
from panoply.laser.online import OnlineBandit
from panoply.laser.rounds import initial_state
from panoply.laser.selector_file import recorded_selector
from panoply.scorers.bandit.opening import read_bandit
from panoply.wire.client import Client
from panoply.wire.feedback import Outcome
from panoply.wire.request import Chat, ScoreRequest
from tests.builders.models import make_run, save_small
from tests.builders.ports import free_ports
from workflows.cluster.gateway import model_states
from workflows.cluster.resolve_model import resolve_model
from workflows.serve import deployed

[PORT] = free_ports(1)
URL = f"http://127.0.0.1:{PORT}"
BOTH = """\
parts:
  model: {where: scalar, weight: 2.0}
  length: {where: "function:panoply.serve.verifiers:length", weight: -0.5}
rule: {kind: sum}
scale: raw
"""
ROUTER = """\
arms:
  model: {where: scalar}
  length: {where: "function:panoply.serve.verifiers:length"}
bandit: {kind: thompson}
context: {kind: words}
hold_seconds: 30
log: log
"""
WIDE = """\
arms:
  length: {where: "function:panoply.serve.verifiers:length"}
  number: {where: "function:panoply.serve.verifiers:last_number"}
bandit: {kind: uniform}
log: wide
"""
RESPONSES = ("Ten minutes.", "No.", "", "Put it into boiling water, and wait.")


def prompt(i):
    return [{"role": "user", "content": f"Question {i}: how do I boil {i} eggs?"}]


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory):
    """The folder of the models and files that are served."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(cluster, tiny_model_folder, served_folder):
    """A scalar model and a bandit of two replicas, and one of each other kind, and a wreck."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    root = served_folder
    save_small(root / "scalar", tokenizer)
    make_run(root / "gated", tokenizer)
    (root / "both.yaml").write_text(BOTH)
    (root / "router.yaml").write_text(ROUTER)
    (root / "wide.yaml").write_text(WIDE)
    (root / "broken").mkdir()
    (root / "broken" / "panoply.json").write_text("{}")
    config = ServeConfig(
        models=(
            f"scalar={root}/scalar",
            f"gated={root}/gated/model",
            "length=function:panoply.serve.verifiers:length",
            f"both=combine:{root}/both.yaml",
            f"router=bandit:{root}/router.yaml",
            f"wide=bandit:{root}/wide.yaml",
            f"broken={root}/broken",
        ),
        port=PORT,
        scaling=ScalingConfig(cpus=0.1),
    )
    two = ScalingConfig(min_replicas=2, max_replicas=2, cpus=0.1)
    models = [resolve_model(model, is_served=True) for model in config.served_models()]
    models = [replace(m, scaling=two) if m.name in ("scalar", "wide") else m for m in models]
    with deployed(models, config):
        wait_until(lambda: all(s != "starting" for s in seen().values()), seconds=300)
        yield load_reward_model(root / "scalar")


def seen():
    try:
        return httpx2.get(f"{URL}/health", timeout=10).json()["models"]
    except (httpx2.TransportError, ValueError, KeyError):
        return {"gateway": "starting"}


def wait_until(holds, seconds):
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, seen()
        time.sleep(0.2)


def test_what_cannot_load_says_why_and_the_others_answer(served):
    assert {name for name, state in seen().items() if state != "ready"} == {"broken"}
    assert seen()["broken"] == "failed"
    entries = {entry["id"]: entry for entry in httpx2.get(f"{URL}/v1/models").json()["data"]}
    assert "panoply.json" in entries["broken"]["reason"] or "Error" in entries["broken"]["reason"]
    items = [{"prompt": prompt(0), "responses": list(RESPONSES)}]
    payload = {"models": ["scalar", "length", "broken", "gated"], "items": items}
    results = httpx2.post(f"{URL}/v1/rewards", json=payload, timeout=60).json()["results"]
    scores = [[score["score"] for score in result["items"][0]] for result in results]
    assert scores[0] == pytest.approx(served.score(prompt(0), RESPONSES), rel=1e-4)
    assert scores[1] == [len(response) for response in RESPONSES]
    assert scores[2] == [None] * 4
    assert "could not be started" in results[2]["items"][0][0]["error"]
    assert None not in scores[3]


def test_a_composite_asks_replicas_of_its_own_and_its_parts_come_back(served):
    entries = {entry["id"]: entry for entry in httpx2.get(f"{URL}/v1/models").json()["data"]}
    assert entries["both"]["kind"] == "composite"
    assert [part["name"] for part in entries["both"]["objectives"]] == ["model", "length"]
    item = {"prompt": prompt(1), "responses": list(RESPONSES)}
    payload = {"models": ["both"], "items": [item], "details": ["objectives"]}
    (result,) = httpx2.post(f"{URL}/v1/rewards", json=payload, timeout=60).json()["results"]
    by_model = served.score(prompt(1), RESPONSES)
    for entry, score, response in zip(result["items"][0], by_model, RESPONSES, strict=True):
        assert entry["objectives"] == pytest.approx(
            {"model": float(score), "length": len(response)}, rel=1e-4
        )
        assert entry["score"] == pytest.approx(2 * score - 0.5 * len(response), rel=1e-4)


def counted(name, model):
    """A counter of a model, by the process that tells it."""
    text = httpx2.get(f"{URL}/metrics", timeout=10).text
    lines = [line for line in text.splitlines() if f"{name}{{" in line]
    rows = [line for line in lines if f'model="{model}"' in line]
    return {re.search('WorkerId="(\\w+)"', row)[1]: float(row.split()[-1]) for row in rows}


def settled():
    """The responses of the scalar model by process, once what was asked before is told."""
    count, since = counted("panoply_responses_total", "scalar"), time.monotonic()
    while time.monotonic() - since < 4:  # the nodes tell every second
        time.sleep(0.2)
        if (now := counted("panoply_responses_total", "scalar")) != count:
            count, since = now, time.monotonic()
    return count


def test_requests_that_share_a_prompt_go_to_one_replica_and_others_are_spread(served):
    before = settled()
    for names, num_replicas in ([77] * 12, 1), (range(100, 124), 2):
        with Client(URL, timeout=60) as client:
            for name in names:
                item = Chat(tuple(prompt(name)), RESPONSES)
                client.score(ScoreRequest(items=(item,), models=("scalar",)))
        now = settled()
        rises = {worker: num - before.get(worker, 0) for worker, num in now.items()}
        assert sum(rises.values()) == len(names) * len(RESPONSES)
        assert sum(rise > 0 for rise in rises.values()) == num_replicas
        before = now


def under_load(served, disturb, seconds=20.0, num_clients=8):
    """Clients ask while something dies; returns answers right, and the longest time without one."""
    expected = {i: served.score(prompt(i), RESPONSES) for i in range(12)}
    wrong, right, failed = [], [], []
    ends = time.monotonic() + seconds

    def ask(first):
        with Client(URL, timeout=60) as client:
            i = first
            while time.monotonic() < ends:
                i = (i + 1) % len(expected)
                request = ScoreRequest(
                    items=(Chat(tuple(prompt(i)), RESPONSES),), models=("scalar",)
                )
                try:
                    (item,) = client.score(request).models[0].items
                except Exception as error:  # whatever it is, an answer is missing
                    failed.append(repr(error))
                    continue
                results = [score.score for score in item]
                close = results == pytest.approx(expected[i], rel=1e-4)
                (right if close else wrong).append((time.monotonic(), results))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(num_clients)]
    for thread in threads:
        thread.start()
    time.sleep(4)
    disturb()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
    assert not failed, failed[0]
    times = sorted(when for when, _ in right)
    return len(right), max(b - a for a, b in pairwise(times))


def kill(app, name):
    """Kills one replica's process, as an out-of-memory kill would."""
    title = f"ServeReplica:{app}:{name}"
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends while we look; a zombie is one of these
            if title in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                return
    raise AssertionError(f"no process is called {title!r}")


def test_a_replica_that_is_killed_under_load_costs_no_answer(served, record_property):
    num, pause = under_load(served, lambda: kill("panoply-model-scalar", "RewardModel"))
    record_property("seconds_to_recover", pause)
    assert num > 50
    wait_until(
        lambda: model_states({"scalar": "panoply-model-scalar"})["scalar"][0] == "ready", seconds=60
    )


def test_a_gateway_that_is_killed_under_load_costs_no_answer(served, record_property):
    num, pause = under_load(served, lambda: kill("panoply-gateway", "Gateway"), seconds=40)
    record_property("seconds_to_recover", pause)
    assert num > 50


def ask_router(served, i):
    """The answer of the bandit's arm about the first response to a prompt, checked for all.

    What is missing for a passing reason is asked again, as a client does.
    """
    items = [{"prompt": prompt(i), "responses": list(RESPONSES)}]
    payload, ends = {"models": ["router"], "items": items}, time.monotonic() + 60
    while True:
        answer = httpx2.post(f"{URL}/v1/rewards", json=payload, timeout=60)
        (row,) = answer.json()["results"][0]["items"]
        if row[0]["score"] is not None or time.monotonic() > ends:
            break
        assert row[0]["transient"], row[0]
        time.sleep(0.5)
    assert len({entry["decision"] for entry in row}) == 1
    by_length = row[0]["arm"] == "length"
    expected = [*map(len, RESPONSES)] if by_length else served.score(prompt(i), RESPONSES)
    assert [entry["score"] for entry in row] == pytest.approx(expected, rel=1e-4)
    assert answer.headers["X-Panoply-Decisions"] == f"router={row[0]['decision']}"
    return row[0]


def tell_router(*entries):
    """What becomes of outcomes: length is always right."""
    outcomes = [
        Outcome(decision=entry["decision"], measures={"reward": float(entry["arm"] == "length")})
        for entry in entries
    ]
    with Client(URL, timeout=60) as client:
        return [outcome.status for outcome in client.feedback("router", outcomes)]


def test_a_bandit_that_is_killed_goes_on_from_its_log_and_takes_each_outcome_once(
    served, served_folder
):
    """Ask, tell late, twice and out of order, kill it twice; replay what is left."""
    about = httpx2.get(f"{URL}/v1/models/router").json()
    arms = tuple(about["arms"])
    assert (about["kind"], arms, about["bandit"]) == ("bandit", ("model", "length"), "thompson")
    entries = [ask_router(served, i) for i in range(6)]
    assert tell_router(entries[4], entries[1]) == ["counted", "counted"]
    kill("panoply-model-router", "RewardModel")
    assert ask_router(served, 0)["decision"] == entries[0]["decision"]  # held beyond the death
    assert tell_router(entries[1], entries[0]) == ["repeated", "counted"]
    kill("panoply-model-router", "RewardModel")
    entries += [ask_router(served, i) for i in range(6, 9)]
    statuses = tell_router(*entries[6:], entries[4], entries[5])
    assert statuses == ["counted"] * 3 + ["repeated", "counted"]
    assert tell_router({"decision": "1-2-3", "arm": "length"}) == ["unknown"]

    folder = str(served_folder / "log")
    record = Log(folder, arms, in_rounds=False).read()
    decided = record.decisions["decision_id"].to_pylist()
    assert decided == [entry["decision"] for entry in entries]
    told = [entries[k]["decision"] for k in (4, 1, 0, 6, 7, 8, 5)]
    assert record.rewards["decision_id"].to_pylist() == told
    selector, _, size = recorded_selector(folder)
    settings = read_bandit(served_folder / "router.yaml")
    live = OnlineBandit(
        selector,
        arms,
        size,
        folder,
        context=asdict(settings.context),
        reward_range=settings.reward_range,
        hold_seconds=0,
        clock=time.time,
    )
    assert live.status().replayed_alike
    assert live.status().state == state_version(replay(record, initial_state(selector, 2, size)))
    answer = httpx2.post(f"{URL}/models/router/classify", json={"input": ["a"]}, timeout=60)
    assert (answer.status_code, "another server" in answer.text) == (503, True)  # this process


def test_one_process_decides_for_all_replicas_of_a_bandit_and_is_started_again(served):
    def ask(i):
        items = [{"prompt": prompt(i), "responses": ["1", "22"]}]
        payload = {"models": ["wide"], "items": items}
        answer = httpx2.post(f"{URL}/v1/rewards", json=payload, timeout=60)
        return answer.json()["results"][0]["items"][0][0]["decision"]

    decisions = [ask(i) for i in range(12)]
    assert [int(name.partition("-")[0], 16) for name in decisions] == [*range(12)]
    kill("panoply-model-wide", "Bandit")
    assert [ask(i) for i in range(12)] == decisions  # held beyond the death
    kill("panoply-model-wide", "Bandit")
    outcomes = [{"decision": name, "reward": 1.0} for name in decisions]
    url = f"{URL}/models/wide/v1/feedback"
    told = httpx2.post(url, json={"outcomes": outcomes}, timeout=60)  # waits, and is not refused
    assert [each["status"] for each in told.json()["outcomes"]] == ["counted"] * 12


def test_metrics_of_all_nodes_are_relayed(served):
    def metrics_text():
        return httpx2.get(f"{URL}/metrics", timeout=10).text

    expected = ("panoply_requests_total", "panoply_batch_tokens", "panoply_shared_tokens_total")
    wait_until(lambda: all(name in metrics_text() for name in expected), seconds=60)

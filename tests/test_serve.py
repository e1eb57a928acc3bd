"""Serving on Ray: many models behind one gateway, through deaths, and nothing left behind."""

import os
import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import httpx2
import psutil
import pytest
from transformers import AutoTokenizer

from panoply.config.serve import ScalingConfig, ServeConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.wire.client import Client
from panoply.wire.request import Chat, ScoreRequest
from tests.builders.models import make_run, save_small
from tests.builders.ray_head import free_ports
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
RESPONSES = ("Ten minutes.", "No.", "", "Put it into boiling water, and wait.")


def prompt(i):
    return [{"role": "user", "content": f"Question {i}: how do I boil {i} eggs?"}]


@pytest.fixture(scope="module")
def served(cluster, tiny_model_folder, tmp_path_factory):
    """A scalar model with two replicas, a gated one, a function, a composite, a broken one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    root = tmp_path_factory.mktemp("served")
    save_small(root / "scalar", tokenizer)
    make_run(root / "gated", tokenizer)
    (root / "both.yaml").write_text(BOTH)
    (root / "broken").mkdir()
    (root / "broken" / "panoply.json").write_text("{}")
    config = ServeConfig(
        models=(
            f"scalar={root}/scalar",
            f"gated={root}/gated/model",
            "length=function:panoply.serve.verifiers:length",
            f"both=combine:{root}/both.yaml",
            f"broken={root}/broken",
        ),
        port=PORT,
        scaling=ScalingConfig(cpus=0.1),
    )
    two = ScalingConfig(min_replicas=2, max_replicas=2, cpus=0.1)
    models = [resolve_model(model) for model in config.served_models()]
    models = [replace(m, scaling=two) if m.name == "scalar" else m for m in models]
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


def test_metrics_of_all_nodes_are_relayed(served):
    def metrics_text():
        return httpx2.get(f"{URL}/metrics", timeout=10).text

    expected = ("panoply_requests_total", "panoply_batch_tokens", "panoply_shared_tokens_total")
    wait_until(lambda: all(name in metrics_text() for name in expected), seconds=60)

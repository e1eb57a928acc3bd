"""Upgrade and rollback of a server that runs, without a failed request."""

import io
import os
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress

import httpx2
import psutil
import pytest
from ray import serve
from rich.console import Console

from panoply.config.serve import ScalingConfig, ServeConfig
from panoply.config.upgrade import RollbackConfig, UpgradeConfig
from panoply.report.progress import RunLogger
from panoply.serve.local_server import join, joinable
from tests.builders.ports import free_ports
from tests.builders.ray_head import eventually
from tests.builders.servers import models_at
from workflows.cluster.versions import Routes
from workflows.serve import deployed
from workflows.upgrade import run_rollback, run_upgrade

[PORT] = free_ports(1)
CODE = """
def first(response):
    return 1.0

def second(response):
    return 2.0

def without_score(response):
    return None
"""


def logger():
    return RunLogger(Console(file=io.StringIO(), width=300))


def lines(log):
    return log.console.file.getvalue()


@pytest.fixture(scope="module")
def server(cluster, tmp_path_factory):
    """A server of two functions: its address, and the place of other functions."""
    file = tmp_path_factory.mktemp("upgrade") / "rewards.py"
    file.write_text(CODE)
    config = ServeConfig(
        models=(f"a=function:{file}:first", f"b=function:{file}:first"),
        name="live",
        port=PORT,
        scaling=ScalingConfig(cpus=0.1),
    )
    with deployed(config.served_models(), config):
        address = f"http://127.0.0.1:{PORT}/servers/live/"
        eventually(lambda: ready(address) == ["a", "b"], 120, "the models are ready")
        yield address, f"function:{file}"
    assert not [name for name in serve.status().applications if name.startswith("live-")]


def ready(address):
    """The models that are ready; none while the gateway starts."""
    with suppress(httpx2.TransportError, ValueError, KeyError):
        return models_at(address)


def upgrade(*models, **settings):
    log = logger()
    run_upgrade(UpgradeConfig(models=models, name="live", minutes=2.0, **settings), log)
    return lines(log)


def rollback(*models):
    log = logger()
    run_rollback(RollbackConfig(models=models, name="live"), log)
    return lines(log)


def under_load(address, change):
    """Asks model `a` without a pause or a second try while something is changed.

    Returns how often each status, version and score came.
    """
    counts, stopped = Counter(), threading.Event()
    body = {"items": [{"prompt": [{"role": "user", "content": "q"}], "responses": ["r"] * 3}]}

    def ask():
        with httpx2.Client(timeout=60) as client:
            while not stopped.is_set():
                answer = client.post(f"{address}models/a/v1/rewards", json=body)
                results = answer.json().get("results") or [{"items": [[]]}]
                scores = {score["score"] for score in results[0]["items"][0]}
                counts[answer.status_code, answer.headers.get("x-model-versions"), *scores] += 1

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(1)
    try:
        change()
        time.sleep(1)
    finally:
        stopped.set()
        for client in clients:
            client.join()
    return counts


def gateways():
    """The processes of the server's gateway."""
    pids = set()
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.Error):  # it ends while we look
            if "ServeReplica:live-gateway" in " ".join(process.cmdline()):
                pids.add(process.pid)
    return pids


def test_versions_change_and_come_back_under_load_without_a_failed_request(server):
    address, place = server
    before = gateways()
    assert len(before) == 1
    counts = under_load(address, lambda: upgrade(f"a={place}:second"))
    assert set(counts) == {(200, "a=1", 1.0), (200, "a=2", 2.0)}
    assert sum(counts.values()) > 20
    entry = httpx2.get(f"{address}v1/models/a").json()
    assert (entry["version"], entry["state"]) == (2, "ready")

    counts = under_load(address, lambda: rollback("a"))
    assert set(counts) == {(200, "a=2", 2.0), (200, "a=1", 1.0)}
    assert sum(counts.values()) > 20
    assert "a: version 2 answers" in rollback()  # forth again, all that have another version
    assert gateways() == before


def test_a_version_that_does_not_load_or_score_changes_nothing(server):
    address, place = server
    first = httpx2.get(f"{address}v1/models/b").json()["version"]
    before = {name for name in serve.status().applications if name.startswith("live-model-b")}
    for where, message in (
        (f"{place}:without_score", r"'b' has no score for a plain conversation.*no score"),
        ("function:panoply.serve.verifiers:exact", r"'b' has no score for a plain conversation"),
    ):
        with pytest.raises(ValueError, match=message):
            upgrade(f"b={where}")
    assert httpx2.get(f"{address}v1/models/b").json()["version"] == first
    after = {name for name in serve.status().applications if name.startswith("live-model-b")}
    assert after == before


def test_what_cannot_be_upgraded_is_refused(server):
    _, place = server
    with pytest.raises(ValueError, match=r"names among \['a', 'b'\], got \['c'\]"):
        upgrade(f"c={place}:second")
    with pytest.raises(ValueError, match=r"no other version of \['b'\] runs"):
        rollback("b")
    with pytest.raises(ValueError, match=r"no server 'dead' .* runs on this cluster"):
        run_rollback(RollbackConfig(name="dead"), logger())


def test_the_number_of_a_version_is_not_used_twice():
    details = {"applications": {"s-gateway": {}, "s-model-a": {}, "s-model-a@2": {}}}
    routes = Routes.read("s", ["a", "b"], details)
    assert routes.current == {"a": "s-model-a", "b": "s-model-b"}
    assert (routes.others, routes.answered) == ({"a": "s-model-a@2"}, {})  # of a killed upgrade
    forth = routes.moved({"a": "s-model-a@2"})
    assert (forth.latest["a"], forth.others["a"]) == (2, "s-model-a")
    back = forth.moved({"a": "s-model-a"})
    assert (back.latest["a"], back.answered["a"]) == (2, "s-model-a@2")


def test_a_local_server_is_joined_by_its_port_through_a_file_of_its_user(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PANOPLY_CACHE", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this run")
    with pytest.raises(FileNotFoundError, match=r"listens at port 8000; there are servers at \[\]"):
        join(8000)
    with joinable(8000, "127.0.0.1:6379"):
        [file] = tmp_path.glob("servers-*/*")
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        with pytest.raises(FileNotFoundError, match=r"8001; there are servers at \['8000'\]"):
            join(8001)
        join(8000)
        assert os.environ["RAY_ADDRESS"] == "127.0.0.1:6379"
        assert os.environ["RAY_AUTH_TOKEN"] == "of this run"
        user = os.getuid()
        monkeypatch.setenv("RAY_ADDRESS", "")
        monkeypatch.setattr(os, "getuid", lambda: user + 1)  # who shares the cache
        with pytest.raises(FileNotFoundError, match=r"there are servers at \[\]"):
            join(8000)
        shutil.copytree(file.parent, tmp_path / f"servers-{user + 1}")  # and is led astray
        with pytest.raises(FileNotFoundError, match=r"no server that you started"):
            join(8000)
        with joinable(8000, "127.0.0.1:6380"):  # has a server of their own
            assert file.exists()
        monkeypatch.setattr(os, "getuid", lambda: user)
    assert not file.exists()

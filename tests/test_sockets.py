"""What a command opens: nothing but loopback, or doors that ask for the secret of this very run."""

import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import psutil
import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from panoply.wire.retry import RewardServerError
from tests.builders.ports import free_ports
from tests.builders.ray_head import ROOT, eventually
from tests.builders.servers import changed, models_at, score, servers
from workflows import ALONE, LOOPBACK_ONLY, TOKENS
from workflows.cluster.address import answering, reserved
from workflows.cluster.rendezvous import PREFIX, remove_stale_folders

pytestmark = pytest.mark.ray

STRANGER = {name: value for name, value in os.environ.items() if "RAY_" not in name}
"""Environment of a user who was told nothing."""
JOIN = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined")
"""


def commands(pid):
    """Returns the command lines of a process and its children, by their numbers."""
    titles = {}
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.Error):  # it ends while we look
            titles[process.pid] = " ".join(process.cmdline())
    return titles


def telling(pid, *secrets):
    """Returns the command lines, which `ps` shows to every user, that hold a secret."""
    shown = commands(pid).values()
    assert len(shown) > 8
    assert all(secrets)
    return [line for line in shown if any(secret in line for secret in secrets)]


def listening(pid):
    """Returns address, port and program of every socket of a process and its children."""
    titles = commands(pid)
    return {
        (opened.laddr.ip.removeprefix("::ffff:"), opened.laddr.port, titles[opened.pid])
        for opened in psutil.net_connections("inet")
        if opened.pid in titles
        and (opened.status == psutil.CONN_LISTEN or opened.type == socket.SOCK_DGRAM)
    }


def lines_of_ray(output):
    """The lines of an output that Ray's native code, or its listener of errors, wrote."""
    return [line for line in output.splitlines() if "(raylet)" in line or "logging.cc" in line]


def is_open(ip):
    """Whether other machines reach an address."""
    return not ipaddress.ip_address(ip).is_loopback


def asks_for_a_secret(port):
    """Whether a call as Ray Serve makes them is refused for want of the token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        try:
            call(b"", timeout=20)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


def joins(address, **settings):
    """Whether a stranger becomes part of a cluster."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env=STRANGER | LOOPBACK_ONLY | {"RAY_NUM_REDIS_GET_RETRIES": "1"} | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "joined" in done.stdout or "Unauthenticated" in done.stdout + done.stderr, done
    return "joined" in done.stdout


KEY = "opensesame"
ROOM = f"CPU,{max(4, os.cpu_count())}"
"""What Ray counts for two models of a CPU each, and for their next versions."""
OPENERS = re.compile(
    r"ray\.init\(|serve\.start\(|\.bind\(\(|\.listen\(|uvicorn|HTTPServer|TCPStore|tcp://|"
    r"init_process_group|create_server|start_server|ray start"
)
"""What opens a port, in the code of Python, Ray and PyTorch."""


def test_all_commands_open_ports_by_the_same_few_lines():
    places = set()
    for package in ("panoply", "actors", "workflows", "jobs"):
        for file in (ROOT / package).rglob("*.py"):
            if OPENERS.search(file.read_text()):
                places.add(str(file.relative_to(ROOT)))
    assert places == {
        "actors/slow_clients.py",  # a time limit for what Serve's proxy has opened
        "workflows/cluster/ray_cluster.py",  # on loopback, with a token, for all of them
        "workflows/cluster/address.py",
        "workflows/cluster/arms.py",  # without HTTP
        "workflows/serve.py",
    }


def test_folders_of_killed_training_controllers_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    names = [f"{PREFIX}{dead.pid}-x", f"{PREFIX}{os.getpid()}-x", f"{PREFIX}other-x", "mine"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_stale_folders()
    assert {folder.name for folder in tmp_path.iterdir()} == set(names[1:])


SETTINGS = """
import json, os, workflows
print(json.dumps({name: os.environ.get(name) for name in sorted(os.environ) if "RAY_" in name}))
"""


def settings(code=SETTINGS, **env):
    """Returns what a command makes of the environment that it is started in."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=STRANGER | env, capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def test_a_token_is_made_for_each_run_and_nothing_is_changed_where_a_cluster_is_joined():
    first, second = settings(), settings(RAY_ADDRESS="local", RAY_AUTH_TOKEN="")
    for made in (first, second):
        assert re.fullmatch("[0-9a-f]{64}", made["RAY_AUTH_TOKEN"])
        assert made["RAY_AUTH_MODE"] == "token"
        assert LOOPBACK_ONLY.items() <= made.items()
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    configured = settings(RAY_AUTH_TOKEN_PATH="/somewhere")
    assert "RAY_AUTH_TOKEN" not in configured
    joined = settings(RAY_ADDRESS="192.0.2.1:6379")
    assert not set(joined) & {*ALONE, *LOOPBACK_ONLY, *TOKENS}
    late = settings("import ray; from workflows.cluster.ray_cluster import connect; connect(1)")
    assert "Ray was imported before `workflows`, so its ports would be open" in late


@pytest.fixture
def broken(tmp_path, tiny_tokenizer):
    """A classifier whose template refuses every prompt, in words that look like markup."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
    )
    folder = tmp_path / "broken"
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    template = "{{ raise_exception('turns must be closed with [/INST]') }}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def inherited(pid, value):
    """Processes below one whose environment holds a value."""
    titles = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it ends while we look
            # The command itself was given the value.
            is_command = "jobs.serve" in process.cmdline()
            if value in process.environ().values() and not is_command:
                titles.append(" ".join(process.cmdline()))
    return titles


def test_of_two_servers_started_at_one_port_one_answers_and_no_stranger_joins_it(tmp_path, broken):
    [port] = free_ports(1)
    home = {"HOME": str(tmp_path), "PANOPLY_CACHE": str(tmp_path / "cache")}
    env = os.environ | home | {"SERVER_KEY": KEY}
    with servers(tmp_path, env) as start:
        both = [
            start(
                *("--port", port, "--keys", f"{name}=SERVER_KEY"),
                model=name,
                more=[f"broken={broken}"],
                prefix=("timeout", "600"),
            )
            for name in "ab"
        ]
        while all(server.process.poll() is None for server in both):
            time.sleep(0.1)
        loser, winner = sorted(both, key=lambda server: server.process.poll() is None)
        assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in loser.refusal()
        assert winner.address() == f"http://127.0.0.1:{port}/"
        assert re.search(r"broken: failed: .*must be closed with \[/INST\]", winner.output())
        name = "ab"[both.index(winner)]
        assert models_at(winner.address()) == [name]
        assert score(winner.address(), "four", KEY) == 4.0
        with pytest.raises(RewardServerError, match="asks for its API key"):
            score(winner.address(), "four")
        assert inherited(winner.process.pid, KEY) == []
        [way_in] = (tmp_path / "cache").glob(f"servers-*/{port}.json")
        assert telling(winner.process.pid, KEY, json.loads(way_in.read_text())["token"]) == []

        sockets = listening(winner.process.pid)
        assert ("127.0.0.1", port) in {(ip, port) for ip, port, _ in sockets}
        assert len(sockets) > 8, sockets
        opened = {entry for entry in sockets if is_open(entry[0])}
        assert all(asks_for_a_secret(port) for _, port, _ in opened), opened
        [gcs] = [port for _, port, title in sockets if "gcs_server" in title]
        for settings in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token"}):
            assert not joins(f"127.0.0.1:{gcs}", RAY_AUTH_TOKEN="0" * 64, **settings)

        assert any("raylet/raylet" in title and ROOM in title for _, _, title in sockets), sockets
        # Its user changes it by its port alone, from a shell that does not know its key.
        del env["SERVER_KEY"]
        new = f"{name}=function:panoply.serve.verifiers:brevity"
        code, output = changed("upgrade", env, "--port", port, "--models", new)
        assert (code, f"{name}: version 2 answers" in output) == (0, True), output
        assert score(winner.address(), "four", KEY) == -4.0
        said = f"{name}: version 2"
        eventually(lambda: said in winner.output(), 20, "the server's log tells the version")
        assert not (tmp_path / ".ray").exists()  # no token outlives its run
        winner.stop(signal.SIGTERM)  # `timeout` sends it to all of its process group
        assert winner.process.returncode == 0, winner.output()
        assert not lines_of_ray(winner.output())
        code, output = changed("rollback", env, "--port", port)
        assert (code, "no server that you started on this machine" in output) == (2, True), output


def test_a_command_whose_own_ray_was_killed_ends_within_seconds(tmp_path):
    with servers(tmp_path) as start:
        server = start("--port", 0)
        assert score(server.address(), "four") == 4.0
        for process in psutil.Process(server.process.pid).children():
            if "raylet/raylet" in " ".join(process.cmdline()):
                process.kill()
        assert server.process.wait(40) == 2
        assert "Ray's process 'raylet' has ended" in server.output()


def test_a_run_that_samples_and_trains_opens_nothing_to_strangers(tmp_path, tiny_policy_folder):
    command = (
        *(sys.executable, "-m", "jobs.laser", "embedded", "--out", str(tmp_path / "run")),
        *("--backbone.model", str(tiny_policy_folder), "--backbone.dtype", "float32"),
        *("--backbone.rendering.max-prompt-tokens", "96", "--sampling.max-tokens", "8"),
        *("--prompts.num-made", "8", "--prompts.num-held-out", "2", "--num-samples", "2"),
        *("--num-rounds", "1", "--prompts-per-round", "4", "--num-workers", "1"),
    )
    log = (tmp_path / "log").open("w")
    run = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    seen = set()
    try:
        while run.poll() is None:
            seen |= listening(run.pid)
            time.sleep(0.3)
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGINT)
            run.wait(60)
        log.close()
    assert run.returncode == 0, (tmp_path / "log").read_text()
    assert not lines_of_ray((tmp_path / "log").read_text())
    assert "RayTrainWorker" in " ".join(title for _, _, title in seen)
    assert not [entry for entry in seen if is_open(entry[0])]


class Named(HTTPServer):
    """A server that shares its port, and tells an id as ours do."""

    allow_reuse_port = True

    def __init__(self, port, body):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", port), Handler)


@contextmanager
def answered_by(*bodies):
    """Yields a port at which several servers listen."""
    [port] = free_ports(1)
    running = [Named(port, body) for body in bodies]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in running]
    for thread in threads:
        thread.start()
    try:
        yield port
    finally:
        for server, thread in zip(running, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def test_an_address_is_told_only_if_all_its_answers_are_of_this_run():
    with answered_by(b'{"run": "mine"}') as port:
        url = f"http://127.0.0.1:{port}/"
        assert answering(["http://127.0.0.1:9/", url], "mine") == url
    for other in (b'{"run": "another"}', b'{"models": {}}', b"<html>"):
        with (
            answered_by(b'{"run": "mine"}', other) as port,
            pytest.raises(ConnectionError, match="is answered by another server as well"),
        ):
            answering([f"http://127.0.0.1:{port}/"], "mine")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_is_reserved_by_one_and_open_to_his_own_server(host):
    with reserved(host, 0) as port:
        assert port > 0
        for other in ("127.0.0.1", "0.0.0.0"):
            with (
                pytest.raises(OSError, match=rf"cannot listen at {other}:{port}"),
                reserved(other, port),
            ):
                pass
        with Named(port, b""):
            pass
    # Its last connections are still closing, as after a restart.
    with answered_by(b"{}") as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while client.recv(100):
            pass
    with reserved(host, port) as again:
        assert again == port


def test_a_port_that_any_other_program_shares_is_refused():
    with (
        answered_by(b"{}") as port,
        pytest.raises(OSError, match="Stop the program that listens there, or take another"),
        reserved("127.0.0.1", port),
    ):
        pass
    with (
        pytest.raises(OSError, match=r"192\.0\.2\.77:0: Cannot assign"),
        reserved("192.0.2.77", 0),
    ):
        pass

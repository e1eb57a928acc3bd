"""A served model while the head of its cluster is killed and comes back, with Ray's state in Redis.

`python -m benchmarks.lost_head --json FILE` starts a Redis server, a head without CPUs and a worker
node, deploys a function by `serve deploy`, and asks it without a pause. Then the head dies with all
of its processes (the control store, Serve's controller, a proxy), is away for a while, and starts
again with the same command; at last the model's replica is killed, which only a whole controller
replaces. It needs the program `redis-server`, and the rights to open a PID namespace: the head
lives in one, so that it dies at once and does not see the node's processes, as on its own machine.

`ok`, `refused` and `broken` count answers by phase: right ones, errors with a status, and broken
connections. `longest`: seconds of the slowest request.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks import harness
from benchmarks.harness import print_figures, run, setting, write_figures

BIN = Path(sys.executable).parent
MODEL = "length=function:panoply.serve.verifiers:length"
BODY = {
    "models": ["length"],
    "items": [{"prompt": [{"role": "user", "content": "q"}], "responses": ["abc", "de"]}],
}
SCORES = [3.0, 2.0]
APART = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""Starts a process whose whole tree dies with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    away: float = 20.0
    """Seconds that the cluster has no head."""
    clients: int = 3


@dataclass
class Cluster:
    """A head and a worker node as processes of this machine."""

    folder: Path
    ports: dict[str, int]
    env: dict[str, str]
    password: str
    """Of Redis."""
    head: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def start_head(self) -> None:
        """Starts the head, as its supervisor would again."""
        ports = self.ports
        self.head = self._start(
            *(*APART, BIN / "ray", "start", "--head", f"--port={ports['gcs']}", "--num-cpus=0"),
            *(f"--dashboard-port={ports['dashboard']}", f"--ray-client-server-port={ports['ray']}"),
        )

    def start_node(self) -> None:
        """Starts the worker node."""
        address = f"--address=127.0.0.1:{self.ports['gcs']}"
        self._start(BIN / "ray", "start", address, "--num-cpus=4")

    def kill_head(self) -> None:
        """Kills the head with all of its processes."""
        assert self.head is not None
        self.head.kill()
        self.head.wait()

    def states(self) -> set[str]:
        """Returns the states of all applications; none while the head is away.

        A head that ended is started again: on a busy machine Ray gives its start up after a while.
        """
        if self.head is not None and self.head.poll() is not None:
            self.start_head()
        url = f"http://127.0.0.1:{self.ports['dashboard']}/api/serve/applications/"
        headers = {"authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        with suppress(httpx2.TransportError, ValueError):
            applications = httpx2.get(url, headers=headers, timeout=10).json()["applications"]
            return {application["status"] for application in applications.values()}
        return set()

    def deploy(self) -> None:
        """Deploys the function by a file, as an operator does."""
        file = self.folder / "serve.yaml"
        port = str(self.ports["http"])
        command = (sys.executable, "-m", "jobs.serve", "models", "--models", MODEL, "--port", port)
        subprocess.run([*command, "--write", str(file)], env=self.env, check=True)
        dashboard = f"http://127.0.0.1:{self.ports['dashboard']}"
        words = ("serve", "deploy", str(file), "--address", dashboard)
        subprocess.run([BIN / words[0], *words[1:]], env=self.env, check=True, capture_output=True)

    def kill_replica(self) -> None:
        """Kills the model's replica on the worker node."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "ServeReplica:panoply-model-length" in " ".join(process.cmdline()):
                    process.kill()

    def _start(self, *command: object) -> subprocess.Popen[bytes]:
        ports = ("dashboard-agent-listen-port", "min-worker-port", "max-worker-port")
        flags = ["--block", "--object-store-memory=200000000", f"--redis-password={self.password}"]
        flags += [f"--{port}=0" for port in ports]
        name = f"node-{len(self.started)}"
        (home := self.folder / name).mkdir()
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*map(str, command), *flags],
                env=self.env | {"RAY_TMPDIR": str(home)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        return process


@contextmanager
def cluster_with_redis() -> Generator[Cluster]:
    """Yields a cluster whose state is in Redis; nothing of it is left."""
    with ExitStack() as stack:
        # Socket paths must be short.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lost")))
        names = ("redis", "gcs", "dashboard", "ray", "http")
        ports: dict[str, int] = dict(zip(names, free_ports(len(names)), strict=True))
        password = secrets.token_hex(16)
        command = ("redis-server", "--port", str(ports["redis"]), "--requirepass", password)
        redis = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
        stack.callback(redis.kill)
        env = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{ports['redis']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        cluster = Cluster(folder, ports, env, password)
        stack.callback(lambda: [end_tree(process.pid) for process in cluster.started])
        yield cluster


def free_ports(num: int) -> list[int]:
    """Returns ports at which nothing listens."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def end_tree(pid: int) -> None:
    """Kills a process and all that it started."""
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.Error):
                process.kill()


def seconds_until(holds: Callable[[], bool], what: str, limit: float = 300.0) -> float:
    """Waits until something holds; returns the seconds."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < limit, f"{what} did not hold within {limit:.0f} s"
        time.sleep(0.3)
    return time.monotonic() - begun


class Clients:
    """Threads that ask without a pause and count what comes back, by phase."""

    def __init__(self, url: str, num: int) -> None:
        self.url, self.phase, self.over = url, "before", threading.Event()
        self.figures: dict[str, dict[str, Any]] = {}
        self.threads = [threading.Thread(target=self._ask) for _ in range(num)]

    def ask_once(self) -> str:
        """Asks once; returns what became of it."""
        try:
            answer = httpx2.post(self.url, json=BODY, timeout=60)
        except httpx2.TransportError:
            return "broken"
        if answer.status_code != 200:
            return "refused"
        scores = [entry["score"] for entry in answer.json()["results"][0]["items"][0]]
        return "ok" if scores == SCORES else "refused" if None in scores else "wrong"

    def _ask(self) -> None:
        while not self.over.is_set():
            phase, begun = self.phase, time.monotonic()
            outcome = self.ask_once()
            counts = self.figures.setdefault(phase, {"ok": 0, "refused": 0, "broken": 0})
            counts[outcome] = counts.get(outcome, 0) + 1
            counts["longest"] = max(counts.get("longest", 0.0), time.monotonic() - begun)
            time.sleep(0.05)


def main(options: Options) -> None:
    """Kills a head under load, prints the counts of each phase, and writes them."""
    import ray

    with cluster_with_redis() as cluster:
        cluster.start_head()
        seconds_until(lambda: "runtime started" in log_of(cluster, 0), "the head is up")
        cluster.start_node()
        seconds_until(lambda: "runtime started" in log_of(cluster, 1), "the node is up")
        cluster.deploy()
        url = f"http://127.0.0.1:{cluster.ports['http']}/v1/rewards"
        clients = Clients(url, options.clients)
        seconds_until(lambda: clients.ask_once() == "ok", "the model answers")
        seconds_until(lambda: cluster.states() == {"RUNNING"}, "all applications run")
        for thread in clients.threads:
            thread.start()
        time.sleep(10)
        clients.phase = "without a head"
        cluster.kill_head()
        time.sleep(options.away)
        clients.phase = "the head comes back"
        cluster.start_head()
        back = seconds_until(lambda: cluster.states() == {"RUNNING"}, "all applications run again")
        clients.phase = "after"
        time.sleep(10)
        clients.phase = "the replica is killed"
        cluster.kill_replica()
        time.sleep(20)
        clients.over.set()
        for thread in clients.threads:
            thread.join()
        figures = clients.figures
    write_figures(
        options.json,
        {"setting": setting(ray, away=options.away), "seconds_until_back": back, **figures},
    )
    print(f"all applications RUNNING {back:.1f} s after the head's start")
    print_figures(figures, ("ok", "refused", "broken", "wrong", "longest"))


def log_of(cluster: Cluster, number: int) -> str:
    """Returns what a node printed."""
    return (cluster.folder / f"node-{number}.log").read_text()


if __name__ == "__main__":
    run(main, Options)

"""The faults that `benchmarks.faults` injects: each is put in place, held, and taken away again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

HELD = 5.0
"""Seconds that a fault is held."""
MODEL, FUNCTION, PEER = "tiny", "length", "peer"
FIRST_VERSION = f"{MODEL}=1"
"""What the header `X-Model-Versions` says before any upgrade."""


class Server:
    """The server as a process, started as a user starts it."""

    def __init__(self, command: list[str], address: str, log: Path, env: dict[str, str]) -> None:
        self.command, self.address, self.log, self.env = command, address, log, env
        self.process = self._start()

    def restart(self) -> None:
        """Starts it again, as a supervisor would, once its process has ended."""
        self.process.wait(120)
        self.process = self._start()

    def stop(self) -> None:
        """Stops it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)

    def tree(self) -> list[psutil.Process]:
        """Returns its processes, Ray's among them."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def named(self, *words: str) -> list[psutil.Process]:
        """Returns its processes whose command holds all words."""
        return [one for one in self.tree() if all(word in _command(one) for word in words)]

    def memory_mib(self) -> dict[str, float]:
        """Returns the memory that its processes have for themselves, by what they run."""
        memory: dict[str, float] = {}
        for one in self.tree():
            name = _program(_command(one))
            with suppress(psutil.Error):  # it has just ended
                memory[name] = memory.get(name, 0.0) + one.memory_full_info().uss / 2**20
        return memory

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, env=self.env, stdout=log, stderr=log)


@dataclass
class Ground:
    """What faults are injected into."""

    server: Server
    key: str
    model: Path
    """Folder of the served model."""
    next_model: Path
    """Folder of the model that an upgrade puts in its place: its scores are twice as large."""
    peer_command: list[str]
    peer_mode: Path
    peer: subprocess.Popen[bytes]

    def change(self, *words: str) -> None:
        """Changes the server that runs, by a command as its operator gives it."""
        port = ("--port", self.server.address.rstrip("/").rpartition(":")[2])
        command = [sys.executable, "-m", "jobs.serve", *words, *port]
        done = subprocess.run(
            command, env=self.server.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (
            f"{words[0]}: exit code {done.returncode}: {done.stderr[-300:]}"
        )

    def post(self, path: str, body: bytes, key: str | None = None, seconds: float = 60.0) -> int:
        """Sends a body; returns the status, 0 where the connection broke."""
        headers = {"authorization": f"Bearer {self.key if key is None else key}"}
        try:
            url = self.server.address + path.removeprefix("/")
            return httpx2.post(url, content=body, headers=headers, timeout=seconds).status_code
        except httpx2.TransportError:
            return 0


Fault = Callable[[Ground], Generator[None]]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _program(command: str) -> str:
    """Returns what a command runs: an actor of Ray's (`ray::NAME`), a script, or a program."""
    words = command.split()
    if not words or words[0].startswith("ray::"):
        return words[0].partition(".")[0] if words else "ended"  # without the method that runs
    scripts = [word for word in words[1:3] if word.endswith(".py")]
    return Path(scripts[0] if scripts else words[0]).name


def _signal(number: int, *words: str) -> Fault:
    """Returns a fault that sends a signal to one process whose command holds all words."""

    def fault(ground: Ground) -> Generator[None]:
        chosen = ground.server.named(*words)
        assert chosen, f"no process of the server is called {words}"
        chosen[0].send_signal(number)
        time.sleep(HELD)
        yield
        if number == signal.SIGSTOP and chosen[0].is_running():
            chosen[0].send_signal(signal.SIGCONT)

    return fault


def _stopped_driver(ground: Ground) -> Generator[None]:
    """Stops the command itself, as a terminal's Ctrl-Z does; the server's processes go on."""
    ground.server.process.send_signal(signal.SIGSTOP)
    time.sleep(HELD)
    yield
    ground.server.process.send_signal(signal.SIGCONT)


def _lost_node(ground: Ground) -> Generator[None]:
    """Kills Ray's node: the command ends, and is started again."""
    ground.server.named("raylet/raylet")[0].kill()
    yield
    ground.server.restart()


def _live_upgrade(ground: Ground) -> Generator[None]:
    """Puts a new version in the model's place, and the version before back."""
    ground.change("upgrade", "--models", f"{MODEL}={ground.next_model}")
    time.sleep(HELD)
    yield
    ground.change("rollback", "--models", MODEL)


def _killed_peer(ground: Ground) -> Generator[None]:
    """Kills the other team's server."""
    ground.peer.kill()
    ground.peer.wait()
    time.sleep(HELD)
    yield
    ground.peer = subprocess.Popen(ground.peer_command)


def _peer(mode: str) -> Fault:
    """Returns a fault in which the other team's server answers in its own way."""

    def fault(ground: Ground) -> Generator[None]:
        ground.peer_mode.write_text(mode)
        time.sleep(HELD)
        yield
        ground.peer_mode.write_text("right")

    return fault


def _torn_weights(ground: Ground) -> Generator[None]:
    """Cuts the weights on disk in half and kills the replica, which has to load them again."""
    weights = ground.model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    for replica in ground.server.named("ServeReplica", MODEL):
        replica.kill()
    time.sleep(HELD)
    yield
    weights.write_bytes(whole)


def _flipped_byte(ground: Ground) -> Generator[None]:
    """Changes a byte of the weights and kills the replica: loaded, they would score wrongly."""
    weights = ground.model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3] + bytes([whole[-3] ^ 0x40]) + whole[-2:])
    for replica in ground.server.named("ServeReplica", MODEL):
        replica.kill()
    time.sleep(HELD)
    yield
    weights.write_bytes(whole)


def _largest_request(ground: Ground) -> Generator[None]:
    """Sends a long prompt with many responses, again and again, as large as limits allow."""
    item = {
        "prompt": [{"role": "user", "content": "a long prompt " * 7000}],
        "responses": [f"response {number}" for number in range(256)],
    }
    body = json.dumps({"models": [MODEL], "items": [item]}).encode()
    _in_threads(4, lambda: ground.post("/v1/rewards", body, seconds=30))
    yield


def _hostile_body(ground: Ground) -> Generator[None]:
    """Sends 15 MB of empty lists and of unknown keys, without a key that is known."""
    lists = b'{"items": [' + b"[]," * 5_000_000 + b"[]]}"
    keys = json.dumps({f"k{number}": 0 for number in range(1_000_000)}).encode()
    _in_threads(2, lambda: [ground.post("/v1/rewards", body, key="no") for body in (lists, keys)])
    yield


def _half_requests(ground: Ground) -> Generator[None]:
    """Opens connections that send half of their headers or of their body, and no more."""
    host, port = ground.server.address.removeprefix("http://").rstrip("/").split(":")
    half_header = b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\n"
    half_body = half_header + b"Content-Length: 1000\r\n\r\n{"
    connections: list[socket.socket] = []
    for start in [half_header, half_body] * 50:
        connections.append(socket.create_connection((host, int(port)), timeout=10))
        connections[-1].sendall(start)
    time.sleep(HELD)
    yield
    for connection in connections:
        connection.close()


def _gone_clients(ground: Ground) -> Generator[None]:
    """Sends requests and hangs up before the answer."""
    body = json.dumps(
        {
            "models": [MODEL],
            "items": [
                {
                    "prompt": [{"role": "user", "content": "word " * 200}],
                    "responses": ["yes", "no"] * 32,
                }
            ],
        }
    ).encode()
    _in_threads(8, lambda: [ground.post("/v1/rewards", body, seconds=0.05) for _ in range(20)])
    yield


def _wrong_keys(ground: Ground) -> Generator[None]:
    """Guesses keys: none may pass."""
    body = json.dumps(
        {
            "models": [MODEL],
            "items": [{"prompt": [{"role": "user", "content": "q"}], "responses": ["a"]}],
        }
    ).encode()
    answered = [ground.post("/v1/rewards", body, key=f"guess-{number}") for number in range(200)]
    assert set(answered) <= {401, 429, 0}, f"a wrong key was answered with {set(answered)}"
    yield


def _unknown_paths(ground: Ground) -> Generator[None]:
    """Asks for paths and models that are not there."""
    for number in range(100):
        ground.post(f"/v1/nothing/{number}", b"{}")
        ground.post("/v1/rewards", json.dumps({"models": ["x" * 100_000], "items": []}).encode())
    yield


def _hanging_function(ground: Ground) -> Generator[None]:
    """Makes the function wait far beyond its time, for as many calls as may run at once."""
    item = {"responses": ["hang"], "label": "hang"}
    body = json.dumps({"models": [FUNCTION], "items": [item]}).encode()
    _in_threads(20, lambda: ground.post("/v1/rewards", body, seconds=15))
    yield


def _failing_function(ground: Ground) -> Generator[None]:
    """Makes the function raise."""
    item = {"responses": ["raise"], "label": "raise"}
    body = json.dumps({"models": [FUNCTION], "items": [item]}).encode()
    for _ in range(50):
        ground.post("/v1/rewards", body)
    yield


def _full_disk(ground: Ground) -> Generator[None]:
    """Fills the file system that the server's temporary files lie on."""
    folder = Path(ground.server.env["TMPDIR"])
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    assert free < 8 << 30, f"{folder} is no small file system of its own: {free} bytes are free"
    with filler.open("wb") as written:
        os.posix_fallocate(written.fileno(), 0, max(free - 4096, 1))
    time.sleep(HELD)
    yield
    filler.unlink()


def _busy_cores(ground: Ground) -> Generator[None]:
    """Computes on all cores beside the server."""
    spin = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
    spinning = [
        subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    time.sleep(HELD)
    yield
    for process in spinning:
        process.kill()
        process.wait()


def _in_threads(num: int, work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for _ in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


FAULTS: dict[str, Fault] = {
    "kill the model's replica": _signal(signal.SIGKILL, "ServeReplica", MODEL),
    "kill the function's replica": _signal(signal.SIGKILL, "ServeReplica", FUNCTION),
    "kill a gateway": _signal(signal.SIGKILL, "ServeReplica", "gateway"),
    "kill Serve's controller": _signal(signal.SIGKILL, "ServeController"),
    "kill Serve's proxy": _signal(signal.SIGKILL, "ProxyActor"),
    "live upgrade and rollback": _live_upgrade,
    "kill the other team's server": _killed_peer,
    "kill Ray's node": _lost_node,
    "stop the model's replica": _signal(signal.SIGSTOP, "ServeReplica", MODEL),
    "stop a gateway": _signal(signal.SIGSTOP, "ServeReplica", "gateway"),
    "stop Serve's controller": _signal(signal.SIGSTOP, "ServeController"),
    "stop the command": _stopped_driver,
    "peer answers late": _peer("late"),
    "peer never answers": _peer("never"),
    "peer fails": _peer("failing"),
    "peer refuses, retry at once": _peer("refusing"),
    "peer answers garbage": _peer("garbage"),
    "peer answers NaN": _peer("nan"),
    "peer answers too few": _peer("few"),
    "peer answers 64 MB": _peer("huge"),
    "peer answers a gzip bomb": _peer("bomb"),
    "torn weights": _torn_weights,
    "a flipped byte of weights": _flipped_byte,
    "largest requests": _largest_request,
    "hostile bodies": _hostile_body,
    "half requests": _half_requests,
    "clients that hang up": _gone_clients,
    "wrong keys": _wrong_keys,
    "unknown paths and models": _unknown_paths,
    "a function that hangs": _hanging_function,
    "a function that raises": _failing_function,
    "a full disk": _full_disk,
    "busy cores": _busy_cores,
}
"""All faults by name."""


@contextmanager
def injected(name: str, ground: Ground) -> Generator[None]:
    """Puts a fault in place and holds it; takes it away at the end."""
    fault = FAULTS[name](ground)
    next(fault)
    try:
        yield
    finally:
        next(fault, None)

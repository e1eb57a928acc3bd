"""A Ray head of its own for tests, started by `ray start --head` with token authentication."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.builders.ports import free_ports
from workflows import ALONE, LOOPBACK_ONLY, TOKENS

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """A running head: how to reach it, and the environment of those that do."""

    address: str
    dashboard: str
    env: dict[str, str]

    def get(self, path):
        """Returns what the dashboard answers, parsed."""
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def listed(self, kind):
        """Returns all `actors`, `placement_groups` or `nodes` of the cluster."""
        return self.get(f"/api/v0/{kind}?limit=1000&detail=1")["data"]["result"]["result"]

    def run(self, *words):
        """Runs `ray WORDS` from the root of the repository."""
        return subprocess.run(
            [BIN / "ray", *words],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
        )


def eventually(find, seconds, what):
    """Returns the first true answer of `find`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := find():
            return found
        time.sleep(0.3)
    raise TimeoutError(f"{what} within {seconds} s: {find()!r}")


@contextmanager
def ray_head(*flags, port=None, **settings):
    """Yields a head that listens on free ports; it and its nodes are gone afterwards."""
    gcs, dashboard, client = free_ports(3)
    gcs = port or gcs
    # Socket paths must be short, so pytest's own folders do not do.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        (token := Path(folder) / "token").write_text(TOKEN)
        alone = ("RAY_ADDRESS", *LOOPBACK_ONLY, *ALONE, *TOKENS)
        env = {name: value for name, value in os.environ.items() if name not in alone} | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray's own detached actors outlive every job, and the head would wait 30 s for them.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
            **settings,
        }
        ports = {
            "port": gcs,
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": 200 << 20,
        }
        told = (Path(folder) / "head.log").open("w")
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *flags]
            + [f"--{name}={value}" for name, value in ports.items()],
            env=env,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            log = Path(told.name)
            eventually(lambda: "runtime started" in log.read_text(), 90, "the head is up")
            # A head whose dashboard could not start says so in its log, and goes on without one.
            assert "ERROR" not in log.read_text(), log.read_text()
            yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", env)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                told.close()

"""Servers started as a user starts them, with function models, which load in no time."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx2

from panoply.wire.client import Client
from panoply.wire.request import Chat, ScoreRequest
from tests.builders.ray_head import ROOT, eventually

LENGTH = "function:panoply.serve.verifiers:length"
SERVE = (sys.executable, "-m", "jobs.serve", "models", "--models")


class Served:
    """A server, started as a user starts it."""

    def __init__(self, folder, env, *flags, model="length", more=(), prefix=()):
        self.log = (folder / f"{time.monotonic_ns()}.log").open("w+")
        self.process = subprocess.Popen(
            [*prefix, *SERVE, f"{model}={LENGTH}", *more, *map(str, flags)],
            cwd=ROOT,
            env=env | {"COLUMNS": "500"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def output(self):
        """Returns its output so far."""
        with open(self.log.name) as log:
            return log.read()

    def address(self):
        """Returns the address that it prints, once it does."""

        def printed():
            assert self.process.poll() is None, self.output()
            return re.search(r"Serving at (http://\S+/) \(UI\)", self.output())

        return eventually(printed, 90, "the server prints its address")[1]

    def refusal(self):
        """Returns its output, once it ended without having printed an address."""
        assert self.process.wait(90) == 2, self.output()
        assert "Serving at" not in self.output()
        assert "Traceback" not in self.output()
        return self.output()

    def stop(self, number=signal.SIGINT):
        """Stops it."""
        self.process.send_signal(number)
        self.process.wait(60)


def changed(word, env, *flags):
    """Output of the command that changes a server that runs."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.serve", word, *map(str, flags)],
        cwd=ROOT,
        env=env | {"COLUMNS": "500"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def servers(folder, env=os.environ):
    """Yields what starts servers; those left are stopped in the end."""
    started = []

    def start(*flags, **settings):
        started.append(Served(folder, env, *flags, **settings))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            if server.process.poll() is None:
                server.stop()
            server.log.close()


def models_at(address):
    """Returns the models that are ready there."""
    states = httpx2.get(f"{address}health").json()["models"]
    return [name for name, state in states.items() if state == "ready"]


def score(address, text, key=None):
    request = ScoreRequest(items=(Chat(({"role": "user", "content": "q"},), (text,)),))
    with Client(address, timeout=30, api_key=key) as client:
        return client.score(request).models[0].items[0][0].score

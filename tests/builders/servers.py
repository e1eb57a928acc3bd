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

    def __init__(self, folder, env, *flags, model="length", more=()):
        self.log = (folder / f"{time.monotonic_ns()}.log").open("w+")
        self.process = subprocess.Popen(
            [*SERVE, f"{model}={LENGTH}", *more, *map(str, flags)],
            cwd=ROOT,
            env=env | {"COLUMNS": "500"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def told(self):
        """Returns what it printed so far."""
        with open(self.log.name) as log:
            return log.read()

    def address(self):
        """Returns the address that it tells, once it does."""

        def told():
            assert self.process.poll() is None, self.told()
            return re.search(r"Serving at (http://\S+/) \(UI\)", self.told())

        return eventually(told, 90, "the server tells its address")[1]

    def refusal(self):
        """Returns what it says in the end, without ever having told an address."""
        assert self.process.wait(90) == 2, self.told()
        assert "Serving at" not in self.told()
        assert "Traceback" not in self.told()
        return self.told()

    def stop(self, number=signal.SIGINT):
        """Stops it."""
        self.process.send_signal(number)
        self.process.wait(60)


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
        for one in started:
            if one.process.poll() is None:
                one.stop()
            one.log.close()


def models_at(address):
    """Returns the models that are ready there."""
    states = httpx2.get(f"{address}health").json()["models"]
    return [name for name, state in states.items() if state == "ready"]


def score(address, text):
    request = ScoreRequest(items=(Chat(({"role": "user", "content": "q"},), (text,)),))
    with Client(address, timeout=30) as client:
        return client.score(request).models[0].items[0][0].score

"""A real MLflow server, and a door before it that can be shut: what the tests of tracking share."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError
from urllib.request import urlopen

from tests.builders.ports import free_ports


@contextmanager
def mlflow_server(folder):
    """Yields the address of a server whose database and files lie in a folder."""
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--artifacts-destination", str(folder / "files")]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        for _ in range(600):
            try:
                urlopen(f"{uri}/health", timeout=1)
                break
            except (URLError, TimeoutError):
                assert process.poll() is None
                time.sleep(0.2)
        yield uri
    finally:
        process.terminate()
        process.wait()


class Quiet(ThreadingHTTPServer):
    """Prints no traceback where a client gave up."""

    daemon_threads = True

    def handle_error(self, *_):
        """Does nothing."""


class Door:
    """An address that hands requests on to a server until it is shut, in one of several ways."""

    def __init__(self, uri: str) -> None:
        self.behind = uri.removeprefix("http://")
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.open()

    def open(self) -> None:
        """Listens, and hands on what comes."""
        self.refuses = self.refuses_method = ""
        self.answers = threading.Event()
        self.answers.set()
        self.server = Quiet(("127.0.0.1", self.port), handler(self))
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def shut(self) -> None:
        """Listens no more: connections are refused."""
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()

    def hang(self) -> None:
        """Takes connections and answers none."""
        self.answers.clear()

    def refuse(self, status: int, method: str = "") -> None:
        """Answers with an error, to all requests or to those of a method."""
        self.refuses, self.refuses_method = str(status), method


def handler(door: Door) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not door.answers.is_set():
                door.answers.wait(60)
                return
            if door.refuses and door.refuses_method in ("", self.command):
                self.send_error(int(door.refuses), "refused")
                return
            behind = http.client.HTTPConnection(door.behind, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            payload = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    return Handler

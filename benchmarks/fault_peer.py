"""A server of another team, in OpenRLHF's words, that misbehaves as a file asks it to.

`python -m benchmarks.fault_peer PORT MODE`: MODE is a file whose one word is read at each request:
`right`, or a kind of `ANSWERS`.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SLOW_SECONDS = 2.0
HANG_SECONDS = 60.0
Answer = tuple[int, dict[str, str], bytes]


def score_text(text: str) -> float:
    """Returns the score of a text: a tenth of its characters."""
    return len(text) / 10


def answer_right(queries: list[str]) -> Answer:
    """Answers as OpenRLHF's server does."""
    return 200, {}, json.dumps({"rewards": [score_text(query) for query in queries]}).encode()


def answer_late(queries: list[str]) -> Answer:
    """Answers rightly, after seconds."""
    time.sleep(SLOW_SECONDS)
    return answer_right(queries)


def answer_never(queries: list[str]) -> Answer:
    """Keeps the connection open without a word."""
    time.sleep(HANG_SECONDS)
    return answer_right(queries)


def answer_nan(queries: list[str]) -> Answer:
    """Answers with numbers that are none."""
    return 200, {}, b'{"rewards": [' + b", ".join(b"NaN" for _ in queries) + b"]}"


def answer_bomb(queries: list[str]) -> Answer:
    """Answers with 200 KB that become 200 MB."""
    return 200, {"content-encoding": "gzip"}, gzip.compress(b" " * (200 << 20))


ANSWERS: dict[str, Callable[[list[str]], Answer]] = {
    "right": answer_right,
    "late": answer_late,
    "never": answer_never,
    "failing": lambda _: (500, {}, b"Traceback: DB_PASSWORD=canary"),
    "refusing": lambda _: (429, {"retry-after": "0"}, b"{}"),
    "garbage": lambda _: (200, {}, b"<html>\xff\xfe not JSON"),
    "nan": answer_nan,
    "few": lambda _: (200, {}, b'{"rewards": []}'),
    "huge": lambda _: (200, {}, b'{"rewards": [' + b" " * (64 << 20) + b"1]}"),
    "bomb": answer_bomb,
}


def handler(mode: Path) -> type[BaseHTTPRequestHandler]:
    """Returns what handles a request by the word in a file."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Answers a request as the file asks."""
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, content = ANSWERS[mode.read_text().strip()](body["query"])
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Writes no log."""

    return Handler


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler(Path(sys.argv[2])))
    server.daemon_threads = True
    server.serve_forever()

"""A judge's answers from the cache: `python -m benchmarks.judge_cache --json FILE`.

A server on this machine answers each question at once with a number that is drawn at random, so
that only a kept answer comes back the same. Responses are scored once, which fills the cache, and
again by a new scorer, which reads it.

`server`, `cache`: scores a second of CPU time, with the prompt's template, the key's hash, the
record and the verdict in it; wall time stands beside. Bar: `cache` at least 1,000.
`cache_vs_server`: the one over the other. `same`: share of the scores that are the same to the last
bit. Bar: 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai

from benchmarks import harness
from benchmarks.harness import print_figures, run, setting, write_figures
from panoply.scorers.judge.scorer import JudgeScorer
from panoply.wire.request import Chat, Score

SETTINGS = """\
server:
  url: {url}#m
prompt: "{{{{ prompt }}}} {{{{ response }}}} {{{{ answer_format }}}}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    responses: int = 4000
    """Responses, eight to a prompt."""
    words: int = 150
    """Words of a response."""


class RandomJudge(BaseHTTPRequestHandler):
    """Judge that answers at random."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answers a chat completion."""
        self.rfile.read(int(self.headers["content-length"]))
        verdict = json.dumps({"reason": "It is so.", "score": random.uniform(1, 10)})
        choice = {"message": {"content": verdict}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 300, "completion_tokens": 20}
        body = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@contextmanager
def judging() -> Generator[str]:
    """Yields the address of the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), RandomJudge)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()


def chats(num_responses: int, num_words: int) -> list[Chat]:
    """Returns prompts with eight responses each."""
    rng = random.Random(0)
    items: list[Chat] = []
    for i in range(num_responses // 8):
        prompt = ({"role": "user", "content": f"Question {i}?"},)
        texts = [" ".join(rng.choices("abcdefgh", k=num_words)) for _ in range(8)]
        items.append(Chat(prompt, tuple(texts)))
    return items


async def timed(file: Path, items: Sequence[Chat]) -> tuple[list[Score], dict[str, float]]:
    """Returns scores by a new scorer, and scores a second of CPU and of wall time."""
    scorer = JudgeScorer(str(file))
    cpu, wall = time.process_time(), time.perf_counter()
    rows = await scorer.score(items)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await scorer.close()
    scores: list[Score] = []
    for row in rows:
        scores += row
    return scores, {"ratio": len(scores) / cpu, "per_wall_second": len(scores) / wall}


def measured(num_responses: int, num_words: int) -> dict[str, dict[str, float]]:
    """Returns the figures of scoring all responses twice.

    Args:
        num_responses: eight to a prompt.
        num_words: of a response.
    """
    items = chats(num_responses, num_words)
    with tempfile.TemporaryDirectory() as folder, judging() as url:
        os.environ["PANOPLY_STORE"] = f"{folder}/store"
        file = Path(folder) / "judge.yaml"
        file.write_text(SETTINGS.format(url=url))
        new_scores, by_server = asyncio.run(timed(file, items))
        kept_scores, by_cache = asyncio.run(timed(file, items))
    num_same = sum(
        a.score == b.score is not None for a, b in zip(new_scores, kept_scores, strict=True)
    )
    return {
        "server": by_server,
        "cache": by_cache,
        "cache_vs_server": {"ratio": by_cache["ratio"] / by_server["ratio"]},
        "same": {"ratio": num_same / len(new_scores)},
    }


def main(options: Options) -> None:
    """Measures, and prints and writes the figures."""
    figures: dict[str, Any] = measured(options.responses, options.words)
    figures["setting"] = setting(openai, responses=options.responses, words=options.words)
    print_figures(figures, ("ratio", "per_wall_second"))
    write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)

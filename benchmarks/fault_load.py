"""Requests of all dialects with their right scores, and what became of each that was sent."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

from benchmarks.fault_kinds import FIRST_VERSION, MODEL
from benchmarks.fault_peer import score_text

Outcome = Literal["right", "refused", "wrong", "untyped", "unreachable"]
CLOSE = 1e-3
"""Largest relative difference of a score, of scores near 1."""
TYPED = frozenset({400, 401, 404, 408, 413, 415, 422, 424, 429, 500, 502, 503, 504})
DISCONNECTED = (httpx2.TransportError,)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request whose scores are known."""

    dialect: str
    model: str
    path: str
    body: bytes
    read: Callable[[Any], list[Any]]
    """Scores in the order sent, from the parsed answer."""
    scores: tuple[float, ...]

    def scores_by(self, versions: str) -> list[float]:
        """Returns the right scores of the versions that answered: twice as large by later ones."""
        factor = 2.0 if versions.startswith(f"{MODEL}=") and versions != FIRST_VERSION else 1.0
        return [factor * score for score in self.scores]


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one request."""

    begun: float
    """Seconds of the monotonic clock."""
    seconds: float
    dialect: str
    model: str
    outcome: Outcome
    detail: str = ""


def by_index(key: str) -> Callable[[Sequence[dict[str, Any]]], list[float]]:
    """Returns what reads ranked results in the order in which the texts were sent."""

    def read(results: Sequence[dict[str, Any]]) -> list[float]:
        return [entry[key] for entry in sorted(results, key=lambda entry: entry["index"])]

    return read


def asks_of(
    model: str,
    prompts: Sequence[tuple[str, Sequence[str]]],
    score: Callable[[str, Sequence[str]], Sequence[float]],
    render: Callable[[str, str], tuple[str, str]],
    *,
    messages_only: bool = False,
) -> list[Ask]:
    """Returns requests of one model: each prompt in a dialect, in turn.

    Args:
        model: served name.
        prompts: a user's turn, and responses to it.
        score: right scores of a prompt's responses.
        render: the text that a policy goes on from, and the text of the whole conversation.
        messages_only: dialects that send messages alone, for models without a template.
    """
    asks: list[Ask] = []
    for number, (prompt, responses) in enumerate(prompts):
        scores = tuple(score(prompt, responses))
        first = render(prompt, responses[0])
        dialects = _with_messages(model, prompt, responses)
        if not messages_only:
            texts = [render(prompt, response)[1] for response in responses]
            dialects |= _with_texts(model, prompt, responses, texts, first[0])
        name = list(dialects)[number % len(dialects)]
        path, body, read, num = dialects[name]
        asks.append(Ask(name, model, path, json.dumps(body).encode(), read, scores[:num]))
    return asks


Dialect = tuple[str, Any, Callable[[Any], list[Any]], int]
"""Path, payload, reader of the answer, and how many of the responses were sent."""


def _with_messages(model: str, prompt: str, responses: Sequence[str]) -> dict[str, Dialect]:
    turns = [{"role": "user", "content": prompt}]
    whole = [*turns, {"role": "assistant", "content": responses[0]}]
    item = {"prompt": turns, "responses": list(responses)}
    return {
        "panoply": (
            "/v1/rewards",
            {"models": [model], "items": [item]},
            lambda answer: [entry["score"] for entry in answer["results"][0]["items"][0]],
            len(responses),
        ),
        "slime messages": (
            f"/models/{model}/slime",
            {"prompt": turns, "response": responses[0]},
            lambda answer: [answer],
            1,
        ),
        "vllm messages": (
            "/v1/classify",
            {"model": model, "messages": whole, "use_activation": False},
            lambda answer: [entry["probs"][-1] for entry in answer["data"]],
            1,
        ),
    }


def _with_texts(
    model: str, prompt: str, responses: Sequence[str], texts: list[str], opening: str
) -> dict[str, Dialect]:
    num, answers = len(responses), list(responses)
    by_query = {"query": prompt, "documents": answers}
    return {
        "openrlhf": (
            f"/models/{model}/get_reward",
            {"query": texts, "prompts": [opening] * num, "labels": [None] * num},
            lambda answer: answer["rewards"],
            num,
        ),
        "slime text": (
            f"/models/{model}/slime",
            {"prompt": opening, "response": texts[0][len(opening) :]},
            lambda answer: [answer],
            1,
        ),
        "vllm classify": (
            "/classify",
            {"model": model, "input": texts, "use_activation": False},
            lambda answer: [entry["probs"][-1] for entry in answer["data"]],
            num,
        ),
        "vllm pooling": (
            "/pooling",
            {"model": model, "input": texts, "use_activation": False},
            lambda answer: [entry["data"][-1] for entry in answer["data"]],
            num,
        ),
        "vllm score": (
            "/v1/score",
            {"model": model, "text_1": prompt, "text_2": answers, "use_activation": False},
            lambda answer: [entry["score"] for entry in answer["data"]],
            num,
        ),
        "vllm rerank": (
            "/v1/rerank",
            {"model": model, **by_query, "use_activation": False},
            lambda answer: by_index("relevance_score")(answer["results"]),
            num,
        ),
        "sglang classify": (
            "/classify",
            {"model": model, "text": texts},
            lambda answer: [entry["embedding"][0] for entry in answer],
            num,
        ),
        "openai embeddings": (
            "/v1/embeddings",
            {"model": model, "input": texts},
            lambda answer: [entry["embedding"][-1] for entry in answer["data"]],
            num,
        ),
        "sglang rerank": (
            "/sglang/v1/rerank",
            {"model": model, **by_query},
            by_index("score"),
            num,
        ),
        "tei predict": (
            f"/models/{model}/predict",
            {"inputs": [[text] for text in texts], "raw_scores": True},
            lambda answer: [entries[0]["score"] for entries in answer],
            num,
        ),
        "tei rerank": (
            f"/models/{model}/rerank",
            {"query": prompt, "texts": answers, "raw_scores": True},
            by_index("score"),
            num,
        ),
        "llamafactory": (
            f"/models/{model}/v1/score/evaluation",
            {"model": "model", "messages": texts},
            lambda answer: answer["scores"],
            num,
        ),
    }


def score_by_length(_: str, responses: Sequence[str]) -> list[float]:
    """Returns the scores of the function that counts characters."""
    return [float(len(response)) for response in responses]


def score_by_peer(prompt: str, responses: Sequence[str]) -> list[float]:
    """Returns the scores of the peer, which gets ChatML."""
    opening = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return [score_text(f"{opening}{response}<|im_end|>\n") for response in responses]


async def send(http: httpx2.AsyncClient, ask: Ask, key: str) -> Sent:
    """Sends a request and judges what comes back."""
    begun = time.monotonic()

    def sent(outcome: Outcome, detail: str = "") -> Sent:
        seconds = time.monotonic() - begun
        return Sent(begun, seconds, ask.dialect, ask.model, outcome, detail)

    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        answer = await http.post(ask.path, content=ask.body, headers=headers)
    except DISCONNECTED as error:
        return sent("unreachable", type(error).__name__)
    try:
        payload = answer.json()
    except ValueError:
        return sent("untyped", f"{answer.status_code} {answer.headers.get('content-type')}")
    if answer.status_code != 200:
        typed = answer.status_code in TYPED and _has_reason(payload)
        return sent("refused" if typed else "untyped", f"{answer.status_code}")
    try:
        scores = ask.read(payload)
    except (KeyError, IndexError, TypeError) as error:
        return sent("untyped", f"200 {error!r}")
    if any(score is None for score in scores):
        return sent("refused", "error of a score")
    right = ask.scores_by(versions := answer.headers.get("x-model-versions", ""))
    if len(scores) != len(right):
        return sent("wrong", f"{len(scores)} scores of {len(right)}")
    if all(abs(a - b) <= CLOSE * max(1.0, abs(b)) for a, b in zip(scores, right, strict=True)):
        return sent("right")
    return sent("wrong", f"{versions}: {scores} {right}")


def _has_reason(payload: Any) -> bool:
    """Says whether an error has a reason, in any dialect's shape."""
    if isinstance(payload, dict):
        return any(payload.get(key) for key in ("error", "message", "detail"))  # pyright: ignore[reportUnknownMemberType]
    return False


@dataclass
class Load:
    """Clients that send on their own schedule, whatever becomes of earlier requests."""

    address: str
    asks: Sequence[Ask]
    key: str
    clients: int
    seed: int
    timeout: float = 60.0
    sent: list[Sent] = field(default_factory=list[Sent])
    num_begun: int = 0

    async def closed(self, seconds: float) -> float:
        """Sends as fast as answers come; returns the right answers a second."""
        ends, before = time.monotonic() + seconds, len(self.sent)
        rng = random.Random(self.seed)

        async def client(http: httpx2.AsyncClient) -> None:
            while time.monotonic() < ends:
                await self._one(http, rng.choice(self.asks))

        async with self._http() as http:
            await asyncio.gather(*(client(http) for _ in range(self.clients)))
        return sum(one.outcome == "right" for one in self.sent[before:]) / seconds

    async def open(self, rate: float, until: Callable[[], bool]) -> None:
        """Sends at a rate, as Poisson arrivals of each client, until told to stop.

        A client sends no further request while it waits for `PATIENCE` answers.
        """
        rng = random.Random(self.seed + 1)

        async def client(http: httpx2.AsyncClient, number: int) -> None:
            own = random.Random(rng.random() + number)
            waiting: set[asyncio.Task[None]] = set()
            due = time.monotonic()
            while not until():
                due += own.expovariate(rate / self.clients)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if len(waiting) < PATIENCE:
                    task = asyncio.create_task(self._one(http, own.choice(self.asks)))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
                else:
                    due = time.monotonic()
            await asyncio.gather(*waiting)

        async with self._http() as http:
            await asyncio.gather(*(client(http, number) for number in range(self.clients)))

    async def _one(self, http: httpx2.AsyncClient, ask: Ask) -> None:
        self.num_begun += 1
        self.sent.append(await send(http, ask, self.key))

    def _http(self) -> httpx2.AsyncClient:
        most = self.clients * PATIENCE
        limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most)
        return httpx2.AsyncClient(base_url=self.address, timeout=self.timeout, limits=limits)


PATIENCE = 4
"""Requests that a client has under way at most."""


def tally(sent: Sequence[Sent]) -> Counter[str]:
    """Counts outcomes."""
    return Counter(one.outcome for one in sent)

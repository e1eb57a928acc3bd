"""A served set of scorers under overload, while a fault is injected every 30 s.

`python -m benchmarks.faults --json FILE` starts `jobs.serve` with a reward model, a function and
another team's server; 32 clients ask in all dialects at 1.2 times what the server answers at most.
First without faults, then with one of `benchmarks.fault_kinds` at a time, in an order that the seed
gives. Every answer is compared with the score computed in this process.

`wrong`, `untyped`, `lost`: answers with another score; errors without a reason in the dialect's
shape, and broken connections, outside of recovery windows; requests that were sent and have no
outcome. `memory`: the server's memory at the end over that after the phase without faults. `p99`:
of right answers outside of recovery windows, over that of the phase without faults. A recovery
window is from the injection of a fault until all scorers have answered for 2 s.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks import harness
from benchmarks.fault_kinds import FAULTS, FUNCTION, MODEL, PEER, Ground, Server, injected
from benchmarks.fault_load import Ask, Load, Sent, asks_of, score_by_length, score_by_peer, tally
from benchmarks.harness import print_figures, run, setting, write_figures

KEY_VARIABLE = "PANOPLY_BENCHMARK_KEY"
KEY = "benchmark-key"
FUNCTION_FILE = '''"""Counts characters, and misbehaves where a label asks for it."""

import time


def length(response: str, label: object = None) -> float:
    """Returns the number of characters."""
    if label == "hang":
        time.sleep(600)
    if label == "raise":
        raise RuntimeError("canary-of-a-function")
    return float(len(response))
'''
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("water", "tap", "pipe", "washer", "turn", "off", "open", "slowly", "twice", "never", "why")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    minutes: float = 20.0
    """Of load, with and without faults."""
    every: float = 30.0
    """Seconds between faults."""
    clients: int = 32
    overload: float = 1.2
    """Rate of requests, in right answers a second that as many clients got in a closed loop."""
    seed: int = 0
    faults: tuple[str, ...] = tuple(FAULTS)
    """Kinds to draw from."""
    port: int = 8741
    work: Path = Path("runs/benchmark-faults")
    """Folder of the model, of logs, and of the server's temporary files."""


@dataclass(slots=True)
class Window:
    """A fault and the time that it took."""

    fault: str
    begun: float
    healed: float = 0.0
    recovered: float = 0.0
    failure: str = ""
    """What the fault itself found wrong."""


@dataclass(slots=True)
class Measured:
    """What came of a run."""

    capacity: float
    quiet: tuple[float, float]
    """Begin and end of the phase without faults."""
    memory: list[tuple[float, dict[str, float]]] = field(
        default_factory=list[tuple[float, dict[str, float]]]
    )
    """Time, and MiB of the server's processes by what they run."""
    windows: list[Window] = field(default_factory=list[Window])


def main(options: Options) -> None:
    """Runs the benchmark and prints its tables."""
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    model = save_model(work / "model", scale=1.0)
    next_model = save_model(work / "next-model", scale=2.0)
    asks = make_asks(model)
    with ground_of(options, work, model, next_model) as ground:
        wait_until_ready(ground)
        load = Load(ground.server.address, asks, KEY, options.clients, options.seed)
        measured = drive(options, ground, load)
        figures = summarize(options, measured, load)
    write_figures(options.json, figures)
    print_figures(figures["figures"], ("value", "bar"))
    print_figures(figures["faults"], ("recovery_seconds", "right", "refused", "broken"))


def save_model(folder: Path, scale: float) -> Path:
    """Writes a small classifier with random weights; its scores are multiplied by `scale`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from panoply.seal import seal

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    inner.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<pad>", model_max_length=2048
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
        max_position_embeddings=2048,
    )
    model = transformers.LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seal(folder)  # so that changed weights are refused, and do not score wrongly
    return folder


def make_asks(folder: Path) -> list[Ask]:
    """Returns requests to all scorers in all dialects, with scores computed here."""
    import torch

    from panoply.hub.artefact.load import load_reward_model

    torch.set_num_threads(1)  # small matrices: more threads wait for each other
    model = load_reward_model(str(folder))
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(3, 40)))

    prompts = [
        (f"{sentence()} {number}?", [f"{sentence()}." for _ in range(rng.randint(1, 8))])
        for number in range(320)
    ]

    def score(prompt: str, responses: Sequence[str]) -> list[float]:
        return model.score([{"role": "user", "content": prompt}], responses).tolist()

    def render(prompt: str, response: str) -> tuple[str, str]:
        opening = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        return opening, f"{opening}{response}<|im_end|>\n"

    return [
        *asks_of(MODEL, prompts[:240], score, render),
        *asks_of(FUNCTION, prompts[240:280], score_by_length, render, messages_only=True),
        *asks_of(PEER, prompts[280:], score_by_peer, render, messages_only=True),
    ]


@contextmanager
def ground_of(options: Options, work: Path, model: Path, next_model: Path) -> Generator[Ground]:
    """Starts the other team's server and ours; stops both at the end."""
    (work / "scorer.py").write_text(FUNCTION_FILE)
    (mode := work / "peer-mode").write_text("right")
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    mounted = mount_small(temporary)
    peer_port = options.port + 1
    peer_command = [sys.executable, "-m", "benchmarks.fault_peer", str(peer_port), str(mode)]
    command = [
        *(sys.executable, "-m", "jobs.serve", "models", "--port", str(options.port)),
        *("--models", f"{MODEL}={model}", f"{FUNCTION}=function:{work / 'scorer.py'}:length"),
        f"{PEER}=openrlhf+http://127.0.0.1:{peer_port}?template=chatml",
        *("--keys", f"{MODEL}={KEY_VARIABLE}"),
    ]
    env = os.environ | {KEY_VARIABLE: KEY, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    peer = subprocess.Popen(peer_command)
    address = f"http://127.0.0.1:{options.port}/"
    server = Server(command, address, work / "server.log", env)
    ground = Ground(server, KEY, model, next_model, peer_command, mode, peer)
    try:
        yield ground
    finally:
        ground.peer.kill()
        ground.server.stop()
        if mounted:
            subprocess.run(["umount", "--lazy", str(temporary)], check=False)


def mount_small(folder: Path) -> bool:
    """Mounts a file system of 2 GB on a folder, where the user may; it can be filled."""
    options = ["-t", "tmpfs", "-o", "size=2g,mode=1777", "tmpfs", str(folder)]
    return subprocess.run(["mount", *options], check=False, capture_output=True).returncode == 0


def wait_until_ready(ground: Ground, seconds: float = 300.0) -> None:
    """Waits until every scorer answers."""
    ends = time.monotonic() + seconds
    while not all_answer(ground.server.address):
        assert ground.server.process.poll() is None, f"the server ended: {ground.server.log}"
        assert time.monotonic() < ends, f"no answer within {seconds:.0f} s: {ground.server.log}"
        time.sleep(0.5)


def all_answer(address: str) -> bool:
    """Says whether all scorers answer a small request now."""
    item = {"prompt": [{"role": "user", "content": "on?"}], "responses": ["yes"]}
    body = {"models": [MODEL, FUNCTION, PEER], "items": [item], "timeout": 3}
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        answer = httpx2.post(f"{address}v1/rewards", json=body, headers=headers, timeout=5)
        if answer.status_code != 200:
            return answer.status_code == 429 and _answers_some(address)
        results = answer.json()["results"]
    except (httpx2.TransportError, ValueError):
        return False
    return all(result["items"][0][0].get("score") is not None for result in results)


def _answers_some(address: str) -> bool:
    """Says whether an overloaded server is whole: each model is ready."""
    try:
        states = httpx2.get(f"{address}health", timeout=5).json()["models"]
    except (httpx2.TransportError, ValueError):
        return False
    return all(state == "ready" for state in states.values())


def drive(options: Options, ground: Ground, load: Load) -> Measured:
    """Measures the capacity, then loads beyond it, first without and then with faults."""
    asyncio.run(load.closed(10.0))  # warms up
    # The version before stays beside the new one for a rollback: it belongs to the memory before.
    ground.change("upgrade", "--models", f"{MODEL}={ground.next_model}")
    ground.change("rollback", "--models", MODEL)
    capacity = asyncio.run(load.closed(15.0))
    load.sent.clear()
    load.num_begun = 0
    print(f"{capacity:.0f} right answers a second", flush=True)
    begun = time.monotonic()
    quiet_ends = begun + 60 * options.minutes * 0.2
    measured = Measured(capacity, (begun, quiet_ends))
    over = threading.Event()
    breaker = threading.Thread(
        target=inject_all, args=(options, ground, measured, begun + 60 * options.minutes, over)
    )
    breaker.start()
    asyncio.run(load.open(options.overload * capacity, over.is_set))
    breaker.join()
    return measured


def inject_all(
    options: Options, ground: Ground, measured: Measured, ends: float, over: threading.Event
) -> None:
    """Injects one fault after the other, once the phase without faults is over."""
    rng = random.Random(options.seed)
    order: list[str] = []
    try:
        while (now := time.monotonic()) < measured.quiet[1]:
            measured.memory.append((now, ground.server.memory_mib()))
            time.sleep(5)
        while time.monotonic() < ends:
            if not order:
                order = rng.sample(options.faults, len(options.faults))
            measured.windows.append(inject(order.pop(), ground, options.every))
            measured.memory.append((time.monotonic(), ground.server.memory_mib()))
    finally:
        over.set()


def inject(fault: str, ground: Ground, every: float) -> Window:
    """Injects a fault and waits until all scorers answer again, and the next one is due."""
    window = Window(fault, time.monotonic())
    try:
        with injected(fault, ground):
            pass
    except (AssertionError, OSError, subprocess.SubprocessError, psutil.Error) as failure:
        window.failure = f"{type(failure).__name__}: {failure}"[:300]
    window.healed = time.monotonic()
    since = None
    while since is None or time.monotonic() - since < 2.0:
        since = (since or time.monotonic()) if all_answer(ground.server.address) else None
        if time.monotonic() - window.healed > 300:
            window.failure = window.failure or "no recovery within 300 s"
            break
        time.sleep(0.25)
    window.recovered = since or time.monotonic()
    print(f"{fault}: {window.recovered - window.healed:.1f} s {window.failure}", flush=True)
    time.sleep(max(0.0, window.begun + every - time.monotonic()))
    return window


def summarize(options: Options, measured: Measured, load: Load) -> dict[str, Any]:
    """Returns figures beside their bars, and what became of requests in each fault's window."""
    # A request of the phase without faults that is under way when the first one comes is in its
    # window.
    outside = [
        one
        for one in load.sent
        if not any(_within(one, window.begun, window.recovered) for window in measured.windows)
    ]
    quiet = [one for one in outside if _within(one, *measured.quiet)]
    calm = [one for one in outside if one.begun > measured.quiet[1]]
    outcomes = tally(load.sent)
    broken = [one for one in quiet + calm if one.outcome in ("untyped", "unreachable")]
    before = p99(quiet)
    settled = [mib for at, mib in measured.memory if at <= measured.quiet[1]][-1]
    last = measured.memory[-1][1]
    figures: dict[str, Any] = {
        "wrong": {"value": outcomes["wrong"], "bar": 0},
        "untyped or broken outside of windows": {"value": len(broken), "bar": 0},
        "untyped in windows": {
            "value": sum(one.outcome == "untyped" for one in load.sent)
            - sum(one.outcome == "untyped" for one in broken),
            "bar": 0,
        },
        "lost or doubled": {"value": load.num_begun - len(load.sent), "bar": 0},
        "faults that found something wrong": {
            "value": sum(bool(window.failure) for window in measured.windows),
            "bar": 0,
        },
        "memory at the end over before faults": {
            "value": sum(last.values()) / sum(settled.values()),
            "bar": 1.05,
        },
        "p99 outside of windows over without faults": {"value": p99(calm) / before, "bar": 2.0},
    }
    return {
        "setting": about(options, measured),
        "figures": figures,
        "outcomes": dict(outcomes),
        "p99_seconds": {"without faults": before, "outside of windows": p99(calm)},
        "memory_mib": {
            "before faults": settled,
            "at the end": last,
            "over time": [round(sum(mib.values())) for _, mib in measured.memory],
        },
        "details": _details(load.sent),
        "faults": {
            f"{number}. {window.fault}": _of_window(window, load.sent)
            for number, window in enumerate(measured.windows, start=1)
        },
    }


def p99(sent: Sequence[Sent]) -> float:
    """Returns the 99th percentile of the seconds of right answers."""
    seconds = [one.seconds for one in sent if one.outcome == "right"]
    return statistics.quantiles(seconds, n=100)[98] if len(seconds) > 1 else float("nan")


def _within(sent: Sent, begin: float, end: float) -> bool:
    """Says whether a request was under way in a span of time."""
    return sent.begun < end and sent.begun + sent.seconds > begin


def _of_window(window: Window, sent: Sequence[Sent]) -> dict[str, Any]:
    counts = tally([one for one in sent if _within(one, window.begun, window.recovered)])
    return {
        "recovery_seconds": window.recovered - window.healed,
        "window_seconds": window.recovered - window.begun,
        "right": counts["right"],
        "refused": counts["refused"],
        "broken": counts["untyped"] + counts["unreachable"],
        "failure": window.failure,
    }


def _details(sent: Sequence[Sent]) -> dict[str, int]:
    """Counts what was not right by outcome, dialect and detail."""
    counts: dict[str, int] = {}
    for one in sent:
        if one.outcome != "right":
            name = f"{one.outcome} {one.model} {one.detail[:80]}"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1])[:40])


def about(options: Options, measured: Measured) -> dict[str, Any]:
    """Returns versions, sizes and the capacity."""
    import ray
    import torch

    return setting(
        *(torch, ray),
        minutes=options.minutes,
        clients=options.clients,
        seed=options.seed,
        right_answers_per_second=measured.capacity,
        overload=options.overload,
        faults=len(measured.windows),
        kinds=len({window.fault for window in measured.windows}),
    )


if __name__ == "__main__":
    run(main, Options)

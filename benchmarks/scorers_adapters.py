"""Adapters on one loaded backbone: `python -m benchmarks.scorers_adapters --json FILE`.

K reward models of random LoRA adapters on SmolLM2-135M, as one replica of a shared backbone, beside
replicas of the same models merged. Replicas answer in their own processes, without HTTP.

`memory`: memory of the one process over that of K processes with a merged model each, pages that
several of them map counted once (PSS). Bar: at most .25.
`throughput`: seconds of a load by one merged model, over those of the same load by the shared
backbone, its requests spread evenly over the K models. Bar: at least .9.
`one_adapter`: the same with all requests to one of the K, which is the cost of an adapter that is
not merged.
`mixing`: seconds of the load to one adapter over those of the load spread over all K: what it costs
that a batch has a forward for each adapter in it.
`drift`: largest difference between a model's scores merged and on the shared backbone, over their
deviation.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import peft
import psutil
import torch
import transformers

from actors.model_replica import RewardModelReplica
from actors.shared_replica import SharedBackboneReplica
from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, settings_of, write_figures
from panoply.config import Rendering
from panoply.config.preference import Lora, TrainedBackboneConfig
from panoply.config.serve import (
    BatchConfig,
    ScalingConfig,
    ServedModelConfig,
    SharedBackboneConfig,
)
from panoply.hub.artefact.manifest import ScalarManifest
from panoply.hub.artefact.members import HEAD, save_adapter_members
from panoply.hub.artefact.scalar import save_scalar_model
from panoply.hub.policy.trainable import TrainableModel, load_trainable
from panoply.serve.calls import ReplicaRequest, bucket_of
from panoply.wire.request import Chat, RequestError

WORDS = ("the", "egg", "boils", "in", "hot", "water", "for", "ten", "minutes", "and", "cools")
RENDERING = Rendering(max_prompt_tokens=1024, max_response_tokens=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    adapters: int = 8
    """Number of models, K."""
    rank: int = 16
    """Rank of their adapters."""
    requests: int = 96
    """Requests of a load, each a prompt with its responses."""
    responses: int = 4
    """Responses to a prompt."""
    words: int = 60
    """Words of a response."""
    threads: int = 2
    """Threads of a replica."""
    concurrency: int = 16
    """Requests in progress at a time."""
    max_seconds: float = 0.5
    """Target seconds of a batch. Where it is about one request, rounding to whole requests decides
    how many a batch holds, and so the figures."""
    repeats: int = 3
    """Times that each load is measured, in turn."""


def main(options: Options) -> None:
    """Saves the models, measures memory and time, and prints and writes the figures."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapters, merged = save_models(Path(folder), options)
        figures: dict[str, Any] = {"memory": memory(adapters, merged, options)}
        figures |= asyncio.run(throughput(adapters, merged[0], options))
    figures["setting"] = setting(torch, transformers, peft, **settings_of(options))
    print_figures(figures, ("ratio", "min", "max"))
    write_figures(options.json, figures)


def save_models(work: Path, options: Options) -> tuple[list[Path], list[Path]]:
    """Returns folders of the models as adapters, and of the same models merged."""
    adapters: list[Path] = []
    merged: list[Path] = []
    backbone = TrainedBackboneConfig(
        dtype="float32", trained=Lora(rank=options.rank), rendering=RENDERING
    )
    for number in range(options.adapters):
        trainable = load_trainable(backbone, seed=number)
        torch.manual_seed(number)
        params: dict[str, torch.Tensor] = {}
        for name, parameter in trainable.net.named_parameters():
            if parameter.requires_grad:
                params[name] = parameter.data.normal_(std=0.02).clone()
        whole = manifest_of(trainable, "heads")
        merged.append(work / f"merged-{number}")
        save_scalar_model(
            trainable.backbone(), trainable.renderer, params[HEAD], whole, merged[-1], []
        )
        adapters.append(work / f"adapter-{number}")
        save_adapter_members(
            trainable, [params], manifest_of(trainable, "adapters"), adapters[-1], []
        )
    return adapters, merged


def manifest_of(trainable: TrainableModel, members: Any) -> ScalarManifest:
    """Returns the manifest of a random model."""
    return ScalarManifest(
        rendering=RENDERING,
        temperature=1.0,
        seed=0,
        template_hash=trainable.renderer.template_hash,
        bos=tuple(trainable.renderer.bos),
        backbone="embedded",
        depth=trainable.num_layers,
        dtype="float32",
        sources=("none",),
        data={},
        method={},
        centers=(0.0,),
        scales=(1.0,),
        members=members,
    )


def config_of(folder: Path, options: Options) -> ServedModelConfig:
    """Returns the settings of a model under the name of its folder."""
    scaling = ScalingConfig(cpus=options.threads)
    batch = BatchConfig(max_seconds=options.max_seconds)
    return ServedModelConfig(name=folder.name, where=str(folder), scaling=scaling, batch=batch)


async def shared_replica(adapters: Sequence[Path], options: Options) -> SharedBackboneReplica:
    """Returns a replica of the shared backbone with all models loaded."""
    scaling = ScalingConfig(cpus=options.threads)
    batch = BatchConfig(max_seconds=options.max_seconds)
    replica = SharedBackboneReplica(
        SharedBackboneConfig(name="b", key="b", models={}, scaling=scaling, batch=batch)
    )
    models = {folder.name: asdict(config_of(folder, options)) for folder in adapters}
    await replica.reconfigure({"models": models})
    return replica


def memory(adapters: Sequence[Path], merged: Sequence[Path], options: Options) -> dict[str, Any]:
    """Returns the memory of one process with all adapters over that of a process for each."""
    shared = held([adapters], options)
    separate = held([[folder] for folder in merged], options)
    mib = 2**20
    return {
        "ratio": shared / separate,
        "shared_mib": shared / mib,
        "separate_mib": separate / mib,
    }


def held(groups: Sequence[Sequence[Path]], options: Options) -> float:
    """Returns the bytes that processes hold together, each with a replica of its models."""
    context = mp.get_context("spawn")
    workers: list[Any] = []
    pipes: list[Connection] = []
    for folders in groups:
        ours, theirs = context.Pipe()
        worker = context.Process(target=hold, args=(list(folders), options, theirs), daemon=True)
        worker.start()
        workers.append(worker)
        pipes.append(ours)
        ours.recv()  # one after the other: loading takes all cores
    total = sum(psutil.Process(worker.pid).memory_full_info().pss for worker in workers)
    for pipe in pipes:
        pipe.send("over")
    for worker in workers:
        worker.join()
    return float(total)


def hold(folders: Sequence[Path], options: Options, pipe: Connection) -> None:
    """Loads a replica in this process, scores once, and holds it until the other side is done."""

    async def score() -> Any:
        requests = loads(options)[:2]
        if len(folders) > 1:
            replica = await shared_replica(folders, options)
            for folder in folders:
                await replica.answer(requests[0], member=folder.name)
            return replica
        alone = RewardModelReplica(config_of(folders[0], options))
        await alone.answer(requests[0])
        return alone

    replica = asyncio.run(score())
    pipe.send("ready")
    pipe.recv()
    del replica


def loads(options: Options) -> list[ReplicaRequest]:
    """Returns the requests of a load."""
    rng = random.Random(0)
    requests: list[ReplicaRequest] = []
    for number in range(options.requests):
        prompt = ({"role": "user", "content": f"{number}. {' '.join(rng.choices(WORDS, k=40))}?"},)
        texts = [" ".join(rng.choices(WORDS, k=options.words)) for _ in range(options.responses)]
        chat = Chat(prompt, tuple(texts))
        requests.append(ReplicaRequest(items=(chat,), bucket=bucket_of(chat), timeout=600.0))
    return requests


async def throughput(adapters: Sequence[Path], merged: Path, options: Options) -> dict[str, Any]:
    """Returns the ratios of times, and the drift of the first model's scores."""
    shared = await shared_replica(adapters, options)
    alone = RewardModelReplica(config_of(merged, options))
    names, first = [folder.name for folder in adapters], adapters[0].name
    requests = loads(options)

    async def whole(_: int, request: ReplicaRequest) -> Any:
        return await alone.answer(request)

    async def adapter(_: int, request: ReplicaRequest) -> Any:
        return await shared.answer(request, member=first)

    async def spread(number: int, request: ReplicaRequest) -> Any:
        return await shared.answer(request, member=names[number % len(names)])

    kinds = {"whole": whole, "adapter": adapter, "spread": spread}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    scores: dict[str, list[float]] = {}
    for repeat in range(options.repeats + 1):
        for kind in list(kinds) if repeat % 2 else list(kinds)[::-1]:
            spent, scores[kind] = await timed(kinds[kind], requests, options.concurrency)
            if repeat:  # the first warms up
                seconds[kind].append(spent)
                print(f"{kind}, time {repeat}: {spent:.2f} s", flush=True)
    pairs = {
        "throughput": ("whole", "spread"),
        "one_adapter": ("whole", "adapter"),
        "mixing": ("adapter", "spread"),
    }
    figures: dict[str, Any] = {}
    for name, (above, below) in pairs.items():
        ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        figures[name] = over_repeats(ratios)
    expected, on_shared = np.array(scores["whole"]), np.array(scores["adapter"])
    figures["drift"] = {"ratio": float(np.abs(on_shared - expected).max() / expected.std())}
    figures["seconds"] = seconds
    return figures


async def timed(
    ask: Any, requests: Sequence[ReplicaRequest], concurrency: int
) -> tuple[float, list[float]]:
    """Returns the seconds of a load and its scores.

    Raises:
        RuntimeError: a request was refused or a score is missing.
    """
    turns = asyncio.Semaphore(concurrency)

    async def answered(number: int, request: ReplicaRequest) -> list[float]:
        async with turns:
            answer = await ask(number, request)
        if isinstance(answer, RequestError) or any(s.score is None for s in answer.items[0]):
            raise RuntimeError(f"a score is missing: {answer}")
        return [score.score for score in answer.items[0]]

    begun = time.perf_counter()
    rows = await asyncio.gather(*(answered(n, request) for n, request in enumerate(requests)))
    spent = time.perf_counter() - begun
    return spent, [score for row in rows for score in row]


if __name__ == "__main__":
    run(main, Options)

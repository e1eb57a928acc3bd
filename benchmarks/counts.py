"""Counts of work that no machine moves: `python -m benchmarks.counts --json FILE`.

Small random models read fixed texts, so that the counts are those of the code alone. Beside each
stands the least there can be. `tests/test_counts.py` holds the code to them.

tokens: positions that a forward computes, padding included.
padding: share of them that no response needs.
attention calls: calls of torch's attention in each layer.
hops: calls between processes in a row, from the gateway on, before a score can come back; that of a
client to the gateway, by HTTP through Ray Serve's proxy, stands before them.
calls: calls between processes that one request makes from the gateway on, side by side or in a row.
processes: replicas that the applications of a server have.
modules: modules of Python that are loaded by the help texts of all commands together.
heavy: of these, packages that take seconds to import; and the same of replicas that need no model.
compiled: graphs that torch has compiled by the end; on a CPU nothing is to be compiled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from actors.reward_trainer import RewardTrainer
from benchmarks.first_hour import HEAVY, ROOT
from benchmarks.harness import Count, Options, counted, print_figures, run, setting, write_figures
from benchmarks.served_counts import call_counts, deployed_counts, scorers
from panoply.config.preference import Mixed, More
from panoply.hub.backbone.backbone import Backbone
from panoply.model.tree import TokenTree
from panoply.preference.distributed import Group
from tests.builders.models import save_tiny_model, small_backbone
from tests.builders.preference_runs import make_task, other, small_config, write_pairs
from tests.builders.tokenizers import chat_tokenizer

WORDS = ("river", "boat", "village", "friend", "rain", "stone", "window", "garden", "letter")
NUM_PAIRS = 24
NUM_SAMPLES = 16
ROW = 1024
"""Tokens of a row, given, since it is else measured."""
HELP = """
import contextlib, io, json, runpy, sys
for command in sys.argv[1:]:
    sys.argv = [command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try: runpy.run_module(command, run_name="__main__")
        except SystemExit as end: assert not end.code, (command, end.code)
    assert "usage" in shown.getvalue(), command
print(json.dumps(sorted(sys.modules)))
"""
LOADED = "import sys, json, workflows, {}; print(json.dumps(sorted(sys.modules)))"
WITHOUT_MODEL = (
    "workflows.cluster.gateway",
    "actors.function_replica",
    "actors.composite_replica",
    "actors.bandit_replica",
    "actors.online_bandit",
)
"""Modules of the replicas that load no model."""


class AttentionCalls(TorchFunctionMode):
    """Counts calls of torch's attention while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Counts a call, and makes it."""
        self.num += func is scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def main(options: Options) -> None:
    """Counts, prints and writes the figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = counts(Path(folder))
    print_figures(figures, ("value", "ideal"))
    write_figures(options.json, {**figures, "setting": setting(torch)})


def counts(folder: Path) -> dict[str, Count]:
    """Returns all counts; small models and files are written into a folder."""
    wheres = scorers(folder)
    return {
        **forward_counts(),
        **step_counts(folder),
        **call_counts(wheres),
        **deployed_counts(wheres),
        **help_counts(),
        **replica_counts(),
        "graphs compiled": counted(num_compiled(), 0),
    }


# Forwards


def texts(num: int, num_responses: int, prompt_words: int) -> list[tuple[Any, list[str]]]:
    """Returns prompts, each with responses of 10 to 40 words that begin unlike each other."""
    random = Random(0)

    def words(count: int) -> str:
        return " ".join(random.choices(WORDS, k=count))

    dialogues: list[tuple[Any, list[str]]] = []
    for number in range(num):
        prompt = [{"role": "user", "content": f"{number}: {words(prompt_words)}?"}]
        responses = [f"{i}. {words(random.randint(10, 40))}" for i in range(num_responses)]
        dialogues.append((prompt, responses))
    return dialogues


def forward_counts() -> dict[str, Count]:
    """Returns the counts of scoring pairs, and 16 samples of one prompt."""
    backbone = small_backbone(chat_tokenizer(), max_prompt_tokens=4096, max_response_tokens=4096)
    workloads = {
        "pairs": texts(NUM_PAIRS, 2, prompt_words=30),
        "n16": texts(1, NUM_SAMPLES, prompt_words=90),
    }
    figures: dict[str, Count] = {}
    for name, dialogues in workloads.items():
        trees = [rendered.tree for rendered in backbone.renderer.render_all(dialogues)]
        figures |= {f"{name}: {key}": value for key, value in forward_of(backbone, trees).items()}
    return figures


def forward_of(backbone: Backbone, trees: Sequence[TokenTree]) -> dict[str, Count]:
    """Returns the counts of a forward of trees."""
    decoder = backbone.decoder
    before = decoder.num_positions
    with AttentionCalls() as attention:
        backbone.features(trees, budget=ROW)
    computed = decoder.num_positions - before
    needed = sum(tree.num_tokens for tree in trees)
    separate = sum(tree.num_separate_tokens for tree in trees)
    return {
        "tokens": counted(computed, needed),
        "tokens over separate ones": counted(computed / separate, needed / separate),
        "padding": counted((computed - needed) / computed, 0),
        # A prompt is a call, and its responses are at least another one.
        "attention calls": counted(attention.num / len(decoder.layers), 2 * len(trees)),
    }


def step_counts(folder: Path) -> dict[str, Count]:
    """Returns the tokens of a training step of eight pairs over those of their trees."""
    backbone = save_tiny_model(folder / "backbone", chat_tokenizer())
    config = small_config(backbone, write_pairs(folder), weighting=Mixed())
    plain = make_task(config, folder, "plain")
    tasks = {"plain step": plain, "MORE's step": other(plain, "more", weighting=More())}
    figures: dict[str, Count] = {}
    for name, task in tasks.items():
        trainer = RewardTrainer(task, Group())
        decoder = trainer.net.decoder
        assert decoder is not None
        before = decoder.num_positions
        trainer.step(0)
        rows = task.pairs.train[trainer.sampler.batch_indices(0)]
        needed = sum(trainer.tokens.tree(row).num_tokens for row in rows)
        figures[f"{name}: tokens"] = counted(decoder.num_positions - before, needed)
    return figures


def num_compiled() -> int:
    """Returns how many graphs torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


# Imports


def help_counts() -> dict[str, Count]:
    """Returns the modules that the help texts of all commands load, and the heavy packages."""
    files = sorted((ROOT / "jobs").glob("[a-z]*.py"))
    commands = [f"jobs.{file.stem}" for file in files if file.stem != "recipes"]
    modules = modules_after(HELP, *commands)
    return {
        "help of all commands: modules": {"value": len(modules)},
        "help of all commands: heavy packages": counted(len(modules & set(HEAVY)), 0),
    }


def replica_counts() -> dict[str, Count]:
    """Returns the heavy packages, beside Ray, that replicas load which need no model."""
    modules = modules_after(LOADED.format(", ".join(WITHOUT_MODEL)))
    num_heavy = len(modules & set(HEAVY) - {"ray"})
    return {"replicas without a model: heavy packages": counted(num_heavy, 0)}


def modules_after(code: str, *words: str) -> set[str]:
    """Returns the modules that a program has loaded at its end, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    run(main, Options)

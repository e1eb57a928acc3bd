"""Small preference runs on a random model: what the tests of training share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.reward_trainer import RewardTrainer, TrainTask
from panoply.config import Rendering
from panoply.config.preference import (
    Full,
    PreferenceConfig,
    ScheduleConfig,
    TrainedBackboneConfig,
)
from panoply.preference.distributed import Group

WORDS = [
    "apple",
    "brick",
    "cloud",
    "drift",
    "eagle",
    "flame",
    "grass",
    "honey",
    "island",
    "jolly",
    "kettle",
    "lemon",
]


def write_pairs(folder: Path, sizes=(40, 40), seed=0) -> tuple[str, ...]:
    """One file a source. Source 0 prefers what ends in '!', every other one what does not."""
    rng, paths = np.random.default_rng(seed), []
    for source, size in enumerate(sizes):
        rows = []
        for i in range(size):
            words = [" ".join(rng.choice(WORDS, 3)) for _ in range(2)]
            texts = [words[0] + "!", words[1] + "."]
            rows.append(
                {
                    "prompt": [
                        {"role": "user", "content": f"say {source} {i} {rng.choice(WORDS)}"}
                    ],
                    "chosen": texts[source % 2],
                    "rejected": texts[1 - source % 2],
                    "source": f"source{source}",
                }
            )
        path = folder / f"source{source}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        paths.append(str(path))
    return tuple(paths)


def small_config(model, pairs, backbone=None, schedule=None, **changes) -> PreferenceConfig:
    given = {"model": str(model), "trained": Full(), "dtype": "float32"} | (backbone or {})
    rendering = Rendering(max_prompt_tokens=48, max_response_tokens=32)
    steps = {"pairs_per_step": 8, "lr": 1e-3, "head_lr": 1e-2, "warmup": 0.1} | (schedule or {})
    return PreferenceConfig(
        **{
            "pairs": pairs,
            "backbone": TrainedBackboneConfig(rendering=rendering, **given),
            "schedule": ScheduleConfig(**steps),
            "num_workers": 0,
        }
        | changes
    )


def make_task(config: PreferenceConfig, folder: Path, name="main") -> TrainTask:
    from panoply.report.progress import RunLogger
    from workflows.cluster.prepare_pairs import read_pairs, tokenize, training_rows

    found = read_pairs(config, folder / "data")
    path = folder / "data" / "tokens.parquet"
    tokens, _ = tokenize(config, found, path, RunLogger())
    rows, _, _ = training_rows(config, found, tokens)
    target = folder / name
    target.mkdir(exist_ok=True)
    return TrainTask(config, rows, str(path), found.names, str(target), str(folder / "store"))


def other(task: TrainTask, name: str, **changes) -> TrainTask:
    """The same pairs with another configuration, in a folder beside."""
    folder = Path(task.folder).parent / name
    folder.mkdir(exist_ok=True)
    return replace(task, config=replace(task.config, **changes), folder=str(folder))


def steps_of(task: TrainTask, count=None, group=None):
    """A trainer after some steps, and what it logged."""
    trainer = RewardTrainer(task, group or Group())
    logged = [trainer.step(i) for i in range(trainer.num_steps if count is None else count)]
    return trainer, logged

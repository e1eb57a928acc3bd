"""Any number of workers trains the same model, replicated or sharded."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from actors.reward_trainer import RewardTrainer
from actors.training_loop import DONE
from panoply.config.preference import DPO, SFT, LastLayers, Lora, LossConfig, Mixed, More
from panoply.preference.distributed import Group
from tests.builders.distributed_runs import work
from tests.builders.preference_runs import make_task, other, small_config, write_pairs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_folder):
    """The same tasks with one worker and with two; the halves are begun by two, ended by one."""
    folder = tmp_path_factory.mktemp("workers")
    pairs = write_pairs(folder, (40, 37))
    config = small_config(tiny_model_folder, pairs, weighting=More())
    first = make_task(config, folder, "ddp")
    lora = replace(config.backbone, trained=Lora(rank=4))
    last = replace(config.backbone, trained=LastLayers(num_last=1))
    short = replace(config.schedule, pairs_per_step=(len(first.pairs.train) - 1) // 2)
    evaluated = replace(config.schedule, eval_every=2)
    mixed = Mixed()
    tasks = {
        "ddp": first,
        # Evaluated on the way: what a forward leaves gathered must not change the steps behind it.
        "fsdp": other(first, "fsdp", parallel="fsdp", schedule=evaluated),
        "fsdp-lora": other(
            first, "fsdp-lora", parallel="fsdp", backbone=lora, loss=LossConfig(policy=DPO())
        ),
        "last": other(first, "last", backbone=last, loss=LossConfig(policy=SFT(), smoothing=0.2)),
        "half-ddp": other(first, "half-ddp"),
        "half-fsdp": other(first, "half-fsdp", parallel="fsdp"),
        "short": other(first, "short", weighting=mixed, schedule=short),
    }
    alone = {
        name: other(task, f"{name}-alone", parallel="ddp")
        for name, task in tasks.items()
        if not name.startswith("half")
    }
    for task in alone.values():
        RewardTrainer(task, Group()).run()
    mp.spawn(work, args=(2, str(folder), tasks), nprocs=2)
    for name in ("half-ddp", "half-fsdp"):
        RewardTrainer(tasks[name], Group()).run()
    return alone, tasks


def margins(task):
    return np.load(Path(task.folder) / "margins.npy")


def history(task, key):
    return [step[key] for step in json.loads((Path(task.folder) / DONE).read_text())["history"]]


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp-lora", "last", "short"])
def test_two_workers_end_where_one_does(trained, name):
    alone, tasks = trained
    for key in ("loss", "gradient_norm", "tokens"):
        assert history(tasks[name], key) == pytest.approx(history(alone[name], key), rel=1e-4)
    a, b = margins(tasks[name]), margins(alone[name])
    assert np.nanmax(np.abs(a - b)) < 1e-4 * np.nanstd(b) + 1e-6
    states = [
        torch.load(Path(t.folder) / "trained.pt", weights_only=True)
        for t in (tasks[name], alone[name])
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[1].items():
        assert (states[0][key] - value).norm() <= 1e-4 * value.norm() + 1e-7


@pytest.mark.parametrize("name", ["half-ddp", "half-fsdp"])
def test_one_worker_goes_on_where_two_stopped(trained, name):
    alone, tasks = trained
    assert history(tasks[name], "loss") == pytest.approx(history(alone["ddp"], "loss"), rel=1e-4)
    a, b = margins(tasks[name]), margins(alone["ddp"])
    assert np.nanmax(np.abs(a - b)) < 1e-4 * np.nanstd(b) + 1e-6


def test_sources_are_weighed_by_the_gradients_of_all_workers(trained):
    alone, tasks = trained
    a, b = history(tasks["ddp"], "source_weights"), history(alone["ddp"], "source_weights")
    assert np.allclose(a, b, atol=1e-3)

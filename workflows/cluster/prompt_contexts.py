"""Contexts of prompts for a bandit, and the bandit of a finished run on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.prompt_embeddings import prompt_states
from panoply.bandit.contexts import unit_contexts
from panoply.bandit.update import select_arms, uniforms
from panoply.config import DType, Rendering
from panoply.config.laser import LASER, BestOfNConfig, LaserConfig
from panoply.data.tasks import Task
from panoply.files import reading, whole_file
from panoply.laser.log import Log, replay
from panoply.laser.rounds import initial_state
from panoply.laser.selector_file import recorded_selector
from panoply.types import Array

CONTEXTS = "contexts.npz"
"""File of a run with `contexts`, in the order of `data.json`, and their `center`."""


def prompt_contexts(
    config: LaserConfig, tasks: Sequence[Task], out: Path, *, is_alone: bool = False
) -> dict[str, Array]:
    """Returns the context of each prompt of a run, computed once and kept in its folder.

    Args:
        config: the run.
        tasks: prompts.
        out: folder of the run.
        is_alone: whether this process has the machine, and computes sooner than a task starts.
    """
    file = out / CONTEXTS
    if not file.exists():
        backbone = config.backbone
        states_ND = _embed(
            tasks,
            backbone.model,
            config.context_depth,
            backbone.rendering,
            backbone.dtype,
            config.gpus,
            is_alone=is_alone,
        )
        center_D = states_ND.mean(0)
        with whole_file(file) as partial:
            np.savez(partial, contexts=unit_contexts(states_ND, center_D), center=center_D)
    with reading(file):
        contexts_NH = np.load(file, allow_pickle=False)["contexts"]
    return {task.prompt_id: row for task, row in zip(tasks, contexts_NH, strict=True)}


def learned_routes(config: BestOfNConfig, tasks: Sequence[Task]) -> dict[str, str]:
    """Returns the arm that the bandit of a finished LASeR run picks for each prompt.

    Raises:
        ValueError: the run has other arms.
    """
    run = Path(config.laser).expanduser()
    log = str(run / LASER / "log")
    selector, arms, num_features = recorded_selector(log)
    if arms != config.arms.names:
        raise ValueError(f"the run of `laser` has arms {arms}, this one {config.arms.names}")
    state = replay(Log(log, arms).read(), initial_state(selector, len(arms), num_features))

    # Contexts as the run had them: by its model, about its center.
    trained: Any = json.loads((run / "config.json").read_text())
    backbone = trained["backbone"]
    states_ND = _embed(
        tasks,
        backbone["model"],
        trained["context_depth"],
        Rendering(**backbone["rendering"]),
        backbone["dtype"],
        config.gpus,
    )
    center_D = np.load(run / CONTEXTS, allow_pickle=False)["center"]
    draws = uniforms(config.seed, 0, [task.prompt_id for task in tasks])
    choice = select_arms(selector.bandit, state, unit_contexts(states_ND, center_D), draws)
    return {task.prompt_id: arms[k] for task, k in zip(tasks, choice.arms_B, strict=True)}


def _embed(
    tasks: Sequence[Task],
    model: str,
    depth: float,
    rendering: Rendering,
    dtype: DType,
    gpus: float,
    *,
    is_alone: bool = False,
) -> Array:
    """Returns the states `[N, D]` at the prompts' ends, computed by a task of Ray or here."""
    prompts = [task.prompt for task in tasks]
    if is_alone:
        return prompt_states(model, depth, rendering, dtype, prompts)
    embed = ray.remote(prompt_states).options(num_cpus=1, num_gpus=gpus)
    return ray.get(embed.remote(model, depth, rendering, dtype, prompts))

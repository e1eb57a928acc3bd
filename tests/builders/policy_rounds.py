"""Small rounds of policy training on a random model: what their tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.policy_round import PolicyTask, RankedPrompt
from panoply.config import Rendering
from panoply.config.policy import PolicyConfig
from panoply.config.preference import Lora, TrainedBackboneConfig
from tests.builders.preference_runs import WORDS


def ranked_prompts(count=10, seed=0) -> tuple[RankedPrompt, ...]:
    """Prompts with three or four responses, the first of them the best, and one or two pairs."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        responses = [
            " ".join(rng.choice(WORDS, 2)) + end for end in ("!", ".", "?", ",")[: 3 + i % 2]
        ]
        found.append(
            RankedPrompt(
                prompt_id=f"p{i}",
                prompt=[{"role": "user", "content": f"say {i} {rng.choice(WORDS)}"}],
                responses=tuple(responses),
                ended=tuple(n != 1 for n in range(len(responses))),
                pairs=((0, 2), (0, 1))[: 1 + i % 2],
                weight=1.0 + i % 3,
            )
        )
    return tuple(found)


def policy_task(model, folder: Path, **changes) -> PolicyTask:
    rendering = Rendering(max_prompt_tokens=48, max_response_tokens=32)
    backbone = TrainedBackboneConfig(
        model=str(model), dtype="float32", trained=Lora(rank=4), rendering=rendering
    )
    config = PolicyConfig(lr=1e-3, prompts_per_step=4, checkpoint_every=1)
    given = {
        "backbone": backbone,
        "config": config,
        "prompts": ranked_prompts(),
        "seed": 0,
        "round": 0,
    }
    return PolicyTask(**{**given, "start": "", "reference": "", "folder": str(folder)} | changes)


def configured(task: PolicyTask, folder: Path, **changes) -> PolicyTask:
    """The same round with another configuration, elsewhere."""
    folder.mkdir(exist_ok=True)
    return replace(task, config=replace(task.config, **changes), folder=str(folder))

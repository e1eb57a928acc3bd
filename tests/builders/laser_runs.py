"""Small LASeR runs on a random model: what their tests share."""

from __future__ import annotations

from panoply.bandit.bandits import LinUCB
from panoply.config import Rendering
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.config.laser import ArmsConfig, LaserConfig, PromptsConfig
from panoply.config.policy import PolicyConfig, SamplingConfig
from panoply.config.preference import Lora, TrainedBackboneConfig

LONG = "function:panoply.serve.verifiers:length"
SHORT = "function:panoply.serve.verifiers:brevity"


def laser_config(model, out, **changes) -> LaserConfig:
    backbone = TrainedBackboneConfig(
        model=str(model),
        dtype="float32",
        trained=Lora(rank=2),
        rendering=Rendering(max_prompt_tokens=96),
    )
    given = {
        "out": str(out),
        "prompts": PromptsConfig(num_made=18, num_held_out=4),
        "arms": ArmsConfig(models=(f"long={LONG}", f"short={SHORT}"), timeout=5.0),
        "num_samples": 3,
        "pairs_per_prompt": 1,
        "num_rounds": 4,
        "prompts_per_round": 4,
        "rounds_per_iteration": 2,
        "evaluate_every": 2,
        "selector": SelectorConfig(
            bandit=LinUCB(max_features=8),
            signal=SignalConfig(name="negative_loss"),
        ),
        "backbone": backbone,
        "policy": PolicyConfig(lr=1e-3, prompts_per_step=4),
        "sampling": SamplingConfig(max_tokens=12, batch_size=6),
    }
    return LaserConfig(**(given | changes))

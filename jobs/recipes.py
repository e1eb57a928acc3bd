"""Named runs: a recipe is a value, flags only adjust its numbers."""

from __future__ import annotations

from dataclasses import replace

import tyro

from panoply.config import BackboneConfig, Rendering
from panoply.config.armorm import ArmoRMConfig, GateConfig, SyntheticConfig
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.config.best_of_n import RecordedBestOfNConfig
from panoply.config.laser import (
    ArmsConfig,
    BestOfNConfig,
    LaserConfig,
    PromptsConfig,
    SampledPolicyConfig,
)
from panoply.config.policy import PolicyConfig, SamplingConfig
from panoply.config.preference import (
    DPO,
    Full,
    HeadOnly,
    LastLayers,
    Lora,
    LossConfig,
    More,
    PreferenceConfig,
    ScheduleConfig,
    TrainedBackboneConfig,
)
from panoply.config.serve import ServeConfig
from panoply.config.tune import TuneConfig
from panoply.config.upgrade import RollbackConfig, UpgradeConfig

ARMORM: dict[str, tuple[str, ArmoRMConfig]] = {
    "embedded": (
        "The planted world on the embedded language model: no data, no hub, minutes on 2 cores.",
        ArmoRMConfig(
            out="runs/embedded",
            planted=SyntheticConfig(),
            backbone=BackboneConfig(
                depths=(0.2, 0.3),
                sample_prompts=90,
                rendering=Rendering(max_prompt_tokens=64, max_response_tokens=64),
            ),
        ),
    ),
    "files": (
        "Your ratings and pairs on the embedded language model, or on any other with "
        "--backbone.model.",
        ArmoRMConfig(out="runs/files", ratings=tyro.MISSING, pairs=tyro.MISSING),
    ),
    "paper": (
        "As in the paper: an 8B reward model as backbone, its last token, a gate of 3 x 1024.",
        ArmoRMConfig(
            out="runs/paper",
            ratings=tyro.MISSING,
            pairs=tyro.MISSING,
            backbone=BackboneConfig(
                model="sfairXC/FsfairX-LLaMA3-RM-v0.1",
                depths=(1.0,),
                poolings=("last",),
                token_budget=4096,
                rendering=Rendering(max_prompt_tokens=4096, max_response_tokens=4096),
            ),
            gate=GateConfig(
                hidden_size=1024,
                num_hidden=3,
                dropout=0.2,
                input_dropout=0.0,
                batch_size=1024,
                num_steps=10_000,
            ),
        ),
    ),
}
"""ArmoRM runs: what the command line lists, and the values it starts from."""

SHORT = Rendering(max_prompt_tokens=64, max_response_tokens=64)
PREFERENCE: dict[str, tuple[str, PreferenceConfig]] = {
    "embedded": (
        "MORE on the planted world and the embedded language model: no data, no hub, minutes.",
        PreferenceConfig(
            out="runs/preference",
            planted=SyntheticConfig(num_prompts=250),
            backbone=TrainedBackboneConfig(
                trained=LastLayers(num_last=2), depth=0.3, rendering=SHORT
            ),
            weighting=More(),
            schedule=ScheduleConfig(lr=5e-4),
        ),
    ),
    "pairs": (
        "Your pairs, by Bradley-Terry, with adapters on the embedded language model or any other.",
        PreferenceConfig(out="runs/pairs", pairs=tyro.MISSING),
    ),
    "haf": (
        "HaF-RM: the reward loss with a DPO policy loss on the same backbone.",
        PreferenceConfig(out="runs/haf", pairs=tyro.MISSING, loss=LossConfig(policy=DPO())),
    ),
    "more": (
        "MORE: pairs of several sources, weighted step by step; plain mixing is trained beside it.",
        PreferenceConfig(out="runs/more", pairs=tyro.MISSING, weighting=More()),
    ),
    "more-paper": (
        "MORE as in the paper: a 7B model, all weights (sharded), 16 pairs of each of 5 sources.",
        PreferenceConfig(
            out="runs/more-paper",
            pairs=tyro.MISSING,
            max_pairs_per_source=40_000,
            backbone=TrainedBackboneConfig(
                model="huggyllama/llama-7b",
                trained=Full(),
                checkpointing=True,
                rendering=Rendering(max_prompt_tokens=384, max_response_tokens=128),
            ),
            weighting=More(),
            schedule=ScheduleConfig(pairs_per_step=80, lr=1e-6, head_lr=1e-6, warmup=0.0),
            num_workers=8,
            parallel="fsdp",
        ),
    ),
    "haf-paper": (
        "HaF-RM as in the paper: Mistral-7B, rank 64 adapters, alpha 0.2, 2 epochs.",
        PreferenceConfig(
            out="runs/haf-paper",
            pairs=tyro.MISSING,
            backbone=TrainedBackboneConfig(
                model="mistralai/Mistral-7B-Instruct-v0.2",
                trained=Lora(rank=64, alpha=16.0),
                checkpointing=True,
                rendering=Rendering(max_prompt_tokens=384, max_response_tokens=128),
            ),
            loss=LossConfig(policy=DPO(alpha=0.2, beta=0.1, reference="adapters_off")),
            schedule=ScheduleConfig(pairs_per_step=16, num_epochs=2, lr=3e-5, head_lr=3e-5),
            num_workers=8,
        ),
    ),
}
"""Preference runs."""

PLANTED_PAIRS = PREFERENCE["embedded"][1]
TUNE_MORE: dict[str, tuple[str, TuneConfig]] = {
    "embedded": (
        "A small search, in minutes on 2 cores: a head alone, which learns little of the planted "
        "world.",
        TuneConfig(
            out="runs/tune",
            num_trials=12,
            planted=PLANTED_PAIRS.planted,
            backbone=replace(PLANTED_PAIRS.backbone, trained=HeadOnly()),
            schedule=PLANTED_PAIRS.schedule,
        ),
    ),
    "pairs": (
        "Your pairs of two or more sources, the head alone on features computed once; search the "
        "rest of a model with backbone.trained:last-layers, :lora or :full.",
        TuneConfig(
            out="runs/tune-pairs",
            pairs=tyro.MISSING,
            backbone=TrainedBackboneConfig(trained=HeadOnly()),
        ),
    ),
}
"""Searches over MORE's weighting."""

SERVE: dict[str, tuple[str, ServeConfig | UpgradeConfig | RollbackConfig]] = {
    "models": (
        "Your models: folders, hub names, MLflow aliases, functions or other servers, NAME=WHERE.",
        ServeConfig(models=tyro.MISSING),
    ),
    "demo": (
        "What `make demo` trained, beside the length of a response, which it has to beat.",
        ServeConfig(
            models=(
                "armorm=runs/embedded/model",
                "length=function:panoply.serve.verifiers:length",
            )
        ),
    ),
    "upgrade": (
        "New versions of models of a server that runs, without a failed request.",
        UpgradeConfig(),
    ),
    "rollback": ("The versions before the latest upgrade.", RollbackConfig()),
}
"""Sets of reward models behind one server, and changes of a server that runs."""

FUNCTIONS = ArmsConfig(
    models=(
        "long=function:panoply.serve.verifiers:length",
        "short=function:panoply.serve.verifiers:brevity",
        "lines=function:panoply.serve.verifiers:lines",
        "asking=function:panoply.serve.verifiers:asking",
    )
)
"""Four tastes, each right in some domains of the synthetic prompts and wrong in others."""
SAMPLING = SamplingConfig(max_tokens=80)
SELECTOR = SelectorConfig(signal=SignalConfig(name="verifier"))
POLICY = PolicyConfig(lr=5e-5)
LASER: dict[str, tuple[str, LaserConfig]] = {
    "embedded": (
        "SmolLM2-135M on prompts that can be checked, four tastes as arms: no data, no hub.",
        LaserConfig(
            arms=FUNCTIONS,
            selector=SELECTOR,
            backbone=TrainedBackboneConfig(rendering=SHORT),
            policy=POLICY,
            sampling=SAMPLING,
        ),
    ),
    "demo": (
        "What `make demo` trained (runs/embedded/model has to be there) and four tastes as arms, "
        "three small rounds: minutes.",
        LaserConfig(
            out="runs/laser-demo",
            arms=replace(FUNCTIONS, models=("armorm=runs/embedded/model", *FUNCTIONS.models)),
            prompts=PromptsConfig(num_made=48, num_held_out=12),
            num_samples=4,
            num_rounds=3,
            prompts_per_round=8,
            evaluate_every=3,
            selector=SELECTOR,
            backbone=TrainedBackboneConfig(rendering=SHORT),
            policy=POLICY,
            sampling=replace(SAMPLING, batch_size=24),
            num_samplers=2,
        ),
    ),
    "files": (
        "Your prompts and your reward models on the embedded language model, or on any other with "
        "--backbone.model; the reward is the paper's, the negative loss.",
        LaserConfig(arms=ArmsConfig(models=tyro.MISSING), prompts=PromptsConfig(file=tyro.MISSING)),
    ),
}
"""LASeR runs."""
BEST_OF_N: dict[str, tuple[str, BestOfNConfig | RecordedBestOfNConfig]] = {
    "embedded": (
        "The same prompts and arms without training; --laser RUN adds what its bandit picks.",
        BestOfNConfig(
            arms=FUNCTIONS,
            backbone=SampledPolicyConfig(rendering=SHORT),
            sampling=SAMPLING,
        ),
    ),
    "files": (
        "Your prompts and your reward models.",
        BestOfNConfig(
            arms=ArmsConfig(models=tyro.MISSING), prompts=PromptsConfig(file=tyro.MISSING)
        ),
    ),
    "recorded": (
        "Many scorers on one set of samples, with scores and verdicts of a file: no model.",
        RecordedBestOfNConfig(samples=tyro.MISSING),
    ),
}
"""Runs of best of n."""

"""Named runs: a recipe is a value, flags only adjust its numbers."""

from __future__ import annotations

import tyro

from panoply.config import ArmoRMConfig, BackboneConfig, GateConfig, Planted, Rendering

ARMORM: dict[str, tuple[str, ArmoRMConfig]] = {
    "embedded": (
        "The planted world on the embedded language model: no data, no hub, minutes on 2 cores.",
        ArmoRMConfig(
            out="runs/embedded",
            planted=Planted(),
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

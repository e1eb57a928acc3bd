"""Flags of a configuration by name, and what was meant by one that it does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from panoply.config.from_file import alternatives

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "learning_rate": ("schedule.lr", "policy.lr", "gate.lr"),
    "num_train_epochs": ("schedule.num_epochs", "policy.num_epochs"),
    "num_epochs": ("schedule.num_epochs", "policy.num_epochs"),
    "per_device_train_batch_size": (
        "schedule.pairs_per_step",
        "policy.prompts_per_step",
        "gate.batch_size",
    ),
    "gradient_accumulation_steps": ("schedule.token_budget", "policy.token_budget"),
    "gradient_checkpointing": ("backbone.checkpointing",),
    "warmup_ratio": ("schedule.warmup",),
    "weight_decay": ("schedule.weight_decay", "policy.weight_decay"),
    "max_grad_norm": ("schedule.max_norm", "policy.max_norm"),
    "eval_steps": ("schedule.eval_every", "gate.eval_every", "evaluate_every"),
    "save_steps": ("schedule.checkpoint_every", "policy.checkpoint_every"),
    "max_steps": ("gate.num_steps", "schedule.num_epochs"),
    "bf16": ("backbone.dtype",),
    "torch_dtype": ("backbone.dtype",),
    "output_dir": ("out",),
    "model_name_or_path": ("backbone.model", "model", "models"),
    "pretrain": ("backbone.model", "model", "models"),
    "dataset": ("pairs", "prompts.file"),
    "dataset_name": ("pairs", "prompts.file"),
    "max_length": ("backbone.rendering.max_response_tokens",),
    "max_len": ("backbone.rendering.max_response_tokens",),
    "max_prompt_length": ("backbone.rendering.max_prompt_tokens",),
    "max_completion_length": ("sampling.max_tokens", "backbone.rendering.max_response_tokens"),
    "max_new_tokens": ("sampling.max_tokens",),
    "num_generations": ("num_samples",),
    "temperature": ("sampling.temperature",),
    "top_p": ("sampling.top_p",),
    "beta": ("loss.policy.beta", "policy.beta"),
    "lora_r": ("backbone.trained.rank",),
    "lora_alpha": ("backbone.trained.alpha",),
    "label_smoothing_factor": ("loss.label_smoothing",),
    "center_rewards_coefficient": ("loss.centering",),
    "tensor_parallel_size": ("num_workers",),
    "nproc_per_node": ("num_workers",),
}
"""Flags of TRL, transformers and OpenRLHF, and the settings here that they are closest to."""
NOT_SETTINGS = {"help", "config", "version"}


def flag_names(kind: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings, those of every alternative among them."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        groups = [option for option in alternatives(hints[field.name]) if is_dataclass(option)]
        if not groups:
            yield f"{path}{field.name}"
        for group in groups:
            yield from flag_names(group, f"{path}{field.name}.")


def check_flags(words: Sequence[str], kind: Any) -> None:
    """Checks that the flags on a command line are those of a configuration.

    Raises:
        ValueError: one is not, with the flags that may have been meant.
    """
    names = list(dict.fromkeys(flag_names(kind)))
    for word in words:
        if not word.startswith("--") or word == "--":
            continue
        name = word[2:].partition("=")[0].replace("-", "_")
        parent, _, last = name.rpartition(".")
        positive = f"{parent}.{last.removeprefix('no_')}".lstrip(".")
        if name in NOT_SETTINGS or name in names or positive in names:
            continue
        near = [other for other in ELSEWHERE.get(last, ()) if other in names][:1]
        near = near or [other for other in names if other.rpartition(".")[2] == last][:3]
        near = near or difflib.get_close_matches(name, names, 2, 0.7)
        meant = " or ".join(f"`--{other.replace('_', '-')}`" for other in near)
        hint = f"perhaps you meant {meant}; " if meant else ""
        raise ValueError(f"`{word}` is no flag of this command: {hint}`--help` lists all")

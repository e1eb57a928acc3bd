"""Findings about a bandit: whether each arm answers, what it sees of a prompt, and its log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from panoply.config.served_bandit import NoContext, ServedBanditConfig
from panoply.laser.log import Log, state_version
from panoply.laser.online_state import OnlineState
from panoply.laser.rounds import initial_state
from panoply.laser.selector_file import SELECTOR_FILE, recorded_selector
from panoply.measure.conformance import Finding
from panoply.records import open_records
from panoply.scorers.bandit.opening import log_uri
from panoply.scorers.bandit.scorer import Contexts
from panoply.scorers.doctor import answers, example_items
from panoply.scorers.where import Scorer
from panoply.types import Array


def examine_bandit(
    file: Path,
    config: ServedBanditConfig,
    open_all: Callable[[], Mapping[str, Scorer]],
    contexts: Contexts,
) -> list[Finding]:
    """Asks each arm about examples, reads the log, and returns what was found; nothing is written.

    Args:
        file: of settings.
        config: the settings.
        open_all: opens the arms, by name, in the event loop that asks.
        contexts: features of prompts.
    """

    async def examine() -> list[Finding]:
        items = example_items()
        findings: list[Finding] = []
        for name, arm in open_all().items():
            findings.append(answers(f"arm {name}", await arm.score(items)))
        begun = time.monotonic()
        contexts_NH = await contexts.of(items)
        seconds = (time.monotonic() - begun) / len(items)
        return [*findings, _contexts(config, contexts_NH, seconds)]

    return [*asyncio.run(examine()), _log(file, config)]


def _contexts(config: ServedBanditConfig, contexts_NH: Array, seconds: float) -> Finding:
    """Returns what the bandit sees of a prompt, and what that takes."""
    num_prompts, size = contexts_NH.shape
    if isinstance(config.context, NoContext):
        return Finding("context", "none: all prompts are alike to this bandit", "ok")
    num = len(np.unique(contexts_NH, axis=0))
    tells = num == num_prompts
    return Finding(
        "context",
        f"{size} numbers, {num} different ones of {num_prompts} examples, "
        f"{1000 * seconds:.1f} ms a prompt",
        "ok" if tells else "warning",
        "" if tells else "prompts that look alike have one arm: take more features",
        {"size": size, "seconds": seconds},
    )


def _log(file: Path, config: ServedBanditConfig) -> Finding:
    """Returns what the log holds, and whether the state follows from it on this machine."""
    uri = log_uri(file, config)
    if SELECTOR_FILE not in open_records(uri).names():
        return Finding("log", f"{uri!r} is empty: the bandit knows nothing", "ok")
    selector, arms, num_features = recorded_selector(uri)
    if (selector, arms) != (config.selector, config.names):
        advice = "take another `log`, or the settings that it was written with"
        return Finding("log", f"{uri!r} is of another bandit or other arms", "fail", advice)
    record = Log(uri, arms, in_rounds=False).read()
    state = OnlineState.of(record, initial_state(selector, len(arms), num_features), selector)
    means = dict(zip(arms, state.bandit.mean_K.tolist(), strict=True))
    shown = ", ".join(f"{arm} {mean:.3f}" for arm, mean in means.items())
    return Finding(
        "log",
        f"{record.decisions.num_rows} decisions, {len(state.counted)} outcomes, "
        f"{int(np.isfinite(record.rewards_N).sum())} rewards; mean reward less cost: {shown}",
        "ok" if state.replayed_alike else "warning",
        "" if state.replayed_alike else "on this machine it gives another state in the last bits",
        {"decisions": record.decisions.num_rows, "state": state_version(state.bandit), **means},
    )

"""A round of a selector as pure functions: prompts in, decisions out; outcomes in, rewards out.

    begin:  decide(...)  -> decisions, all made with the state at the start of the round
    end:    settle(...)  -> rewards, in the order of the decisions

Prompts are put in the order of their ids, and a draw depends on (seed, round, id) alone, so the
order in which prompts and outcomes arrive changes nothing.

Shapes: B decisions, H size of a context as given, K arms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from panoply.bandit.make import make_policy
from panoply.bandit.state import State
from panoply.bandit.update import choose, uniforms
from panoply.config.bandit import Level, SelectorConfig, SignalConfig
from panoply.laser.log import DECISIONS, REWARDS, nullable, state_version
from panoply.laser.signals import MEASURES, PromptOutcome, SignalState, finite, signals
from panoply.types import Array

BATCH = "batch"
"""Id of the one decision of a round where decisions are made by batch."""
ASKED = ("decision_id", "prompt_ids", "sources", "context_hash")
"""Columns of a decision that say what was asked."""
TOLD = (*MEASURES, "num_failed", "failure")
"""Columns of a reward that say what was measured."""


@dataclass(frozen=True, slots=True)
class RoundPrompt:
    """A prompt that needs a reward model.

    Example: `RoundPrompt("9f3a", "gsm8k", embedding)`. Where pairs and not prompts are routed, the
    id and the context are the pair's.
    """

    prompt_id: str
    source: str = ""
    context_H: ArrayLike = ()
    """What the policy may look at, of about unit length; empty for those that look at nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The reward model of a prompt."""

    prompt_id: str
    arm: str
    propensity: float
    """Probability with which this arm was drawn."""
    probabilities: tuple[float, ...]
    """Of all arms, in their order."""


@dataclass(frozen=True, slots=True)
class Sidelined:
    """An arm that may not be chosen for a while."""

    arm: str
    reason: str
    until: int
    """The round in which it may be chosen again."""


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """What a round decides on, in the order of the ids."""

    ids: tuple[str, ...]
    prompt_ids: tuple[tuple[str, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    contexts_BH: Array

    @classmethod
    def of(cls, prompts: Sequence[RoundPrompt], level: Level) -> RoundRequest:
        """Returns one decision for each prompt, or one on the mean context of them all.

        Raises:
            ValueError: there is no prompt, an id comes twice, or contexts differ in size or are
                not finite.
        """
        ordered = sorted(prompts, key=lambda prompt: prompt.prompt_id)
        ids = tuple(prompt.prompt_id for prompt in ordered)
        if not ids or len(set(ids)) < len(ids):
            twice = sorted({name for name in ids if ids.count(name) > 1})
            raise ValueError(f"a round needs prompts of different ids, got {len(ids)}, {twice=}")
        contexts = [np.asarray(prompt.context_H, np.float64) for prompt in ordered]
        wrong = [i for i, c in zip(ids, contexts, strict=True) if c.shape != contexts[0].shape]
        wrong += [i for i, c in zip(ids, contexts, strict=True) if not np.isfinite(c).all()]
        if wrong or contexts[0].ndim != 1:
            raise ValueError(
                f"contexts must be finite vectors of one size; those of prompts {wrong[:5]} are "
                f"not, or differ from that of {ids[0]!r}, {contexts[0].shape!r}"
            )
        sources = tuple(prompt.source for prompt in ordered)
        if level == "batch":
            return cls((BATCH,), (ids,), (sources,), np.mean(contexts, axis=0, keepdims=True))
        alone = tuple((name,) for name in ids)
        return cls(ids, alone, tuple((name,) for name in sources), np.stack(contexts))

    def columns(self) -> dict[str, pa.Array]:
        """Returns the columns of the log that say what was asked."""
        hashes = [hashlib.blake2b(x.tobytes(), digest_size=8).hexdigest() for x in self.contexts_BH]
        values = (self.ids, self.prompt_ids, self.sources, hashes)
        pairs = zip(ASKED, values, strict=True)
        return {name: pa.array(value, DECISIONS.field(name).type) for name, value in pairs}


def decide(
    config: SelectorConfig,
    state: State,
    round: int,
    asked: RoundRequest,
    arms: tuple[str, ...],
    sidelined: Sequence[Sidelined],
) -> pa.Table:
    """Returns the decisions of a round, as they are logged.

    Raises:
        ValueError: contexts of another size than the state's.
    """
    away = {one.arm for one in sidelined}
    available = np.array([arm not in away for arm in arms])
    draws = uniforms(config.seed, round, asked.ids)
    policy = make_policy(config.policy)
    choice = choose(policy, state, asked.contexts_BH, draws, available)
    rows, version = range(len(asked.ids)), state_version(state)
    columns = {
        "round": [round for _ in rows],
        **asked.columns(),
        "arm": [arms[k] for k in choice.arms_B],
        "propensity": choice.propensities_BK[list(rows), choice.arms_B],
        "probabilities": list(choice.propensities_BK),
        "context": list(choice.contexts_BD),
        "state": [version for _ in rows],
        "sidelined": [[asdict(one) for one in sidelined] for _ in rows],
    }
    return pa.table(columns, schema=DECISIONS)


def answers(decisions: pa.Table) -> dict[str, Decision]:
    """Returns the decision on each prompt of a round."""
    names = ("prompt_ids", "arm", "propensity", "probabilities")
    found: dict[str, Decision] = {}
    for row in decisions.select(names).to_pylist():
        told = (row["arm"], row["propensity"], tuple(row["probabilities"]))
        found |= {name: Decision(name, *told) for name in row["prompt_ids"]}
    return found


def measured(decisions: pa.Table, outcomes: Sequence[PromptOutcome]) -> dict[str, pa.Array]:
    """Returns what was measured of each decision: means over its prompts, and its failures.

    Prompts without an outcome have nothing measured.

    Raises:
        ValueError: an outcome of a prompt that the round does not have, or two of one prompt.
    """
    by_prompt = {outcome.prompt_id: outcome for outcome in outcomes}
    prompts: list[list[str]] = decisions["prompt_ids"].to_pylist()
    unknown = set(by_prompt) - {name for names in prompts for name in names}
    if unknown or len(by_prompt) < len(outcomes):
        raise ValueError(
            f"{len(outcomes)} outcomes of {len(by_prompt)} prompts, of which {sorted(unknown)[:5]} "
            "are not of this round; each of its prompts has at most one"
        )
    groups = [[by_prompt[name] for name in names if name in by_prompt] for names in prompts]
    failures = [[one.failure for one in group if one.failure] for group in groups]
    return {
        **{name: nullable(_means(groups, name)) for name in MEASURES},
        "num_failed": pa.array([len(texts) for texts in failures], pa.int64()),
        "failure": pa.array([texts[0] if texts else None for texts in failures], pa.string()),
    }


def settle(
    decisions: pa.Table, told: Mapping[str, pa.Array], carry: SignalState, config: SignalConfig
) -> tuple[pa.Table, SignalState]:
    """Returns the rewards of a round, as they are logged, and what signals remember of it."""
    values = {name: told[name].to_numpy(zero_copy_only=False) for name in MEASURES}
    found, carry = signals(values, carry, config)
    columns: dict[str, Any] = {name: decisions[name] for name in ("round", "decision_id", "arm")}
    columns |= told
    columns |= {f"signal_{name}": nullable(value) for name, value in found.items()}
    columns["signal"] = [config.name] * decisions.num_rows
    columns["reward"] = columns[f"signal_{config.name}"]
    return pa.table({name: columns[name] for name in REWARDS.names}, schema=REWARDS), carry


def sidelined_in(
    round: int,
    arms: tuple[str, ...],
    held: Sequence[Sidelined],
    orders: Mapping[str, str],
    config: SelectorConfig,
) -> tuple[Sidelined, ...]:
    """Returns the arms that may not be chosen in a round.

    Where no arm would be left, those that would come back first do so now: a round has to be
    scored by something, and arms that still fail are for the watch. A fixed arm is never sidelined.

    Args:
        round: about to begin.
        arms: all arms.
        held: sidelined before.
        orders: arms to sideline now, with the reason.
        config: for how long.

    Raises:
        ValueError: an order names no arm.
    """
    if unknown := set(orders) - set(arms):
        raise ValueError(f"cannot sideline {sorted(unknown)}; the arms are {list(arms)}")
    if config.policy.name == "fixed":
        return ()
    until = round + config.sideline_rounds
    ordered = tuple(Sidelined(arm, orders[arm], until) for arm in sorted(orders))
    away = (*(one for one in held if one.until > round and one.arm not in orders), *ordered)
    if len(away) == len(arms):
        soonest = min(one.until for one in away)
        away = tuple(one for one in away if one.until > soonest)
    return away


def sidelined_by(rewards: pa.Table, config: SelectorConfig) -> tuple[Sidelined, ...]:
    """Returns the arms that failed in a round more often than they are forgiven."""
    found: list[Sidelined] = []
    rows = rewards.select(("round", "arm", "num_failed", "failure")).to_pylist()
    for arm in sorted({row["arm"] for row in rows}):
        own = [row for row in rows if row["arm"] == arm]
        num_failed = sum(row["num_failed"] for row in own)
        if num_failed > config.max_failures:
            first = next(row["failure"] for row in own if row["num_failed"])
            reason = f"{num_failed} failed in round {own[0]['round']}, the first with: {first}"
            until = own[0]["round"] + 1 + config.sideline_rounds
            found.append(Sidelined(arm, reason, until))
    return tuple(found)


def _means(groups: Sequence[Sequence[PromptOutcome]], name: str) -> Array:
    """Returns the mean of the finite values of each group; NaN where there is none."""
    values = [finite([getattr(outcome, name) for outcome in group]) for group in groups]
    found = [value[~np.isnan(value)] for value in values]
    return np.array([value.mean() if len(value) else np.nan for value in found])

"""A round of a selector as pure functions: prompts in, decisions out; outcomes in, rewards out.

    begin:  decide(...)           -> decisions, all made with the state at the start of the round
    end:    compute_rewards(...)  -> rewards, in the order of the decisions

Prompts are put in the order of their ids, and a draw depends on (seed, round, id) alone, so the
order in which prompts and outcomes arrive changes nothing.

Shapes: B decisions, H size of a context as it comes, K arms, D size inside the bandit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from panoply.bandit.bandits import FixedArm
from panoply.bandit.state import State
from panoply.bandit.update import init, select_arms, uniforms
from panoply.config.bandit import Level, SelectorConfig, SignalConfig
from panoply.laser.log import DECISIONS, REWARDS, nullable, state_version
from panoply.laser.signals import MEASURES, PromptOutcome, SignalState, finite, signals
from panoply.types import Array

BATCH = "batch"
"""Id of the one decision of a round where decisions are made by batch."""
DECISION_KEYS = ("decision_id", "prompt_ids", "sources", "context_hash")
"""Columns of a decision that are given by its prompts."""
OUTCOME_COLUMNS = (*MEASURES, "num_failed", "failure")
"""Columns of a reward that are given by the outcomes."""


@dataclass(frozen=True, slots=True)
class RoundPrompt:
    """A prompt that needs a reward model.

    Example: `RoundPrompt("9f3a", "gsm8k", embedding)`. Where pairs and not prompts are routed, the
    id and the context are the pair's.
    """

    prompt_id: str
    source: str = ""
    context_H: ArrayLike = ()
    """Context of the decision, of about unit length; empty for bandits that look at none."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The reward model of a prompt."""

    prompt_id: str
    arm: str
    propensity: float
    """Probability with which this arm was drawn."""
    probabilities: tuple[float, ...]
    """Probabilities of all arms, in their order."""


@dataclass(frozen=True, slots=True)
class Suspension:
    """An arm that may not be chosen for a while."""

    arm: str
    reason: str
    until: int
    """The round in which it may be chosen again."""


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """The decisions that a round needs, in the order of their ids."""

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
        contexts = _stacked_contexts(ordered)
        sources = tuple(prompt.source for prompt in ordered)
        if level == "batch":
            return cls((BATCH,), (ids,), (sources,), contexts.mean(0, keepdims=True))
        by_prompt = tuple((name,) for name in ids)
        return cls(ids, by_prompt, tuple((source,) for source in sources), contexts)

    def columns(self) -> dict[str, pa.Array]:
        """Returns the columns `DECISION_KEYS` of the log."""
        hashes = [hashlib.blake2b(x.tobytes(), digest_size=8).hexdigest() for x in self.contexts_BH]
        values = (self.ids, self.prompt_ids, self.sources, hashes)
        return {
            name: pa.array(value, DECISIONS.field(name).type)
            for name, value in zip(DECISION_KEYS, values, strict=True)
        }


def initial_state(
    config: SelectorConfig, num_arms: int, num_features: int, prior_KD: ArrayLike | None = None
) -> State:
    """Returns the state before the first reward, as `panoply.bandit.update.init` makes it.

    Raises:
        ValueError: costs, prior, contexts or a fixed arm that do not fit the arms.
    """
    bandit = config.bandit
    if isinstance(bandit, FixedArm) and not 0 <= bandit.arm < num_arms:
        raise ValueError(f"`bandit.arm` must be in 0..{num_arms - 1}, got {bandit.arm!r}")
    return init(bandit, num_arms, num_features, costs_K=config.costs or None, prior_KD=prior_KD)


def decide(
    config: SelectorConfig,
    state: State,
    round: int,
    request: RoundRequest,
    arms: tuple[str, ...],
    suspended: Sequence[Suspension],
) -> pa.Table:
    """Returns the decisions of a round, as they are logged.

    Raises:
        ValueError: contexts of another size than the state's.
    """
    unavailable = {suspension.arm for suspension in suspended}
    available = np.array([arm not in unavailable for arm in arms])
    draws = uniforms(config.seed, round, request.ids)
    choice = select_arms(config.bandit, state, request.contexts_BH, draws, available)
    num = len(request.ids)
    columns = {
        "round": [round] * num,
        **request.columns(),
        "arm": [arms[k] for k in choice.arms_B],
        "propensity": choice.propensities_BK[np.arange(num), choice.arms_B],
        "probabilities": list(choice.propensities_BK),
        "context": list(choice.contexts_BD),
        "state": [state_version(state)] * num,
        "suspended": [[asdict(suspension) for suspension in suspended]] * num,
    }
    return pa.table(columns, schema=DECISIONS)


def decisions_by_prompt(decisions: pa.Table) -> dict[str, Decision]:
    """Returns the decision on each prompt of a round."""
    names = ("prompt_ids", "arm", "propensity", "probabilities")
    by_prompt: dict[str, Decision] = {}
    for row in decisions.select(names).to_pylist():
        for prompt_id in row["prompt_ids"]:
            by_prompt[prompt_id] = Decision(
                prompt_id, row["arm"], row["propensity"], tuple(row["probabilities"])
            )
    return by_prompt


def aggregate_outcomes(
    decisions: pa.Table, outcomes: Sequence[PromptOutcome]
) -> dict[str, pa.Array]:
    """Returns the columns `OUTCOME_COLUMNS`: means over each decision's prompts, and its failures.

    Prompts without an outcome have nothing measured.

    Raises:
        ValueError: an outcome of a prompt that the round does not have, or two of one prompt.
    """
    by_prompt = {outcome.prompt_id: outcome for outcome in outcomes}
    groups: list[list[PromptOutcome]] = []
    unknown = set(by_prompt)
    for prompt_ids in decisions["prompt_ids"].to_pylist():
        groups.append([by_prompt[name] for name in prompt_ids if name in by_prompt])
        unknown.difference_update(prompt_ids)
    if unknown or len(by_prompt) < len(outcomes):
        raise ValueError(
            f"{len(outcomes)} outcomes of {len(by_prompt)} prompts, of which {sorted(unknown)[:5]} "
            "are not of this round; each of its prompts has at most one"
        )
    columns = {name: nullable(_group_means(groups, name)) for name in MEASURES}
    num_failed: list[int] = []
    first_failures: list[str | None] = []
    for group in groups:
        failures = [outcome.failure for outcome in group if outcome.failure]
        num_failed.append(len(failures))
        first_failures.append(failures[0] if failures else None)
    columns["num_failed"] = pa.array(num_failed, pa.int64())
    columns["failure"] = pa.array(first_failures, pa.string())
    return columns


def compute_rewards(
    decisions: pa.Table,
    outcomes: Mapping[str, pa.Array],
    state: SignalState,
    config: SignalConfig,
) -> tuple[pa.Table, SignalState]:
    """Returns the rewards of a round, as they are logged, and the state of the signals after it.

    Args:
        decisions: decisions of the round.
        outcomes: columns of `aggregate_outcomes`.
        state: state of the signals after the round before.
        config: signal that is the reward, and its numbers.
    """
    values = {name: outcomes[name].to_numpy(zero_copy_only=False) for name in MEASURES}
    by_signal, state = signals(values, state, config)
    columns: dict[str, Any] = {name: decisions[name] for name in ("round", "decision_id", "arm")}
    columns |= outcomes
    columns |= {f"signal_{name}": nullable(value) for name, value in by_signal.items()}
    columns["signal"] = [config.name] * decisions.num_rows
    columns["reward"] = columns[f"signal_{config.name}"]
    return pa.table({name: columns[name] for name in REWARDS.names}, schema=REWARDS), state


def suspended_in(
    round: int,
    arms: tuple[str, ...],
    suspended: Sequence[Suspension],
    requests: Mapping[str, str],
    config: SelectorConfig,
) -> tuple[Suspension, ...]:
    """Returns the arms that may not be chosen in a round.

    Where no arm would be left, those that would come back first do so now: a round has to be
    scored by something, and arms that still fail raise an alarm. A fixed arm is never suspended.

    Args:
        round: the round that is about to begin.
        arms: all arms.
        suspended: suspensions of earlier rounds.
        requests: reasons of arms to suspend from now on.
        config: number of rounds of a suspension.

    Raises:
        ValueError: a request names no arm.
    """
    if unknown := set(requests) - set(arms):
        raise ValueError(f"cannot suspend {sorted(unknown)}; the arms are {list(arms)}")
    if isinstance(config.bandit, FixedArm):
        return ()
    until = round + config.suspend_rounds
    kept = [s for s in suspended if s.until > round and s.arm not in requests]
    current = (*kept, *(Suspension(arm, requests[arm], until) for arm in sorted(requests)))
    if len(current) == len(arms):
        soonest = min(suspension.until for suspension in current)
        current = tuple(suspension for suspension in current if suspension.until > soonest)
    return current


def suspended_by(rewards: pa.Table, config: SelectorConfig) -> tuple[Suspension, ...]:
    """Returns the arms that failed in a round on more prompts than `max_failures`."""
    suspensions: list[Suspension] = []
    rows = rewards.select(("round", "arm", "num_failed", "failure")).to_pylist()
    for arm in sorted({row["arm"] for row in rows}):
        of_arm = [row for row in rows if row["arm"] == arm]
        num_failed = sum(row["num_failed"] for row in of_arm)
        if num_failed > config.max_failures:
            round = of_arm[0]["round"]
            first = next(row["failure"] for row in of_arm if row["num_failed"])
            reason = f"{num_failed} failed in round {round}, the first with: {first}"
            suspensions.append(Suspension(arm, reason, round + 1 + config.suspend_rounds))
    return tuple(suspensions)


def _stacked_contexts(prompts: Sequence[RoundPrompt]) -> Array:
    """Returns the contexts `[B, H]`.

    Raises:
        ValueError: they are no finite vectors of one size.
    """
    contexts = [np.asarray(prompt.context_H, np.float64) for prompt in prompts]
    shape = contexts[0].shape
    wrong = [
        prompt.prompt_id
        for prompt, context in zip(prompts, contexts, strict=True)
        if context.shape != shape or not np.isfinite(context).all()
    ]
    if wrong or len(shape) != 1:
        raise ValueError(
            f"contexts must be finite vectors of one size; those of prompts {wrong[:5]} are "
            f"not, or differ from that of {prompts[0].prompt_id!r}, {shape!r}"
        )
    return np.stack(contexts)


def _group_means(groups: Sequence[Sequence[PromptOutcome]], name: str) -> Array:
    """Returns the mean of the finite values of each group; NaN where there is none."""
    means: list[float] = []
    for group in groups:
        values = finite([getattr(outcome, name) for outcome in group])
        values = values[~np.isnan(values)]
        means.append(float(values.mean()) if len(values) else float("nan"))
    return np.array(means, np.float64)

"""A bandit outside of rounds: decisions when they are asked for, outcomes when they come.

Its log, its bandit and its signals are those of a selector in rounds (`panoply.laser.rounds`). What
differs: a record of the log holds the decisions that were made at the same time, or the outcomes
that came together, and records of both kinds are numbered as they were written. An outcome may come
at any time after its decision, again, and in any order; it counts once. Outcomes are placed one by
one, so that it makes no difference which of them came together.

The whole state follows from the log (`OnlineBandit.open`): what is answered is in the log.

Shapes: B decisions, H size of a context.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from panoply.config.bandit import SelectorConfig
from panoply.laser.log import Kind, Log, prior_hash, state_version
from panoply.laser.online_state import HeldDecisions, OnlineState, outcome_hash
from panoply.laser.rounds import (
    RoundRequest,
    Suspension,
    aggregate_outcomes,
    compute_rewards,
    decide,
    initial_state,
    suspended_in,
)
from panoply.laser.signals import MEASURES, PromptOutcome
from panoply.lease import LeaseLost
from panoply.types import Array
from panoply.wire.feedback import Outcome, OutcomeAnswer
from panoply.wire.request import ArmChoice

KEPT_SEGMENTS = 4096
"""Segments of decisions that are kept in memory; outcomes of older ones read their segment."""


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """A prompt that needs an arm."""

    key: str
    """Hash of the prompt; empty where there is none, and nothing is held."""
    caller: str
    """Name of the key that asks: it alone can tell what came of the decision."""
    context_H: Array
    """Context of the decision, of about unit length; empty for bandits that look at none."""


@dataclass(frozen=True, slots=True)
class OnlineStatus:
    """Progress of a bandit."""

    num_records: int
    """Records of the log."""
    num_outcomes: int
    """Decisions of which an outcome was counted."""
    suspended: tuple[Suspension, ...]
    """Arms that cannot be chosen now."""
    state: str
    """Version of the state."""
    replayed_alike: bool
    """Whether the log, when it was last read, led to the bits that the latest decisions were made
    with."""


class OnlineBandit:
    """A bandit over arms; one thread at a time may call it.

    Args:
        config: bandit, signal, and suspension of arms.
        arms: names of the arms.
        num_features: numbers in a context; 0 where the bandit looks at none.
        uri: folder of the log, on storage that outlives the machine.
        context: description of the contexts, which has to stay as it is.
        reward_range: least and most `reward` of an outcome.
        hold_seconds: seconds in which the same prompt of a caller keeps its decision.
        clock: seconds since 1970.

    Raises:
        ValueError: costs or a fixed arm that do not fit the arms.
        LogDiffers: the folder holds the log of another bandit.
    """

    def __init__(
        self,
        config: SelectorConfig,
        arms: tuple[str, ...],
        num_features: int,
        uri: str,
        *,
        context: Mapping[str, object],
        reward_range: tuple[float, float],
        hold_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.config, self.arms = config, arms
        self.reward_range, self.clock = reward_range, clock
        self.state = OnlineState(initial_state(config, len(arms), num_features))
        self.start = self.state.bandit
        self.held = HeldDecisions(hold_seconds)
        self.segments: dict[int, pa.Table] = {}
        """Latest segments of decisions."""
        self.log = Log(uri, arms, in_rounds=False)
        self.log.check_or_write_config(
            config, num_features, prior_hash(None), {"context": dict(context)}
        )
        self.is_open = False
        self.lost: LeaseLost | None = None
        """Error of the write that found another writer: nothing is written after it."""

    def open(self) -> None:
        """Takes the log over, and the state that follows from it.

        Done with the first decision or outcome: a server that is being started ends none before it.

        Raises:
            LeaseLost: another writer took over from this one.
            ValueError: the log is damaged.
        """
        if self.lost is not None:
            raise self.lost
        if self.is_open:
            return
        if self.log.lease is None:
            self.log.take_over()
        else:  # a write failed: whoever took over meanwhile keeps the log
            with self._ending():
                self.log.lease.check()
        record = self.log.read()
        self.state = OnlineState.of(record, self.start, self.config)
        self.held.of(record, self.state.counted)
        self.segments.clear()
        self.is_open = True

    def decide(self, prompts: Sequence[AskedPrompt]) -> list[ArmChoice]:
        """Returns the arm of each prompt; decisions that are new are in the log.

        Prompts of one caller with the same key have one decision.

        Raises:
            LeaseLost, OSError: nothing could be written.
            ValueError: contexts of another size than the state's.
        """
        self.open()
        now = self.clock()
        self.held.expire(now)
        ids: list[str] = []
        new: dict[str, AskedPrompt] = {}
        at_once: dict[tuple[str, str], str] = {}
        for prompt in prompts:
            place = (prompt.caller, prompt.key)
            name = self.held.names.get(place) or at_once.get(place)
            if name is None or not prompt.key:
                name = f"{self.state.number:x}-{round(1000 * now):x}-{secrets.token_hex(10)}"
                new[name] = prompt
                at_once[place] = name
            ids.append(name)
        if new:
            self._decide_new(new)
        return [self._choice(name) for name in ids]

    def learn(self, caller: str, outcomes: Sequence[Outcome]) -> list[OutcomeAnswer]:
        """Returns what becomes of outcomes; those that are counted are in the log.

        Args:
            caller: name of the key that sent them, with which the decisions were asked for.
            outcomes: in any order, and as often as it may be.

        Raises:
            LeaseLost, OSError: nothing could be written, and nothing was learned.
        """
        self.open()
        answers: list[OutcomeAnswer] = []
        rows: list[pa.Table] = []
        rewards: list[pa.Table] = []
        counted: dict[str, str] = {}
        signal_state = self.state.signals
        for outcome in outcomes:
            name = outcome.decision
            row = self._row(name)
            if row is None or row["sources"][0].as_py() != [caller]:
                answers.append(OutcomeAnswer(decision=name, status="unknown"))
                continue
            try:
                measured = self._measured(row, outcome)
            except ValueError as error:
                answers.append(OutcomeAnswer(decision=name, status="refused", error=str(error)))
                continue
            columns = aggregate_outcomes(row, [measured])
            content = outcome_hash({key: values[0].as_py() for key, values in columns.items()})
            before = counted.get(name) or self.state.counted.get(name)
            if before is not None:
                status = "repeated" if before == content else "differs"
                answers.append(OutcomeAnswer(decision=name, status=status))
                continue
            reward, signal_state = compute_rewards(row, columns, signal_state, self.config.signal)
            counted[name] = content
            rows.append(row)
            rewards.append(reward)
            value = reward["reward"][0].as_py()
            answers.append(OutcomeAnswer(decision=name, status="counted", reward=value))
        if rows:
            table, decisions = pa.concat_tables(rewards).combine_chunks(), pa.concat_tables(rows)
            self._write("rewards", table)
            self.state.learn(decisions, table, self.arms, self.config)
            self.state.signals = signal_state
            self.state.counted |= counted
            self.held.release(decisions)
        return answers

    def status(self) -> OnlineStatus:
        """Returns the progress."""
        self.open()
        state = self.state
        return OnlineStatus(
            state.number,
            len(state.counted),
            suspended_in(state.number, self.arms, state.suspended, {}, self.config),
            state_version(state.bandit),
            state.replayed_alike,
        )

    def _decide_new(self, prompts: Mapping[str, AskedPrompt]) -> None:
        """Decides on prompts by the ids of their decisions, and writes that."""
        request = RoundRequest(
            ids=tuple(prompts),
            prompt_ids=tuple((prompt.key,) for prompt in prompts.values()),
            sources=tuple((prompt.caller,) for prompt in prompts.values()),
            contexts_BH=np.stack([np.asarray(p.context_H, np.float64) for p in prompts.values()]),
        )
        number = self.state.number
        suspended = suspended_in(number, self.arms, self.state.suspended, {}, self.config)
        table = decide(self.config, self.state.bandit, number, request, self.arms, suspended)
        self._write("decisions", table)
        self.state.suspended = suspended
        self._keep(number, table)
        for name, prompt in prompts.items():
            self.held.hold((prompt.caller, prompt.key), name)

    def _write(self, kind: Kind, table: pa.Table) -> None:
        """Writes the next record.

        Raises:
            LeaseLost: another writer took over; so it stays.
            OSError, ValueError: nothing was written, or somebody else wrote this record; the log is
                read again before the next one.
        """
        with self._ending():
            self.log.write(kind, self.state.number, table)
        self.state.number += 1

    @contextmanager
    def _ending(self) -> Generator[None]:
        """Ends what is known of the log where the block fails, and all writes if it is lost."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.is_open = False
            if isinstance(error, LeaseLost):
                self.lost = error
            raise

    def _measured(self, decision: pa.Table, outcome: Outcome) -> PromptOutcome:
        """Returns an outcome as a selector has it.

        Raises:
            ValueError: a number is none that is taken.
        """
        measures = dict(outcome.measures)
        reward = measures.pop("reward", None)
        for name in measures:
            if name not in MEASURES:
                allowed = ", ".join(("reward", *MEASURES))
                raise ValueError(f"`{name[:64]}` is no measurement: there is {allowed}")
        if reward is not None:
            low, high = self.reward_range
            if not low <= reward <= high:
                raise ValueError(f"`reward` must be within [{low:g}, {high:g}], got {reward!r}")
            if "verifier" in measures:
                raise ValueError("`reward` is the measurement `verifier`: name one of both")
            measures["verifier"] = (reward - low) / (high - low)
        if not measures and not outcome.failure:
            raise ValueError("an outcome must have a number, `reward` or a measurement")
        (key,) = decision["prompt_ids"][0].as_py()
        return PromptOutcome(prompt_id=key, failure=outcome.failure, **measures)

    def _keep(self, number: int, decisions: pa.Table) -> None:
        """Keeps a segment of decisions in memory, in place of the oldest where there are many."""
        self.segments[number] = decisions
        if len(self.segments) > KEPT_SEGMENTS:
            del self.segments[next(iter(self.segments))]

    def _row(self, name: str) -> pa.Table | None:
        """Returns a decision by its id; None where there is none."""
        number, dash, _ = name.partition("-")
        try:
            segment = int(number, 16) if dash else -1
        except ValueError:
            return None
        if not 0 <= segment < self.state.number:
            return None
        if segment not in self.segments:
            table = self.log.read_segment("decisions", segment)
            if table is None:
                return None
            self._keep(segment, table)
        decisions = self.segments[segment]
        ids = decisions["decision_id"].to_pylist()
        return decisions.slice(ids.index(name), 1) if name in ids else None

    def _choice(self, name: str) -> ArmChoice:
        row = self._row(name)
        assert row is not None
        return ArmChoice(row["arm"][0].as_py(), row["propensity"][0].as_py(), name)

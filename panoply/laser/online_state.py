"""State of a bandit outside of rounds: a function of its log, and decisions that prompts keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from panoply.bandit.state import State
from panoply.bandit.update import update
from panoply.config.bandit import SelectorConfig
from panoply.laser.log import Record, column, replay, state_version, to_choice
from panoply.laser.rounds import OUTCOME_COLUMNS, Suspension, suspended_by
from panoply.laser.signals import MEASURES, SignalState, signals


@dataclass(slots=True)
class OnlineState:
    """State of a bandit after some records of its log."""

    bandit: State
    number: int = 0
    """Number of the next record."""
    signals: SignalState = field(default_factory=SignalState)
    """Memory of the signals."""
    suspended: tuple[Suspension, ...] = ()
    """Arms that may not be chosen for a while."""
    counted: dict[str, str] = field(default_factory=dict[str, str])
    """Hash of the outcome of each decision that has one, by its id."""
    replayed_alike: bool = True
    """Whether the log, when it was read, led to the bits that the latest decisions were made with.
    If not, arithmetic differs between the machines in the last bits: decisions that were made
    stand, later ones may differ from those of an undisturbed bandit."""

    @classmethod
    def of(cls, record: Record, start: State, config: SelectorConfig) -> OnlineState:
        """Returns the state that a bandit had when it wrote the end of its log.

        Args:
            record: the log.
            start: state of the bandit before the first reward.
            config: signal, and suspension of arms.
        """
        state = cls(start)
        decisions, rewards = record.decisions, record.rewards
        if not decisions.num_rows:
            return state
        segments_N = record.reward_segments_N
        last = decisions["round"][-1].as_py()
        state.number = 1 + max([last, *segments_N[-1:].tolist()])

        # The state that the latest decisions were made with, and the one after all rewards.
        num_before = int((segments_N < last).sum())
        before = Record(record.arms, decisions, rewards.slice(0, num_before))
        state.bandit = replay(before, start)
        state.replayed_alike = state_version(state.bandit) == decisions["state"][-1].as_py()
        after = Record(record.arms, decisions, rewards.slice(num_before))
        state.bandit = replay(after, state.bandit)

        # Suspensions stand in the latest decisions; arms may have failed since.
        state.suspended = tuple(Suspension(**row) for row in decisions["suspended"][-1].as_py())
        for number in np.unique(segments_N[num_before:]):
            rows = np.flatnonzero(segments_N == number)
            state._suspend(rewards.slice(int(rows[0]), len(rows)), config)

        # Signals remember what came before, so outcomes are passed through them one by one.
        measured = {name: column(rewards, name) for name in MEASURES}
        for place in range(rewards.num_rows):
            outcome = {name: values[place : place + 1] for name, values in measured.items()}
            _, state.signals = signals(outcome, state.signals, config.signal)
        contents = rewards.select(OUTCOME_COLUMNS).to_pylist()
        for name, content in zip(rewards["decision_id"].to_pylist(), contents, strict=True):
            state.counted[name] = outcome_hash(content)
        return state

    def learn(
        self,
        decisions: pa.Table,
        rewards: pa.Table,
        arms: tuple[str, ...],
        config: SelectorConfig,
    ) -> None:
        """Takes rewards that are in the log.

        Args:
            decisions: one for each reward.
            rewards: as they are logged.
            arms: names of the arms.
            config: suspension of arms.
        """
        self.bandit = update(self.bandit, to_choice(decisions, arms), column(rewards, "reward"))
        self._suspend(rewards, config)

    def _suspend(self, rewards: pa.Table, config: SelectorConfig) -> None:
        """Suspends the arms that failed."""
        failed = suspended_by(rewards, config)
        names = {suspension.arm for suspension in failed}
        kept = [suspension for suspension in self.suspended if suspension.arm not in names]
        self.suspended = (*kept, *failed)


class HeldDecisions:
    """Decisions that prompts keep for a while, by caller and prompt; the oldest stand first.

    The time of a decision is in its id: SEGMENT-MILLISECONDS-RANDOM, in hexadecimal.
    """

    def __init__(self, seconds: float) -> None:
        """Holds nothing yet.

        Args:
            seconds: time for which a decision is held; 0: none is.
        """
        self.seconds = seconds
        self.names: dict[tuple[str, str], str] = {}

    def of(self, record: Record, counted: Mapping[str, str]) -> None:
        """Takes the decisions of a log that have no outcome in place of those that are held."""
        self.names.clear()
        columns = ("decision_id", "sources", "prompt_ids")
        for row in record.decisions.select(columns).to_pylist():
            if row["decision_id"] not in counted:
                self.hold((row["sources"][0], row["prompt_ids"][0]), row["decision_id"])

    def hold(self, place: tuple[str, str], name: str) -> None:
        """Keeps a decision for a caller's prompt; one without a prompt is not kept."""
        if self.seconds and place[1]:
            self.names.pop(place, None)  # so that the latest stand last
            self.names[place] = name

    def release(self, decisions: pa.Table) -> None:
        """Gives up decisions that have an outcome; later ones about the same prompts stay."""
        for row in decisions.select(("decision_id", "sources", "prompt_ids")).to_pylist():
            place = (row["sources"][0], row["prompt_ids"][0])
            if self.names.get(place) == row["decision_id"]:
                del self.names[place]

    def expire(self, now: float) -> None:
        """Gives up decisions that were held long enough.

        Args:
            now: seconds since 1970.
        """
        while self.names:
            place, name = next(iter(self.names.items()))
            if int(name.split("-")[1], 16) >= 1000 * (now - self.seconds):
                return
            del self.names[place]


def outcome_hash(content: Mapping[str, object]) -> str:
    """Returns a hash of an outcome's columns, by which a repeated one is told from another."""
    values = [content[name] for name in OUTCOME_COLUMNS]
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()

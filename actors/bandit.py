"""The bandit that chooses the reward model during rollouts, and its log.

Everything that it knows follows from its log, so it may die at any moment: what was answered is in
the log, what is not in the log was not answered, and a call that is repeated gets the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import ray

from panoply.bandit.make import initial_state
from panoply.bandit.state import State
from panoply.bandit.update import update
from panoply.config.bandit import SelectorConfig
from panoply.laser.log import Log, LogDiffers, Record, column, replay, state_version, to_choice
from panoply.laser.rounds import (
    ASKED,
    TOLD,
    Decision,
    RoundPrompt,
    RoundRequest,
    Sidelined,
    answers,
    decide,
    measured,
    settle,
    sidelined_by,
    sidelined_in,
)
from panoply.laser.signals import MEASURES, PromptOutcome, SignalState, signals
from panoply.types import Array


@dataclass(frozen=True, slots=True)
class Status:
    """Where a selector stands."""

    round: int
    """The open round, or the one that may begin."""
    is_open: bool
    """Whether that round has begun."""
    sidelined: tuple[Sidelined, ...]
    """Arms that cannot be chosen in it, before any order of its own."""
    state: str
    """Version of the state."""
    replayed_alike: bool
    """Whether the log, when it was last read, led to the bits that the latest decisions were made
    with. If not, arithmetic differs between the machines in the last bits: decisions that were
    made stand, later ones may differ from those of an undisturbed run."""


class BanditActor:
    """A bandit over arms, in rounds: `begin_round`, then `end_round`, then the next.

    Args:
        config: policy, signal, level, and how arms are sidelined.
        arms: names of the reward models.
        num_features: numbers in a context; 0 where the policy looks at nothing.
        uri: folder of the log, on storage that outlives the machine.
        prior_KD: mean of Thompson's prior (`panoply.bandit.router`), or None.

    Raises:
        ValueError: the arms, or what belongs to them, do not fit.
        LogDiffers: the folder holds the log of another selector.
    """

    def __init__(
        self,
        config: SelectorConfig,
        arms: tuple[str, ...],
        num_features: int,
        uri: str,
        prior_KD: Array | None,
    ) -> None:
        if len(set(arms)) < len(arms):
            raise ValueError(f"arms must have different names, got {list(arms)}")
        self.config, self.arms = config, arms
        self.state = initial_state(config, len(arms), num_features, prior_KD)
        self.log = Log(uri, arms)
        prior = b"" if prior_KD is None else np.asarray(prior_KD, np.float64).tobytes()
        prior_hash = hashlib.blake2b(prior, digest_size=8).hexdigest()
        own = {"arms": arms, "num_features": num_features, "prior": prior_hash}
        self.log.check_or_write_config(asdict(config) | own)
        self.round = 0
        self.carry = SignalState()
        self.held: tuple[Sidelined, ...] = ()
        self.open: pa.Table | None = None
        self.answers: dict[str, Decision] = {}
        self.replayed_alike = True
        self._resume(self.log.read())

    @ray.method
    def begin_round(
        self, round: int, prompts: Sequence[RoundPrompt], sideline: Mapping[str, str]
    ) -> list[Decision]:
        """Returns the arm of each prompt, in the order of the prompts.

        A round that has begun stays as it is: asked again with the same prompts, the answer is the
        same, and `sideline` is no longer looked at.

        Args:
            round: 0, and then one more than the round that ended last.
            prompts: of the round, in any order.
            sideline: arms to sideline from now on, with the reason, as a watch asks for.

        Raises:
            LogDiffers: the round has begun with other prompts.
            ValueError: it is not this round's turn, or prompts or arms do not fit.
        """
        asked = RoundRequest.of(prompts, self.config.level)
        known = self._begun(round)
        if known is None:
            if round != self.round or self.open is not None:
                last = "has not ended" if self.open is not None else "is the next"
                raise ValueError(f"round {round} cannot begin: round {self.round} {last}")
            away = sidelined_in(round, self.arms, self.held, sideline, self.config)
            known = decide(self.config, self.state, round, asked, self.arms, away)
            self.log.write("decisions", round, known)
            self._open(known)
            self.held = away
        elif not _same(known, asked.columns(), ASKED):
            raise LogDiffers(f"round {round} began with other prompts, sources or contexts")
        return self._answer(round, known, [prompt.prompt_id for prompt in prompts])

    @ray.method
    def decisions(self, round: int, prompt_ids: Sequence[str]) -> list[Decision]:
        """Returns decisions of a round that has begun, as a worker needs them.

        Raises:
            ValueError: the round has not begun.
            KeyError: a prompt that it does not have.
        """
        known = self._begun(round)
        if known is None:
            raise ValueError(f"round {round} has not begun; the next is {self.round}")
        return self._answer(round, known, prompt_ids)

    @ray.method
    def end_round(self, round: int, outcomes: Sequence[PromptOutcome]) -> Status:
        """Logs and applies what came of a round: once, however often it is told.

        Args:
            round: the open one.
            outcomes: at most one of each of its prompts, in any order; a prompt without one has
                no reward.

        Raises:
            LogDiffers: the round has ended with other outcomes.
            ValueError: the round has not begun, or outcomes do not fit.
        """
        decisions = self._begun(round)
        if decisions is None:
            raise ValueError(f"round {round} has not begun; the next is {self.round}")
        told = measured(decisions, outcomes)
        if self.open is None or round != self.round:
            known = self.log.read_segment("rewards", round)
            if known is None or not _same(known, told, TOLD):
                raise LogDiffers(f"round {round} has ended, with other outcomes")
            return self._status()
        rewards, carry = settle(decisions, told, self.carry, self.config.signal)
        self.log.write("rewards", round, rewards)
        self._close(rewards, carry)
        return self._status()

    @ray.method
    def status(self) -> Status:
        """Returns where the selector stands."""
        return self._status()

    @ray.method
    def learned(self) -> State:
        """Returns the state of the bandit."""
        return self.state

    def _status(self) -> Status:
        is_open = self.open is not None
        away = self.held
        if not is_open:
            away = sidelined_in(self.round, self.arms, self.held, {}, self.config)
        return Status(self.round, is_open, away, state_version(self.state), self.replayed_alike)

    def _begun(self, round: int) -> pa.Table | None:
        """Returns the decisions of a round, or None where it has not begun."""
        if round == self.round:
            return self.open
        return self.log.read_segment("decisions", round) if 0 <= round < self.round else None

    def _answer(self, round: int, known: pa.Table, prompt_ids: Sequence[str]) -> list[Decision]:
        found = self.answers if round == self.round else answers(known)
        return [found[name] for name in prompt_ids]

    def _open(self, decisions: pa.Table) -> None:
        self.open, self.answers = decisions, answers(decisions)

    def _close(self, rewards: pa.Table, carry: SignalState) -> None:
        """Applies the rewards of the open round, which are in the log."""
        assert self.open is not None
        choice = to_choice(self.open, self.arms)
        self.state = update(self.state, choice, column(rewards, "reward"))
        self.carry = carry
        failed = sidelined_by(rewards, self.config)
        names = {one.arm for one in failed}
        self.held = (*(one for one in self.held if one.arm not in names), *failed)
        self.round, self.open = self.round + 1, None

    def _resume(self, record: Record) -> None:
        """Becomes what the selector was that wrote the log."""
        if not record.decisions.num_rows:
            return
        rounds, ended = (t["round"].to_numpy() for t in (record.decisions, record.rewards))
        self.round = int(rounds[-1])
        earlier = int((ended < self.round).sum())
        self.state = replay(replace(record, rewards=record.rewards.slice(0, earlier)), self.state)
        self._open(record.decisions.slice(earlier))
        self.held = tuple(Sidelined(**one) for one in record.decisions["sidelined"][-1].as_py())
        made_with = record.decisions["state"][-1].as_py()
        self.replayed_alike = state_version(self.state) == made_with
        columns = {name: column(record.rewards, name) for name in MEASURES}
        for rows in np.split(np.arange(len(ended)), np.flatnonzero(np.diff(ended)) + 1):
            now = {name: values[rows] for name, values in columns.items()}
            self.carry = signals(now, self.carry, self.config.signal)[1]
        if len(ended) > earlier:
            self._close(record.rewards.slice(earlier), self.carry)


def _same(known: pa.Table, columns: Mapping[str, pa.Array], names: Sequence[str]) -> bool:
    return all(known[name].combine_chunks().equals(columns[name]) for name in names)

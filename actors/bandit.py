"""The bandit that chooses the reward model during rollouts, and its log.

Its whole state follows from its log, so it may die at any moment: a decision is in the log before
it is answered, and a call that is repeated gets the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import ray

from panoply.bandit.state import State
from panoply.bandit.update import update
from panoply.config.bandit import SelectorConfig
from panoply.laser.log import (
    Log,
    LogDiffers,
    Record,
    column,
    prior_hash,
    replay,
    state_version,
    to_choice,
)
from panoply.laser.rounds import (
    DECISION_KEYS,
    OUTCOME_COLUMNS,
    Decision,
    RoundPrompt,
    RoundRequest,
    Suspension,
    aggregate_outcomes,
    compute_rewards,
    decide,
    decisions_by_prompt,
    initial_state,
    suspended_by,
    suspended_in,
)
from panoply.laser.signals import MEASURES, PromptOutcome, SignalState, signals
from panoply.types import Array


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of a selector."""

    round: int
    """The open round, or the one that may begin."""
    is_open: bool
    """Whether that round has begun."""
    suspended: tuple[Suspension, ...]
    """Arms that cannot be chosen in that round, before any request of its own."""
    state: str
    """Version of the state."""
    replayed_alike: bool
    """Whether the log, when it was last read, led to the bits that the latest decisions were made
    with. If not, arithmetic differs between the machines in the last bits: decisions that were
    made stand, later ones may differ from those of an undisturbed run."""


class BanditActor:
    """A bandit over arms, in rounds: `begin_round`, then `end_round`, then the next.

    Args:
        config: bandit, signal, level, and suspension of arms.
        arms: names of the reward models.
        num_features: numbers in a context; 0 where the bandit looks at none.
        uri: folder of the log, on storage that outlives the machine.
        prior_KD: mean of Thompson's prior (`panoply.bandit.router`), or None.

    Raises:
        ValueError: arms of one name, or costs, a prior or a fixed arm that do not fit them.
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
        self.log.check_or_write_config(config, num_features, prior_hash(prior_KD))
        self.log.take_over()
        self.round = 0
        self.signal_state = SignalState()
        self.suspended: tuple[Suspension, ...] = ()
        self.open: pa.Table | None = None
        """Decisions of the open round."""
        self.open_decisions: dict[str, Decision] = {}
        """The same by prompt; those of the latest round where none is open."""
        self.replayed_alike = True
        self._resume(self.log.read())

    @ray.method
    def begin_round(
        self, round: int, prompts: Sequence[RoundPrompt], suspend: Mapping[str, str]
    ) -> list[Decision]:
        """Returns the arm of each prompt, in the order of the prompts.

        A round that has begun stays as it is: a repeated call with the same prompts has the same
        answer, and ignores `suspend`.

        Args:
            round: 0, and then one more than the round that ended last.
            prompts: prompts of the round, in any order.
            suspend: reasons of arms to suspend from now on (`monitor.suspension_requests`).

        Raises:
            LogDiffers: the round has begun with other prompts.
            ValueError: it is not this round's turn, or prompts or arms do not fit.
        """
        request = RoundRequest.of(prompts, self.config.level)
        decisions = self._begun(round)
        if decisions is None:
            if round != self.round or self.open is not None:
                last = "has not ended" if self.open is not None else "is the next"
                raise ValueError(f"round {round} cannot begin: round {self.round} {last}")
            suspended = suspended_in(round, self.arms, self.suspended, suspend, self.config)
            decisions = decide(self.config, self.state, round, request, self.arms, suspended)
            self.log.write("decisions", round, decisions)
            self._open(decisions)
            self.suspended = suspended
        elif not _same(decisions, request.columns(), DECISION_KEYS):
            raise LogDiffers(f"round {round} began with other prompts, sources or contexts")
        return self._answer(round, decisions, [prompt.prompt_id for prompt in prompts])

    @ray.method
    def decisions(self, round: int, prompt_ids: Sequence[str]) -> list[Decision]:
        """Returns some decisions of a round that has begun.

        Raises:
            ValueError: the round has not begun.
            KeyError: a prompt that it does not have.
        """
        decisions = self._begun(round)
        if decisions is None:
            raise ValueError(f"round {round} has not begun; the next is {self.round}")
        return self._answer(round, decisions, prompt_ids)

    @ray.method
    def end_round(self, round: int, outcomes: Sequence[PromptOutcome]) -> Status:
        """Logs the outcomes of a round and applies its rewards, once however often it is called.

        Args:
            round: the open round.
            outcomes: at most one of each of its prompts, in any order; a prompt without one has
                no reward.

        Raises:
            LogDiffers: the round has ended with other outcomes.
            ValueError: the round has not begun, or outcomes do not fit.
        """
        decisions = self._begun(round)
        if decisions is None:
            raise ValueError(f"round {round} has not begun; the next is {self.round}")
        columns = aggregate_outcomes(decisions, outcomes)
        if self.open is None or round != self.round:
            logged = self.log.read_segment("rewards", round)
            if logged is None or not _same(logged, columns, OUTCOME_COLUMNS):
                raise LogDiffers(f"round {round} has ended, with other outcomes")
            return self._status()
        rewards, signal_state = compute_rewards(
            decisions, columns, self.signal_state, self.config.signal
        )
        self.log.write("rewards", round, rewards)
        self._close(rewards, signal_state)
        return self._status()

    @ray.method
    def status(self) -> Status:
        """Returns the progress of the selector."""
        return self._status()

    @ray.method
    def learned(self) -> State:
        """Returns the state of the bandit."""
        return self.state

    def _status(self) -> Status:
        suspended = self.suspended
        if self.open is None:
            suspended = suspended_in(self.round, self.arms, suspended, {}, self.config)
        return Status(
            self.round,
            self.open is not None,
            suspended,
            state_version(self.state),
            self.replayed_alike,
        )

    def _begun(self, round: int) -> pa.Table | None:
        """Returns the decisions of a round, or None where it has not begun."""
        if round == self.round:
            return self.open
        return self.log.read_segment("decisions", round) if 0 <= round < self.round else None

    def _answer(self, round: int, decisions: pa.Table, prompt_ids: Sequence[str]) -> list[Decision]:
        is_latest = round == self.round
        by_prompt = self.open_decisions if is_latest else decisions_by_prompt(decisions)
        return [by_prompt[prompt_id] for prompt_id in prompt_ids]

    def _open(self, decisions: pa.Table) -> None:
        self.open, self.open_decisions = decisions, decisions_by_prompt(decisions)

    def _close(self, rewards: pa.Table, signal_state: SignalState) -> None:
        """Applies the rewards of the open round, which are in the log."""
        assert self.open is not None
        choice = to_choice(self.open, self.arms)
        self.state = update(self.state, choice, column(rewards, "reward"))
        self.signal_state = signal_state
        failed = suspended_by(rewards, self.config)
        names = {suspension.arm for suspension in failed}
        kept = [suspension for suspension in self.suspended if suspension.arm not in names]
        self.suspended = (*kept, *failed)
        self.round, self.open = self.round + 1, None

    def _resume(self, record: Record) -> None:
        """Takes the state that the selector had when it wrote the end of its log."""
        decisions, rewards = record.decisions, record.rewards
        if not decisions.num_rows:
            return
        # The bandit's state at the start of the latest round, which is the one in its decisions.
        self.round = decisions["round"][-1].as_py()
        reward_rounds = rewards["round"].to_numpy()
        num_earlier = int((reward_rounds < self.round).sum())
        earlier = replace(record, rewards=rewards.slice(0, num_earlier))
        self.state = replay(earlier, self.state)
        self.replayed_alike = state_version(self.state) == decisions["state"][-1].as_py()

        self._open(decisions.slice(num_earlier))
        self.suspended = tuple(Suspension(**row) for row in decisions["suspended"][-1].as_py())

        # Signals remember rounds, so rewards are passed through them round by round.
        columns = {name: column(rewards, name) for name in MEASURES}
        ends = np.flatnonzero(np.diff(reward_rounds)) + 1
        for rows in np.split(np.arange(len(reward_rounds)), ends):
            measured = {name: values[rows] for name, values in columns.items()}
            _, self.signal_state = signals(measured, self.signal_state, self.config.signal)
        if len(reward_rounds) > num_earlier:
            self._close(rewards.slice(num_earlier), self.signal_state)


def _same(logged: pa.Table, columns: Mapping[str, pa.Array], names: Sequence[str]) -> bool:
    return all(logged[name].combine_chunks().equals(columns[name]) for name in names)

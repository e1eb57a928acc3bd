"""A judge as a scorer: questions by its mode, and scores from the verdicts.

A response whose verdicts are missing has an error. A pair counts only where both orders have a
verdict: one alone would give credit for a place.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

import numpy as np

from panoply.config.judge import JudgeConfig, Listwise, Pairwise, Pointwise
from panoply.config.yaml_lines import read_settings, with_line
from panoply.scorers.deadline import seconds_left
from panoply.scorers.judge.client import JudgeClient, JudgeError
from panoply.scorers.judge.limited import check_speaks
from panoply.scorers.judge.prompts import JudgePrompt
from panoply.scorers.judge.ranking import (
    bradley_terry,
    games_of_ranking,
    pairs_of,
    weighted_mean,
    win_share,
)
from panoply.scorers.judge.verdicts import Judge, Judged
from panoply.types import Array
from panoply.wire.breaker import CircuitState
from panoply.wire.request import Chat, Item, Score, scored

Result: TypeAlias = Judged | JudgeError
UNREADABLE = Score(
    error="a judge reads a prompt's messages and its responses, no rendered text or tokens"
)
"""Score of what a judge cannot read."""


@dataclass(slots=True)
class PairTally:
    """Verdicts on pairs since the start, by the order in which their responses were shown."""

    pairs: int = 0
    """Pairs that were judged in both orders."""
    inconsistent_pairs: int = 0
    """Pairs of which the order decided: twice the first one was better, or twice the second one."""
    decided: int = 0
    """Verdicts on a pair in one order that are no tie."""
    preferred_first: int = 0
    """Those that prefer the response shown first."""

    def add(self, first: float, swapped: float) -> None:
        """Counts a pair.

        Args:
            first: probability that the first response shown is better.
            swapped: the same in the other order.
        """
        self.pairs += 1
        self.inconsistent_pairs += (first - 0.5) * (swapped - 0.5) > 0
        self.decided += (first != 0.5) + (swapped != 0.5)
        self.preferred_first += (first > 0.5) + (swapped > 0.5)


@dataclass(frozen=True, slots=True)
class Games:
    """Verdicts on responses that are judged against each other."""

    wins_nn: Array
    """Games that one won against another, in rounds whose two orders both have a verdict."""
    games_nn: Array
    """Games of two in such rounds."""
    results_n: list[list[Result]]
    """Results of each response, of a round both orders one after the other."""
    num_held_n: list[int]
    """Rounds of each response that count."""
    num_expected_n: list[int]
    """Rounds of each response."""

    @classmethod
    def of(cls, num: int) -> Games:
        """Returns no games between some responses."""
        empty = [list[Result]() for _ in range(num)]
        return cls(np.zeros((num, num)), np.zeros((num, num)), empty, [0] * num, [0] * num)


class JudgeScorer:
    """Judge of a settings file. It belongs to one event loop."""

    def __init__(self, file: str, *, on_node: bool = True, replicas: int = 1) -> None:
        """Reads and checks the settings.

        Args:
            file: settings in YAML (`panoply.config.judge.JudgeConfig`).
            on_node: whether this is the node on which it runs, which holds the server's key. If
                not, the server is asked once whether it is one, which is free.
            replicas: processes that share the server's limits.

        Raises:
            ValueError: "FILE:LINE: " and what is wrong with a setting, or with what it names.
            OSError: the file cannot be read.
        """
        path = Path(file).expanduser()
        self.config = read_settings(path, JudgeConfig)
        variable = self.config.server.address.key_variable
        api_key = os.environ.get(variable, "") if variable else ""
        with with_line(path):
            prompt = JudgePrompt(self.config)
            if on_node and variable and not api_key:
                raise ValueError(f"`server.url` names {variable!r}, which is not set on this node")
            if not on_node:
                check_speaks(self.config.server)
        self.client = JudgeClient(self.config, prompt, api_key=api_key, replicas=replicas)
        self.judge = Judge(self.config, prompt, self.client)
        self.pairs = PairTally()

    @property
    def circuit(self) -> CircuitState:
        """State of the circuit to the server."""
        return self.client.breaker.state

    async def close(self) -> None:
        """Closes the connections."""
        await self.client.close()

    def counts(self) -> dict[str, float]:
        """Returns answers, tokens, costs and verdicts on pairs since the start, by name."""
        counts: dict[str, float] = {**asdict(self.client.spending), **asdict(self.pairs)}
        return {**counts, "unread": self.judge.num_unread}

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items; those that failed as errors of their response."""
        ends = self._ends()
        return tuple(await asyncio.gather(*(self._item(item, ends) for item in items)))

    @property
    def compares(self) -> bool:
        """Whether it judges responses against each other, and says which is better."""
        return not isinstance(self.config.mode, Pointwise)

    async def compare(self, items: Sequence[Item]) -> list[Score]:
        """Returns of each item of two responses the probability that the first is better.

        It is the mean of both orders, which stand beside it, over all votes.
        """
        ends = self._ends()
        return await asyncio.gather(*(self._comparison(item, ends) for item in items))

    def _ends(self) -> float:
        """Returns the time of `time.monotonic` after which no verdict is waited for."""
        return time.monotonic() + min(self.config.server.timeout, seconds_left())

    async def _item(self, item: Item, ends: float) -> tuple[Score, ...]:
        num = len(item.responses)
        if not isinstance(item, Chat) or not item.prompt:
            return (UNREADABLE,) * num
        match self.config.mode:
            case Pointwise():
                alone = [self._alone(item, place, ends) for place in range(num)]
                return tuple(await asyncio.gather(*alone))
            case Pairwise() | Listwise() as mode if not 2 <= num <= mode.max_responses:
                why = f"compares 2 to {mode.max_responses} responses to a prompt, got {num}"
                return (Score(error=f"a {mode.kind} judge {why}"),) * num
            case Pairwise() | Listwise() as mode:
                return await self._group(item, mode, ends)

    async def _alone(self, item: Chat, place: int, ends: float) -> Score:
        """Returns the score of a response that is judged alone: the mean of the votes."""
        rubric = self.config.rubric
        criteria = rubric.criteria if rubric else ()
        is_separate = rubric is not None and rubric.separate
        parts = [(criterion,) for criterion in criteria] if is_separate else [criteria]
        questions: list[Awaitable[Result]] = []
        for part in parts:
            for vote in range(self.config.sampling.votes):
                questions.append(self.judge.judge(item, (place,), part, vote, ends))
        results = await asyncio.gather(*questions)
        values: dict[str, list[float]] = {}
        for judged in _judged(results):
            for name, number in judged.verdict.values.items():
                values.setdefault(name, []).append(number)
        names = [criterion.name for criterion in criteria] or ["score"]
        if not self._are_enough(len(_judged(results)), len(results)) or len(values) < len(names):
            return _missing(results)
        means = {name: sum(values[name]) / len(values[name]) for name in names}
        if rubric is None:
            return _with_details(scored(means["score"]), results)
        weights = {criterion.name: criterion.weight for criterion in criteria}
        score = scored(weighted_mean(means, weights), objectives=means)
        return _with_details(score, results)

    async def _group(self, item: Chat, mode: Pairwise | Listwise, ends: float) -> tuple[Score, ...]:
        """Returns the scores of responses that are judged against each other."""
        games = await self._games_of(item, mode, ends)
        rule = win_share if mode.scores == "win_share" else bradley_terry
        scores: list[Score] = []
        for place, value in enumerate(rule(games.wins_nn, games.games_nn)):
            results = games.results_n[place]
            if self._are_enough(games.num_held_n[place], games.num_expected_n[place]):
                scores.append(_with_details(scored(float(value)), results))
            else:
                scores.append(_missing(results))
        return tuple(scores)

    async def _comparison(self, item: Item, ends: float) -> Score:
        """Returns the probability that the first of two responses is better, or why there is none."""
        mode = self.config.mode
        assert not isinstance(mode, Pointwise)
        if not isinstance(item, Chat) or not item.prompt:
            return UNREADABLE
        games = await self._games_of(item, mode, ends)
        results = games.results_n[0]
        if not self._are_enough(games.num_held_n[0], games.num_expected_n[0]):
            return _missing(results)
        value = win_share(games.wins_nn, games.games_nn)[0]
        score = _with_details(scored(float(value)), results, is_pair=True)
        return replace(score, details=replace(score.details, orders=self._by_order(results)))

    def _by_order(self, results: Sequence[Result]) -> tuple[float, float]:
        """Returns the probability that the first of two responses is better, by the order shown.

        Args:
            results: of each round the verdict on one order and on its reverse; one round at least
                has both.
        """
        shown_first: list[float] = []
        shown_second: list[float] = []
        for result, reverse in zip(results[::2], results[1::2], strict=True):
            if not (isinstance(result, Judged) and isinstance(reverse, Judged)):
                continue
            for judged in (result, reverse):
                p_shown_first = float(self._games(judged)[0, 1])
                if judged.verdict.shown[0] == 0:
                    shown_first.append(p_shown_first)
                else:
                    shown_second.append(1 - p_shown_first)
        return fmean(shown_first), fmean(shown_second)

    async def _games_of(self, item: Chat, mode: Pairwise | Listwise, ends: float) -> Games:
        """Returns what came of judging responses against each other.

        Those of a round are shown in an order, and in the reverse of it.
        """
        criteria = self.config.rubric.criteria if self.config.rubric else ()
        rounds = self._rounds(item, mode)
        questions: list[Awaitable[Result]] = []
        for places, vote in rounds:
            questions.append(self.judge.judge(item, places, criteria, vote, ends))
            questions.append(self.judge.judge(item, places[::-1], criteria, vote, ends))
        results = await asyncio.gather(*questions)

        games = Games.of(len(item.responses))
        for (places, _), first, reverse in zip(rounds, results[::2], results[1::2], strict=True):
            for place in places:
                games.results_n[place] += [first, reverse]
                games.num_expected_n[place] += 1
            if not isinstance(first, Judged) or not isinstance(reverse, Judged):
                continue
            for place in places:
                games.num_held_n[place] += 1
            square = np.ix_(places, places)
            games.wins_nn[square] += self._wins(first, reverse)
            games.games_nn[square] += 1 - np.eye(len(places))
        return games

    def _rounds(self, item: Chat, mode: Pairwise | Listwise) -> list[tuple[tuple[int, ...], int]]:
        """Returns the places of the responses that are shown together, with the number of the vote.

        A list is in an order that the seed, the vote and the texts decide.
        """
        num, votes = len(item.responses), range(self.config.sampling.votes)
        rounds: list[tuple[tuple[int, ...], int]] = []
        for vote in votes:
            if isinstance(mode, Pairwise):
                rounds += [(pair, vote) for pair in pairs_of(num, mode.pairs)]
                continue
            order = list(range(num))
            key = repr((self.config.sampling.seed, vote, item.prompt, item.responses))
            random.Random(key).shuffle(order)
            rounds.append((tuple(order), vote))
        return rounds

    def _wins(self, first: Judged, reverse: Judged) -> Array:
        """Returns who won against whom `[m, m]` in a round of m responses, in the first order.

        Each pair of it is counted, by the order in which it was shown.
        """
        first_mm = self._games(first)
        reverse_mm = self._games(reverse)[::-1, ::-1]
        for i, j in combinations(range(len(first_mm)), 2):
            self.pairs.add(float(first_mm[i, j]), float(reverse_mm[j, i]))
        return (first_mm + reverse_mm) / 2

    def _games(self, judged: Judged) -> Array:
        if isinstance(self.config.mode, Listwise):
            return games_of_ranking(judged.numbers)
        p_first = judged.numbers[0]
        return np.array([[0.0, p_first], [1 - p_first, 0.0]])

    def _are_enough(self, num: int, num_expected: int) -> bool:
        """Returns whether a response has as many verdicts as the settings want."""
        return num >= max(1, self.config.sampling.min_share * num_expected)


def _judged(results: Sequence[Result]) -> list[Judged]:
    return [result for result in results if isinstance(result, Judged)]


def _missing(results: Sequence[Result]) -> Score:
    """Returns the error of a response of which too many verdicts are missing."""
    errors = [result for result in results if isinstance(result, JudgeError)]
    why = errors[0].message
    if len(results) > 1:
        why += f" ({len(errors)} of {len(results)} verdicts are missing)"
    return Score(error=why, transient=any(error.transient for error in errors))


def _with_details(score: Score, results: Sequence[Result], *, is_pair: bool = False) -> Score:
    """Returns a score with its verdicts, and its share of what they cost now.

    Args:
        score: of a response.
        results: from which it comes.
        is_pair: whether it is of both responses that were shown, and has the whole cost.
    """
    if score.error:
        return score
    judged = _judged(results)
    usage: dict[str, float] = {
        "calls": 0.0,
        "cached": 0.0,
        "input_tokens": 0.0,
        "output_tokens": 0.0,
    }
    costs: list[float | None] = []
    for result in judged:
        share = 1.0 if is_pair else 1 / len(result.verdict.shown)
        if result.is_cached:
            usage["cached"] += share
            continue
        usage["calls"] += share
        usage["input_tokens"] += share * (result.answer.input_tokens or 0)
        usage["output_tokens"] += share * (result.answer.output_tokens or 0)
        costs.append(None if result.cost is None else share * result.cost)
    if None not in costs:
        usage["cost"] = sum(filter(None, costs))
    verdicts = tuple(result.verdict for result in judged)
    return replace(score, details=replace(score.details, verdicts=verdicts, usage=usage))

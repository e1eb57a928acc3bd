"""A judge as a scorer: questions by its mode, and scores from the verdicts.

A response whose verdicts are missing has an error.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, replace

from pydantic import JsonValue

from panoply.config.judge import Listwise, Pairwise, Pointwise
from panoply.config.yaml_lines import with_line
from panoply.scorers.deadline import seconds_left
from panoply.scorers.judge.client import JudgeClient, JudgeError
from panoply.scorers.judge.games import Games, PairTally, Result
from panoply.scorers.judge.limited import check_speaks
from panoply.scorers.judge.prompts import JudgePrompt
from panoply.scorers.judge.ranking import bradley_terry, pairs_of, weighted_mean, win_share
from panoply.scorers.judge.settings import read_judge
from panoply.scorers.judge.verdicts import Judge, Judged
from panoply.wire.breaker import CircuitState
from panoply.wire.request import Chat, Item, Score, scored

UNREADABLE = Score(
    error="a judge reads a prompt's messages and its responses, no rendered text or tokens"
)
"""Score of what a judge cannot read."""


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
        path, self.config = read_judge(file)
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

    def about(self) -> dict[str, JsonValue]:
        """Returns the limits of its server that are set, and its prices of a million tokens."""
        server = self.config.server
        limits: dict[str, JsonValue] = {
            "requests_at_once": server.concurrency,
            "seconds": server.timeout,
        }
        bounds = {
            "requests_a_second": server.requests_per_second,
            "tokens_a_second": server.tokens_per_second,
            "cost_in_all": server.max_cost,
        }
        limits |= {name: bound for name, bound in bounds.items() if bound}
        if not isinstance(self.config.mode, Pointwise):
            limits["responses_to_a_prompt"] = self.config.mode.max_responses
        prices = {
            "for_a_million_tokens_read": server.input_price,
            "for_a_million_tokens_written": server.output_price,
        }
        cost: dict[str, JsonValue] = {name: price for name, price in prices.items() if price}
        return {"limits": limits, "cost": cost}

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
        """Says whether it judges responses against each other, and which is better."""
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
        """Returns the probability that the first of two responses is better, or an error."""
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
        return replace(score, details=replace(score.details, orders=games.by_order()))

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

        games = Games(len(item.responses), mode, self.pairs)
        for (places, _), first, reverse in zip(rounds, results[::2], results[1::2], strict=True):
            games.add(places, first, reverse)
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

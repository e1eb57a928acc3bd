"""The scorer of a bandit: lets one arm score each prompt, and tells the bandit what it sees itself.

Shapes: N prompts, H size of a context, K arms, n responses to a prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

import numpy as np

from panoply.bandit.contexts import word_contexts
from panoply.bandit.update import uniforms
from panoply.config.served_bandit import ServedBanditConfig
from panoply.data.schema import digest
from panoply.laser.online import AskedPrompt
from panoply.laser.rewards import arm_agreement
from panoply.scorers.where import Counting, Scorer
from panoply.types import Array
from panoply.wire.feedback import Outcome, OutcomeAnswer
from panoply.wire.request import ArmChoice, Chat, Item, RenderedText, RequestError, Score, Tokens

CHECK_SECONDS = 300.0
"""Seconds in which the other arms answer for an agreement."""
MOST_CHECKS = 64
"""Agreements that are looked for at the same time; beyond them decisions are left without one."""
NO_TOKENS = "token ids are of one model's tokenizer, and any arm of a bandit may be chosen"


class Contexts(Protocol):
    """Features of prompts."""

    async def of(self, items: Sequence[Item]) -> Array:
        """Returns the contexts `[N, H]` of the items' prompts."""
        ...


class Decider(Protocol):
    """The bandit, wherever it runs."""

    async def decide(self, prompts: Sequence[AskedPrompt]) -> Sequence[ArmChoice]:
        """Returns the arm of each prompt, which is in the log.

        Raises:
            RequestError: nothing could be written.
        """
        ...

    async def learn(self, caller: str, outcomes: Sequence[Outcome]) -> Sequence[OutcomeAnswer]:
        """Returns what becomes of outcomes; those that are counted are in the log.

        Raises:
            RequestError: nothing could be written.
        """
        ...


class NoContexts:
    """Contexts without a number, for bandits that look at none."""

    async def of(self, items: Sequence[Item]) -> Array:
        """Returns the contexts `[N, 0]`."""
        return np.empty((len(items), 0))


class WordContexts:
    """Contexts of hashed words."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def of(self, items: Sequence[Item]) -> Array:
        """Returns the contexts `[N, 1 + size]`."""
        return word_contexts(list(map(prompt_text, items)), self.size)


class BanditScorer:
    """Several scorers, of which a bandit chooses one for each prompt."""

    def __init__(
        self,
        config: ServedBanditConfig,
        arms: Mapping[str, Scorer],
        contexts: Contexts,
        bandit: Decider,
    ) -> None:
        """Takes what has been opened.

        Args:
            config: settings of the file.
            arms: scorers by the names of the file.
            contexts: features of prompts.
            bandit: chooses and learns.
        """
        self.config, self.arms, self.contexts, self.bandit = config, arms, contexts, bandit
        self.checks: set[asyncio.Task[None]] = set()
        """Agreements that are being looked for."""
        names: tuple[str, ...] = ("decisions", "failed_decisions", "checks", "skipped_checks")
        self.nums: dict[str, float] = dict.fromkeys(names, 0.0)

    def counts(self) -> dict[str, float]:
        """Returns the sums of what the arms count, and of decisions and agreements."""
        sums = dict(self.nums)
        for arm in self.arms.values():
            if isinstance(arm, Counting):
                for name, number in arm.counts().items():
                    sums[name] = sums.get(name, 0.0) + number
        return sums

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items, each with the bandit's choice in its details."""
        return await self.score_for("", items)

    async def score_for(self, caller: str, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items, each with the bandit's choice in its details.

        Args:
            caller: name of the key that asks.
            items: the prompts and their responses; those of one prompt have one arm.

        Raises:
            RequestError: the decision could not be written, and nothing was scored.
        """
        rows: list[tuple[Score, ...]] = [
            (Score(error=NO_TOKENS),) * len(item.responses) for item in items
        ]
        places = [i for i, item in enumerate(items) if not isinstance(item, Tokens)]
        if not places:
            return tuple(rows)
        readable = [items[place] for place in places]
        contexts_NH = await self.contexts.of(readable)
        keys = list(map(prompt_key, readable))
        prompts = [
            AskedPrompt(key, caller, context)
            for key, context in zip(keys, contexts_NH, strict=True)
        ]
        choices = dict(zip(places, await self.bandit.decide(prompts), strict=True))
        self.nums["decisions"] += len({choice.decision for choice in choices.values()})

        by_arm: dict[str, list[int]] = {}
        for place, choice in choices.items():
            by_arm.setdefault(choice.arm, []).append(place)
        calls: list[Awaitable[tuple[tuple[Score, ...], ...]]] = []
        for arm, at in by_arm.items():
            calls.append(self.arms[arm].score([items[place] for place in at]))
        answers = await asyncio.gather(*calls)
        for at, scores in zip(by_arm.values(), answers, strict=True):
            for place, row in zip(at, scores, strict=True):
                rows[place] = row
        await self._look_at(caller, items, rows, choices)
        for place, choice in choices.items():
            rows[place] = tuple(_with_choice(score, choice) for score in rows[place])
        return tuple(rows)

    async def _look_at(
        self,
        caller: str,
        items: Sequence[Item],
        rows: Sequence[tuple[Score, ...]],
        choices: Mapping[int, ArmChoice],
    ) -> None:
        """Tells the bandit which arms failed, and begins to look for agreements."""
        by_choice: dict[ArmChoice, list[int]] = {}
        for place, choice in choices.items():
            by_choice.setdefault(choice, []).append(place)
        failures: list[Outcome] = []
        for choice, at in by_choice.items():
            scores: list[Score] = []
            for place in at:
                scores += rows[place]
            # What a text is to blame for says nothing of the arm.
            if scores and all(score.error and score.transient for score in scores):
                failures.append(Outcome(decision=choice.decision, failure="no score"))
            elif self._is_checked(choice) and len(scores) > 1:
                self._begin_check(caller, choice, [items[place] for place in at], scores)
        self.nums["failed_decisions"] += len(failures)
        if failures:
            try:
                await self.bandit.learn(caller, failures)
            except RequestError:
                return  # the scores are errors anyway, and the next decision says why

    def _is_checked(self, choice: ArmChoice) -> bool:
        """Says whether the other arms are asked too: a share of all decisions, by their ids."""
        share = self.config.agreement_share
        return share > 0 and uniforms(self.config.seed + 1, 0, [choice.decision])[0] < share

    def _begin_check(
        self, caller: str, choice: ArmChoice, items: Sequence[Item], scores: Sequence[Score]
    ) -> None:
        if len(self.checks) >= MOST_CHECKS:
            self.nums["skipped_checks"] += 1
            return
        self.nums["checks"] += 1
        task = asyncio.create_task(self._check(caller, choice, items, scores))
        self.checks.add(task)
        task.add_done_callback(self.checks.discard)

    async def _check(
        self, caller: str, choice: ArmChoice, items: Sequence[Item], scores: Sequence[Score]
    ) -> None:
        """Asks the other arms, and tells the bandit how many agree with the chosen one."""
        names = [name for name in self.arms if name != choice.arm]
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                answers = await asyncio.gather(*(self.arms[name].score(items) for name in names))
                table = [_numbers(scores)]
                for rows in answers:
                    table.append(_numbers(list(chain.from_iterable(rows))))
                value = arm_agreement(table, 0)
                if np.isfinite(value):
                    measures = {"agreement": value}
                    outcome = Outcome(decision=choice.decision, measures=measures)
                    await self.bandit.learn(caller, [outcome])
        except (TimeoutError, RequestError):
            self.nums["skipped_checks"] += 1


def prompt_text(item: Item) -> str:
    """Returns the text of an item's prompt; empty where it has none."""
    match item:
        case Chat():
            return "\n".join(turn["content"] for turn in item.prompt)
        case RenderedText():
            return item.prompt
        case _:
            return ""


def prompt_key(item: Item) -> str:
    """Returns a hash of an item's prompt; empty where it has none."""
    match item:
        case Chat(prompt=()) | RenderedText(prompt="") | Tokens():
            return ""
        case Chat():
            parts: list[str] = []
            for turn in item.prompt:
                parts += [turn["role"], turn["content"]]
            return digest(*parts)
        case RenderedText():
            return digest(item.prompt)


def _numbers(scores: Sequence[Score]) -> list[float]:
    """Returns scores as numbers, NaN where one is missing."""
    return [float("nan") if score.score is None else score.score for score in scores]


def _with_choice(score: Score, choice: ArmChoice) -> Score:
    return replace(score, details=replace(score.details, choice=choice))

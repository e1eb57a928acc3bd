"""Reads the verdict in a judge's answer. An answer without exactly one verdict has none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NoReturn

from panoply.config.judge import (
    LETTERS,
    Criterion,
    JsonAnswer,
    JudgeConfig,
    Listwise,
    Pairwise,
    PatternAnswer,
)
from panoply.scorers.judge.answer import JudgeAnswer, Token
from panoply.scorers.judge.ranking import expected_value

END_OF_THOUGHT = "</think>"
"""Mark behind the thoughts of reasoning models, where the server leaves them in the answer."""
OBJECTS = 100
"""Places at which an object of JSON is looked for in a text."""
UNFINISHED = {
    "length": "was cut at `sampling.max_tokens`",
    "content_filter": "was withheld by its server's filter",
    "refusal": "was refused by the judge",
}


class NoVerdict(ValueError):
    """An answer without a verdict; the message has no words of the answer."""


class VerdictReader:
    """Reads verdicts by a judge's settings.

    A verdict is numbers: the score, or those of the criteria in their order; the probability that
    the first of two responses is better; or the rank of each response, as they were shown.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.keys = _keys(config)
        """Keys of an answer in JSON, by the numbers of the verdict."""

    def names(self, criteria: Sequence[Criterion], num_shown: int) -> Sequence[str]:
        """Returns the names of a verdict's numbers.

        Args:
            criteria: criteria that were asked for.
            num_shown: responses that were shown together.
        """
        if isinstance(self.config.mode, Listwise):
            return LETTERS[:num_shown]
        if isinstance(self.config.mode, Pairwise) or not criteria:
            return self.keys
        return [criterion.name for criterion in criteria]

    def schema(self, num_shown: int) -> dict[str, Any]:
        """Returns the JSON schema of an answer.

        Args:
            num_shown: responses that are shown together.
        """
        answer, values = self.config.answer, self.config.values
        verdict: dict[str, Any] = {"type": "number"}
        if values:
            verdict = {"type": "string", "enum": list(values)}
        elif isinstance(self.config.mode, Listwise):
            letter = {"type": "string", "enum": list(LETTERS[:num_shown])}
            verdict = {"type": "array", "items": letter}
        has_reason = isinstance(answer, JsonAnswer) and answer.reason
        properties: dict[str, Any] = {"reason": {"type": "string"}} if has_reason else {}
        properties |= dict.fromkeys(self.keys, verdict)
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def instructions(self, num_shown: int) -> str:
        """Returns what the judge is told of the form of its answer."""
        low, high = self.config.scale
        allowed = f"a number from {low:g} to {high:g}"
        if self.config.values:
            allowed = f"one of {', '.join(map(json.dumps, self.config.values))}"
        elif isinstance(self.config.mode, Listwise):
            allowed = f"the letters {', '.join(LETTERS[:num_shown])}, the best response first"
        if isinstance(self.config.answer, PatternAnswer):
            return f"The verdict is {allowed}."
        keys = list(self.schema(num_shown)["properties"])
        parts = [f'"{key}": {"why, in short" if key == "reason" else allowed}' for key in keys]
        return f"Answer with one JSON object and nothing else: {{{'; '.join(parts)}}}"

    def read(self, answer: JudgeAnswer, num_shown: int) -> tuple[float, ...]:
        """Returns the numbers of a verdict.

        Args:
            answer: of the judge.
            num_shown: responses that were shown together.

        Raises:
            NoVerdict: there is none, or there are several, or it is outside the scale.
        """
        form = self.config.answer
        by_probability = isinstance(form, PatternAnswer) and form.probabilities
        if answer.finish in UNFINISHED and not (by_probability and answer.finish == "length"):
            raise NoVerdict(UNFINISHED[answer.finish])
        match form:
            case JsonAnswer():
                values = _object(answer.text, self.keys)
                if isinstance(self.config.mode, Listwise):
                    return _ranks(values[0], num_shown)
                return tuple(map(self._number, values))
            case PatternAnswer() if form.probabilities:
                return (self._expected(form, answer.tokens),)
            case PatternAnswer():
                verdict = _only_match(form.pattern, _after_thought(answer.text))[1]
                if isinstance(self.config.mode, Listwise):
                    return _ranks([part.strip() for part in re.split("[>,]", verdict)], num_shown)
                return (self._number(verdict),)

    def _number(self, verdict: Any) -> float:
        """Returns the value of a label, or a number on the scale."""
        values = self.config.values
        if values:
            label = verdict.strip() if isinstance(verdict, str) else verdict
            if not isinstance(label, str) or label not in values:
                raise NoVerdict("names none of its labels")
            return values[label]
        try:
            number = float(verdict) if isinstance(verdict, str | int | float) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or isinstance(verdict, bool):
            raise NoVerdict("has no number for a verdict")
        low, high = self.config.scale
        if not low <= number <= high:  # NaN too
            raise NoVerdict(f"has a verdict outside the scale of {low:g} to {high:g}")
        return number

    def _expected(self, form: PatternAnswer, tokens: Sequence[Token]) -> float:
        """Returns the mean over the labels' probabilities at the token of the verdict."""
        if not tokens:
            raise NoVerdict("came without `logprobs`: set `answer.probabilities: false`")
        match = _only_match(form.pattern, "".join(token.text for token in tokens))
        ends = accumulate(len(token.text) for token in tokens)
        place = next(i for i, end in enumerate(ends) if end > match.start(1))
        if tokens[place].text.strip() != match[1].strip():
            raise NoVerdict("has a verdict of several tokens, so that it has no probabilities")
        mass: dict[str, float] = {}
        for text, probability in tokens[place].probabilities.items():
            mass[text.strip()] = mass.get(text.strip(), 0.0) + probability
        expected = expected_value(mass, self.config.values, form.min_mass)
        if expected is None:
            raise NoVerdict(f"gives its labels a probability below {form.min_mass:g}")
        return expected


def _keys(config: JudgeConfig) -> tuple[str, ...]:
    if isinstance(config.mode, Pairwise):
        return ("better",)
    if isinstance(config.mode, Listwise):
        return ("ranking",)
    if config.rubric is None or config.rubric.separate:
        return ("score",)
    return tuple(criterion.name for criterion in config.rubric.criteria)


def _after_thought(text: str) -> str:
    return text.rpartition(END_OF_THOUGHT)[2].strip()


def _only_match(pattern: str, text: str) -> re.Match[str]:
    """Returns a match of a pattern, where all matches have one verdict."""
    matches = [match for match in re.finditer(pattern, text) if match[1] is not None]
    if not matches:
        raise NoVerdict("has no match of `answer.pattern`")
    if len({match[1].strip() for match in matches}) > 1:
        raise NoVerdict("has several matches of `answer.pattern`, with different verdicts")
    return matches[-1]


def _object(text: str, keys: Sequence[str]) -> list[Any]:
    """Returns the values at keys of the one JSON object of a text that has them all."""
    text = _after_thought(text)
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)
    objects: list[list[Any]] = []
    start = text.find("{")
    for _ in range(OBJECTS):
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if all(key in value for key in keys):
                objects.append([value[key] for key in keys])
        start = text.find("{", end)
    if not objects:
        raise NoVerdict(f"has no JSON object with {', '.join(map(repr, keys))}")
    if any(values != objects[0] for values in objects[1:]):
        raise NoVerdict("has several JSON objects, with different verdicts")
    return objects[0]


def _once(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _ranks(letters: Any, num_shown: int) -> tuple[float, ...]:
    """Returns the rank of each response that was shown, 0 for the best."""
    expected = list(LETTERS[:num_shown])
    if not isinstance(letters, list) or sorted(map(str, letters)) != expected:
        raise NoVerdict("ranks not each response once")
    return tuple(float(letters.index(letter)) for letter in expected)

r"""Reward functions that are asked for first: `function:panoply.serve.verifiers:NAME`.

The answer of a response is the text in its last `\boxed{}` or `<answer></answer>`, or behind
`####` in its last line; else the whole response. A sample without a label has no score.
"""

from __future__ import annotations

import re
from fractions import Fraction

import regex as regexes
from pydantic import JsonValue

_NUMBER = re.compile(
    r"""
    (?<![\w.]) (?: (?<![)\]]) -)?               # in "5-3" or "x2" there is no -3 and no 2
    (?: \d{1,3}(?:,\d{3})+(?!\d) | \d+ | (?=\.\d) )
    (?: /0*[1-9]\d* | (?:\.\d+)? (?:[eE][+-]?\d{1,3}(?!\d))? )
    """,
    re.VERBOSE | re.ASCII,
)
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", re.ASCII)
_PARENTHESIS = re.compile(r"\\.|[()]", re.DOTALL)
_LONGEST = 300
"""Maximum characters of a number; a longer one equals none."""
_SECONDS = 2.0
"""Time limit of a client's pattern, which may backtrack for ever."""
_LONGEST_PATTERN, _DEEPEST_PATTERN = 2000, 12
"""Maximum characters of a pattern, and parentheses within each other: no time limit holds while it
is compiled, which takes twice as long with every quantified group around another."""


def exact(response: str, label: JsonValue) -> float | None:
    """Returns 1 if the answer is the label, or one of a list of labels, and 0 if not.

    White space around them does not count.
    """
    if label is None:
        return None
    allowed = label if isinstance(label, list) else [label]
    return float(answer_of(response) in [str(value).strip() for value in allowed])


def last_number(response: str, label: JsonValue) -> float | None:
    r"""Returns 1 if the last number of the answer is that of the label, and 0 if not.

    Numbers are compared exactly: 1,000.50 is 1000.5, and 3/4 or \frac{3}{4} is 0.75.

    Raises:
        ValueError: the label holds no number.
    """
    if label is None:
        return None
    expected = _last(answer_of(str(label)))
    if expected is None:
        raise ValueError(f"the label holds no number: {str(label)[:50]!r}")
    return float(_last(answer_of(response)) == expected)


def regex(response: str, label: JsonValue) -> float | None:
    """Returns 1 if the label, a regular expression, is found in the response, and 0 if not.

    Raises:
        ValueError: the label is no text, or too long or deep a pattern.
        TimeoutError: the search was not over after 2 seconds.
        regex.error: the label is no regular expression.
    """
    if label is None:
        return None
    if not isinstance(label, str):
        raise ValueError(f"the label must be a regular expression, got {label!r:.50}")
    depth = _depth(label[: _LONGEST_PATTERN + 1])
    if len(label) > _LONGEST_PATTERN or depth > _DEEPEST_PATTERN:
        raise ValueError(
            f"the label must be a regular expression of at most {_LONGEST_PATTERN} characters and "
            f"{_DEEPEST_PATTERN} parentheses within each other, got {len(label)} and {depth}"
        )
    match = regexes.search(label, response, timeout=_SECONDS, concurrent=True)
    return float(match is not None)


def length(response: str) -> float:
    """Returns the number of characters: the control that a reward model has to beat."""
    return float(len(response))


def brevity(response: str) -> float:
    """Returns minus the number of characters of a response, and less than any for an empty one."""
    return -float(len(response)) if response.strip() else -1e6


def lines(response: str) -> float:
    """Returns the number of lines that are not empty."""
    return float(sum(bool(line.strip()) for line in response.splitlines()))


def asking(response: str) -> float:
    """Returns 1 for a response that ends with a question mark, and 0 for another."""
    return float(response.rstrip().endswith("?"))


def answer_of(text: str) -> str:
    """Returns the answer of a response, without white space around it."""
    boxed = text.rpartition("\\boxed{")
    if boxed[1]:
        depth = 1
        for end, char in enumerate(boxed[2]):
            depth += (char == "{") - (char == "}")
            if depth == 0:
                return boxed[2][:end].strip()
    start, end = text.rfind("<answer>"), text.rfind("</answer>")
    if 0 <= start < end:
        return text[start + len("<answer>") : end].strip()
    last = text.rstrip().rpartition("\n")[2]
    return (last.rpartition("####")[2] if "####" in last else text).strip()


def _depth(pattern: str) -> int:
    """Returns how many parentheses stand within each other, those in a set of characters too."""
    depth = deepest = 0
    for mark in _PARENTHESIS.findall(pattern):
        depth += {"(": 1, ")": -1}.get(mark, 0)
        deepest = max(deepest, depth)
    return deepest


def _last(text: str) -> Fraction | None:
    plain = _FRACTION.sub(r"\1/\2", text.replace("\N{MINUS SIGN}", "-"))
    numbers = [match[0] for match in _NUMBER.finditer(plain)]
    if not numbers or len(numbers[-1]) > _LONGEST:
        return None
    return Fraction(numbers[-1].replace(",", ""))

"""Prompts whose answers can be checked, in domains that want different things of a response.

A small instruct model meets each of them in some of its samples and misses in others, so there is
something to choose among samples. What one domain asks for another forbids (few words, many words,
a list, a question), so no one taste suits all of them: what suits a prompt has to be found out.

Of 8 samples of SmolLM2-135M-Instruct (temperature 0.8, at most 96 tokens, 10 prompts of each
domain) there obeyed: brief .49, long .62, list .30, words .50, plain .40, question .40; of 60
prompts, 54 had samples that did and samples that did not.

A prompt's label says what is asked; `obeys` checks it, and can be served as a function arm by the
place `panoply.synthetic.verifiable:obeys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from panoply.data.schema import prompt_id

Label: TypeAlias = dict[str, Any]


def _items(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(";"))


SUBJECTS = _items("""
    the sea; bread; a bicycle; winter; chess; a lighthouse; bees; rain; the moon; a library; tea; a
    volcano; music; a garden; the desert; a train; honey; a mountain; the wind; a river; snow; a
    castle; the sun; a market; coffee; a forest; an island; a bridge; a whale; clouds; a clock; the
    harvest; a piano; soccer; a spider; glass; a kitchen; thunder; a balloon; the alphabet; a
    farmer; cheese; a museum; an elephant; paper; a sailor; the stars; chocolate; a tent; a mirror
""")
WORDS = _items("""
    silver; quiet; ancient; bright; gentle; golden; hidden; distant; simple; warm; green; little;
    strange; strong; early; famous; empty; round; sweet; dark
""")
THINGS = _items("""
    fruits; animals; colors; cities; tools; sports; vegetables; countries; birds; flowers; drinks;
    jobs; insects; languages; musical instruments
""")
DOMAINS: dict[str, tuple[str, ...]] = {
    "brief": (
        "What is {subject}? Answer in at most {few} words.",
        "Describe {subject} in no more than {few} words.",
    ),
    "long": (
        "Describe {subject} in at least {many} words.",
        "Write at least {many} words about {subject}.",
    ),
    "list": (
        "List exactly {count} {things}, one on each line.",
        "Give me a list of exactly {count} {things}, one on each line.",
    ),
    "words": (
        "Write one sentence about {subject} with the words '{word}' and '{other}' in it.",
        "Use the words '{word}' and '{other}' in a sentence about {subject}.",
    ),
    "plain": (
        "Write a sentence about {subject} without any comma.",
        "Say something about {subject}. Do not use commas.",
    ),
    "question": (
        "Ask me a question about {subject}.",
        "Write only one question about {subject}, nothing else.",
    ),
}
"""The domains, and how each is asked."""
LABELS: dict[str, tuple[str, ...]] = {
    "brief": ("few",),
    "long": ("many",),
    "list": ("count",),
    "words": ("word", "other"),
    "plain": (),
    "question": (),
}
"""What a label says besides its domain."""


@dataclass(frozen=True, slots=True)
class Verifiable:
    """A prompt that can be checked."""

    domain: str
    text: str
    label: Label
    """For `obeys`."""

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The prompt in turns."""
        return [{"role": "user", "content": self.text}]

    @property
    def prompt_id(self) -> str:
        """The id of the prompt."""
        return prompt_id(self.prompt)


def verifiable_prompts(num: int, seed: int) -> list[Verifiable]:
    """Returns different prompts, the domains in turn.

    Args:
        num: how many.
        seed: of the draws; the first prompts do not depend on `num`.

    Raises:
        ValueError: more are asked for than there are.
    """
    rng, found = np.random.default_rng(seed), dict[str, Verifiable]()
    names = tuple(DOMAINS)
    for _ in range(20 * num):
        if len(found) == num:
            break
        drawn = draw_prompt(names[len(found) % len(names)], rng)
        found.setdefault(drawn.text, drawn)
    if len(found) < num:
        raise ValueError(
            f"`num` is {num!r}, but the domain {names[len(found) % len(names)]!r} has hardly more "
            f"than {len(found) // len(names)} prompts: take fewer"
        )
    return list(found.values())


def draw_prompt(domain: str, rng: np.random.Generator) -> Verifiable:
    """Returns a prompt of a domain."""
    word, other = (str(one) for one in rng.choice(WORDS, 2, replace=False))
    slots: dict[str, Any] = {
        "subject": str(rng.choice(SUBJECTS)),
        "things": str(rng.choice(THINGS)),
        "few": int(rng.integers(10, 18)),
        "many": 10 * int(rng.integers(5, 8)),
        "count": int(rng.integers(3, 7)),
        "word": word,
        "other": other,
    }
    text = str(rng.choice(DOMAINS[domain])).format(**slots)
    return Verifiable(domain, text, {"domain": domain} | {n: slots[n] for n in LABELS[domain]})


def words_of(text: str) -> list[str]:
    """Returns the words of a text, in lower case."""
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text.casefold())


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text that say something."""
    return [line for line in text.splitlines() if words_of(line)]


RULES: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "brief": lambda text, label: 3 <= len(words_of(text)) <= label["few"],
    "long": lambda text, label: len(words_of(text)) >= label["many"],
    "list": lambda text, label: len(lines_of(text)) == label["count"],
    "words": lambda text, label: {label["word"], label["other"]} <= set(words_of(text)),
    "plain": lambda text, _: len(words_of(text)) >= 3 and "," not in text,
    "question": lambda text, _: text.count("?") == 1 and text.rstrip("\"'* \n").endswith("?"),
}
"""Whether a response does what its domain asks for."""


def obeys(response: str, label: Mapping[str, Any] | None) -> float | None:
    """Returns 1 if a response does what its prompt asks, 0 if not, and None without a label.

    Raises:
        ValueError: a label of no domain.
    """
    if label is None:
        return None
    rule = RULES.get(str(label.get("domain")))
    if rule is None:
        raise ValueError(f"`label` must have a domain of {sorted(RULES)}, got {dict(label)!r}")
    return float(rule(response, label))

"""Prompts whose answers can be checked, in domains that require different responses.

A small instruct model obeys each domain in some of its samples and not in others, so there is
something to choose among samples. One domain requires what another forbids (few words, many words,
a list, a question), so no fixed taste suits all of them: it has to be learned per prompt.

Of 8 samples of SmolLM2-135M-Instruct (temperature 0.8, at most 96 tokens, 10 prompts of each
domain), these shares obeyed: brief .49, long .62, list .30, words .50, plain .40, question .40; of
60 prompts, 54 had both samples that obeyed and samples that did not.

A prompt's label holds its requirement; `obeys` checks it, and can be served as a reward function by
the name `function:panoply.synthetic.verifiable:obeys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from panoply.data.schema import prompt_id
from panoply.synthetic.phrases import items

Label: TypeAlias = dict[str, Any]


SUBJECTS = items("""
    the sea; bread; a bicycle; winter; chess; a lighthouse; bees; rain; the moon; a library; tea; a
    volcano; music; a garden; the desert; a train; honey; a mountain; the wind; a river; snow; a
    castle; the sun; a market; coffee; a forest; an island; a bridge; a whale; clouds; a clock; the
    harvest; a piano; soccer; a spider; glass; a kitchen; thunder; a balloon; the alphabet; a
    farmer; cheese; a museum; an elephant; paper; a sailor; the stars; chocolate; a tent; a mirror
""")
WORDS = items("""
    silver; quiet; ancient; bright; gentle; golden; hidden; distant; simple; warm; green; little;
    strange; strong; early; famous; empty; round; sweet; dark
""")
THINGS = items("""
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
"""Templates of prompts by domain."""
LABELS: dict[str, tuple[str, ...]] = {
    "brief": ("few",),
    "long": ("many",),
    "list": ("count",),
    "words": ("word", "other"),
    "plain": (),
    "question": (),
}
"""Slots of a prompt that its label holds besides the domain."""


@dataclass(frozen=True, slots=True)
class Verifiable:
    """A prompt that can be checked."""

    domain: str
    text: str
    label: Label
    """Requirement, for `obeys`."""

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The prompt in turns."""
        return [{"role": "user", "content": self.text}]

    @property
    def prompt_id(self) -> str:
        """The id of the prompt."""
        return prompt_id(self.prompt)


def verifiable_prompts(num: int, seed: int) -> list[Verifiable]:
    """Returns distinct prompts, the domains in turn.

    Args:
        num: number of prompts.
        seed: seed of the draws; the first prompts do not depend on `num`.

    Raises:
        ValueError: there are fewer prompts than `num`.
    """
    rng = np.random.default_rng(seed)
    prompts: dict[str, Verifiable] = {}
    names = tuple(DOMAINS)
    for _ in range(20 * num):
        if len(prompts) == num:
            break
        drawn = draw_prompt(names[len(prompts) % len(names)], rng)
        prompts.setdefault(drawn.text, drawn)
    if len(prompts) < num:
        raise ValueError(
            f"`num` is {num!r}, but the domain {names[len(prompts) % len(names)]!r} has hardly "
            f"more than {len(prompts) // len(names)} prompts: take fewer"
        )
    return list(prompts.values())


def draw_prompt(domain: str, rng: np.random.Generator) -> Verifiable:
    """Returns a random prompt of a domain."""
    word, other = rng.choice(WORDS, 2, replace=False).tolist()
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
    """Returns the lines of a text that hold a word."""
    return [line for line in text.splitlines() if words_of(line)]


RULES: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "brief": lambda text, label: 3 <= len(words_of(text)) <= label["few"],
    "long": lambda text, label: len(words_of(text)) >= label["many"],
    "list": lambda text, label: len(lines_of(text)) == label["count"],
    "words": lambda text, label: {label["word"], label["other"]} <= set(words_of(text)),
    "plain": lambda text, _: len(words_of(text)) >= 3 and "," not in text,
    "question": lambda text, _: text.count("?") == 1 and text.rstrip("\"'* \n").endswith("?"),
}
"""Checks of a response against its label, by domain."""


def obeys(response: str, label: Mapping[str, Any] | None) -> float | None:
    """Returns 1 if a response meets its prompt's requirement, 0 if not, and None without a label.

    Raises:
        ValueError: a label of no domain.
    """
    if label is None:
        return None
    rule = RULES.get(str(label.get("domain")))
    if rule is None:
        raise ValueError(f"`label` must have a domain of {sorted(RULES)}, got {dict(label)!r}")
    return float(rule(response, label))

"""Contamination: prompts of a set of items that stand, whole or nearly, in training files.

Three signs, of which each is reported by item:

    exact       the same words in the same order, without case and punctuation
    13-grams    share of the item's 13-grams of words that stand anywhere in the training texts
    near        largest Jaccard similarity |A & B| / |A | B| of the sets of 5-grams of words

The similarity is what MinHash estimates. Items are few enough to be indexed by their n-grams, so
that it is computed exactly, and a training text costs no more than a look-up of each of its words;
training files are streamed, and memory grows with the items alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from panoply.data.data_file import Unreadable
from panoply.data.layouts import pair_layout, prompt_layout, rating_layout
from panoply.data.quarantine import BadRow
from panoply.data.read import Input, Opened, open_inputs
from panoply.data.rows import FileLayout, RawPair, RawPrompt, RawRating
from panoply.data.schema import Prompt
from panoply.data.validate import clean_prompt

LONG, SHORT = 13, 5
"""Words of the n-grams by which passages, and by which near-duplicates are recognized."""
NEAR = 0.8
"""Jaccard similarity from which on two prompts are the same but for a few words."""
MOST_GRAMS = 0.5
"""Share of an item's 13-grams from which on it counts as seen; a phrase that many share is less."""
WORD = re.compile(r"\w+")
Grams: TypeAlias = frozenset[tuple[str, ...]]
Layout: TypeAlias = FileLayout[RawPair] | FileLayout[RawRating] | FileLayout[RawPrompt]

OVERLAPS = pa.schema(
    [
        ("item_id", pa.string()),
        ("exact", pa.bool_()),
        ("gram_share", pa.float64()),
        ("near", pa.float64()),
        ("file", pa.string()),
        ("seen", pa.bool_()),
    ]
)
"""An item and what of it stands in training files; `file` has the text that is most like it."""


@dataclass(slots=True)
class Overlap:
    """Tells how much of an item stands in training texts."""

    exact: bool = False
    gram_share: float = 0.0
    """Share of the item's 13-grams; 0 of a shorter item, which has none."""
    near: float = 0.0
    """Similarity of the most similar training text."""
    file: str = ""
    """Training file of that text; empty where none has a 5-gram in common."""

    @property
    def seen(self) -> bool:
        """True where the item is taken to be known from training."""
        return self.exact or self.near >= NEAR or self.gram_share >= MOST_GRAMS


def find_overlaps(
    items: Mapping[str, str], training: Iterable[tuple[str, str]]
) -> dict[str, Overlap]:
    """Returns what of each item stands in training texts.

    Args:
        items: prompt of each item by its id.
        training: file and text of each training prompt.
    """
    words_of = {item: words(text) for item, text in items.items()}
    overlaps = {item: Overlap() for item in items}
    long = {item: grams(its_words, LONG) for item, its_words in words_of.items()}
    short = {item: short_grams(its_words) for item, its_words in words_of.items()}
    with_long, with_short = _by_gram(long), _by_gram(short)
    by_words: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item, its_words in words_of.items():
        by_words[its_words].append(item)
    common: dict[str, set[tuple[str, ...]]] = {item: set() for item in items}
    for file, text in training:
        text_words = words(text)
        for item in by_words.get(text_words, ()):
            overlaps[item].exact = True
        for gram in grams(text_words, LONG) & with_long.keys():
            for item in with_long[gram]:
                common[item].add(gram)
        text_grams = short_grams(text_words)
        shared: Counter[str] = Counter()
        for gram in text_grams & with_short.keys():
            shared.update(with_short[gram])
        for item, num in shared.items():
            near = num / (len(text_grams) + len(short[item]) - num)
            if near > overlaps[item].near:
                overlaps[item].near, overlaps[item].file = near, file
    for item, overlap in overlaps.items():
        overlap.gram_share = len(common[item]) / len(long[item]) if long[item] else 0.0
    return overlaps


def words(text: str) -> tuple[str, ...]:
    """Returns the words of a text without case and punctuation."""
    return tuple(WORD.findall(text.casefold()))


def grams(text_words: Sequence[str], size: int) -> Grams:
    """Returns the n-grams of some words; none where there are fewer words than `size`."""
    last = len(text_words) - size + 1
    return frozenset(tuple(text_words[start : start + size]) for start in range(last))


def short_grams(text_words: Sequence[str]) -> Grams:
    """Returns the 5-grams of some words, and of fewer words all of them as one."""
    if len(text_words) >= SHORT:
        return grams(text_words, SHORT)
    return frozenset([tuple(text_words)]) if text_words else frozenset()


def _by_gram(grams_of: Mapping[str, Grams]) -> dict[tuple[str, ...], list[str]]:
    by_gram: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item, its_grams in grams_of.items():
        for gram in its_grams:
            by_gram[gram].append(item)
    return by_gram


def overlap_table(overlaps: Mapping[str, Overlap]) -> pa.Table:
    """Returns a row for each item, in the order of the items."""
    rows = [
        {
            "item_id": item,
            "exact": overlap.exact,
            "gram_share": overlap.gram_share,
            "near": overlap.near,
            "file": overlap.file,
            "seen": overlap.seen,
        }
        for item, overlap in overlaps.items()
    ]
    return pa.Table.from_pylist(rows, OVERLAPS)


# Training files


def prompt_text(prompt: Prompt) -> str:
    """Returns the texts of all turns of a prompt, one below the other."""
    return "\n".join(message["content"] for message in prompt)


def open_training(files: Sequence[str]) -> list[tuple[Opened, Layout]]:
    """Returns files of pairs, ratings or prompts with their layouts; no row is read.

    Raises:
        FileNotFoundError, ValueError: see `open_inputs`; or a file is in no known layout.
    """
    if not files:
        return []
    return [(opened, _layout(opened)) for opened in open_inputs([Input(file) for file in files])]


def training_prompts(training: Iterable[tuple[Opened, Layout]]) -> Iterator[tuple[str, str]]:
    """Yields file and text of each prompt in training files.

    Rows without a prompt that can be read are passed over.
    """
    for opened, layout in training:
        for row in opened.rows(None):
            if isinstance(row, Unreadable):
                continue
            try:
                for raw in layout.adapt(row):
                    yield opened.label, prompt_text(clean_prompt(raw.prompt))
            except BadRow:
                continue


def _layout(opened: Opened) -> Layout:
    """Returns the first layout that a file is in.

    Raises:
        ValueError: it is in none.
    """
    for recognize in (pair_layout, rating_layout, prompt_layout):
        try:
            return recognize(opened.columns)
        except ValueError:
            continue
    raise ValueError(
        f"{opened.label} has the columns {sorted(opened.columns)}, of no known layout of pairs, "
        "ratings or prompts (see docs/data.md)"
    )

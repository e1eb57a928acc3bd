"""Prompts of items that stand in training files: the three signs, and the files that are read."""

import json
from itertools import chain

import numpy as np
import pytest

from panoply.data.contamination import (
    MOST_GRAMS,
    NEAR,
    OVERLAPS,
    find_overlaps,
    open_training,
    overlap_table,
    prompt_text,
    training_prompts,
    words,
)

VOCABULARY = [f"w{i}" for i in range(400)]
RNG = np.random.default_rng(0)


def sentence(num, rng=RNG):
    return " ".join(rng.choice(VOCABULARY, size=num))


ITEM = sentence(40)


def overlap(*training, item=ITEM):
    """The overlap of one item with some training texts."""
    return find_overlaps({"i": item}, [(f"file{n}", text) for n, text in enumerate(training)])["i"]


def test_a_prompt_that_stands_nowhere_has_no_overlap():
    nothing = overlap(sentence(60), "")
    assert (nothing.exact, nothing.gram_share, nothing.near, nothing.file) == (False, 0, 0, "")
    assert not nothing.seen


def test_the_same_words_are_exact_whatever_case_space_and_punctuation():
    loud = "\n ".join(ITEM.upper().split()) + "!"
    assert overlap(sentence(30), loud).exact
    assert overlap(sentence(30), loud).file == "file1"
    assert not overlap(f"{ITEM} more").exact
    assert overlap("Why?", item="why").seen


def test_a_prompt_inside_a_longer_text_is_seen_by_its_13_grams():
    inside = overlap(f"{sentence(300)} {ITEM} {sentence(300)}")
    assert inside.gram_share == 1.0
    assert inside.near < NEAR
    assert inside.seen
    half = " ".join(ITEM.split()[:26])
    part = overlap(f"{sentence(100)} {half}")
    assert part.gram_share == pytest.approx((26 - 12) / (40 - 12))
    twice = overlap(" ".join(ITEM.split()[:26]), " ".join(ITEM.split()[14:]))
    assert twice.gram_share == pytest.approx(1.0)  # over all texts; none of its grams is lost
    assert overlap(" ".join(ITEM.split()[:20])).gram_share < MOST_GRAMS
    assert overlap(" ".join(ITEM.split()[:12])).gram_share == 0.0


def plain_jaccard(a, b):
    sets = []
    for text in (a, b):
        tokens = text.lower().split()
        sets.append({" ".join(tokens[i : i + 5]) for i in range(len(tokens) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_nearness_is_the_jaccard_similarity_of_plain_python_with_the_most_similar_text():
    tokens = ITEM.split()
    changed = [" ".join([*tokens[:i], "other", *tokens[i + 1 :]]) for i in (39, 20)]
    result = overlap(*changed, sentence(50))
    expected = [plain_jaccard(ITEM, text) for text in changed]
    assert result.near == pytest.approx(max(expected))
    assert result.file == f"file{int(np.argmax(expected))}"
    assert result.seen == (max(expected) >= NEAR)
    assert result.seen


@pytest.mark.parametrize("num_replaced", [0, 1, 3, 10, 40])
def test_the_more_words_differ_the_less_a_text_is_near(num_replaced):
    tokens = ITEM.split()
    for place in range(num_replaced):
        tokens[place] = f"x{place}"
    assert overlap(" ".join(tokens)).near == pytest.approx(plain_jaccard(ITEM, " ".join(tokens)))


def test_many_items_have_what_each_has_alone():
    items = {str(i): sentence(30) for i in range(20)}
    training = [("t", f"{sentence(10)} {text}") for text in list(items.values())[:7]]
    training += [("u", text) for text in list(items.values())[5:9]]
    together = find_overlaps(items, training)
    for name, text in items.items():
        assert together[name] == find_overlaps({name: text}, training)[name]
    assert [together[name].exact for name in items] == [5 <= i < 9 for i in range(20)]
    table = overlap_table(together)
    assert table.schema == OVERLAPS
    assert table["item_id"].to_pylist() == list(items)
    assert sum(table["seen"].to_pylist()) == 9


def test_prompts_are_read_from_files_of_every_kind(tmp_path):
    rows = {
        "pairs": {"prompt": "Why is it?", "chosen": "So.", "rejected": "No."},
        "ratings": {"prompt": "Why is it?", "response": "So.", "quality": 3},
        "prompts": {"question": "Why is it?", "answer": "4"},
        "dialogues": {
            "chosen": "\n\nHuman: Why is it?\n\nAssistant: So.",
            "rejected": "\n\nHuman: Why is it?\n\nAssistant: No.",
        },
    }
    files = []
    for name, row in rows.items():
        files.append(str(tmp_path / f"{name}.jsonl"))
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps(row), "{torn"]))
    texts = list(training_prompts(open_training(files)))
    assert [text for _, text in texts] == ["Why is it?"] * 4
    assert [file for file, _ in texts] == files
    (tmp_path / "other.jsonl").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"\['a'\], of no known layout"):
        open_training([str(tmp_path / "other.jsonl")])


def test_all_turns_of_a_prompt_count():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert words(prompt_text(turns)) == tuple(chain(["be", "brief"], ["why"]))

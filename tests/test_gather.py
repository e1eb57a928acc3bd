"""Conversations that came apart become trees again."""

import random

import pytest

from panoply.model.gather import Tokenized, merge_prefixes
from panoply.model.tree import Branch, TokenTree


def conversation(prompt, response, gate=None):
    tokens = (*prompt, *response)
    gate = len(prompt) - 1 if gate is None else gate
    return Tokenized(tokens, gate, len(prompt), len(tokens))


def as_sets(gathered):
    return sorted(
        (tree.shared, tuple(sorted(branch.tokens for branch in tree.branches)))
        for tree in gathered.trees
    )


def test_samples_of_shuffled_prompts_meet_in_one_tree_each():
    draw = random.Random(0)
    prompts = [tuple(draw.choices(range(50), k=size)) for size in (3, 9, 30, 9)]
    samples = [
        conversation(prompt, draw.choices(range(50), k=draw.randint(1, 12)))
        for prompt in prompts
        for _ in range(6)
    ]
    draw.shuffle(samples)
    gathered = merge_prefixes(samples)
    assert sorted(tree.shared for tree in gathered.trees) == sorted(prompts)
    rows = [
        (tree.shared + branch.tokens, tree.gate, len(tree.shared) + branch.start)
        for tree in gathered.trees
        for branch in tree.branches
    ]
    assert sorted(gathered.places) == list(range(len(samples)))
    for sample, place in zip(samples, gathered.places, strict=True):
        assert rows[place] == (sample.tokens, sample.gate, sample.start)


def test_prompts_that_share_a_system_turn_stay_apart_where_their_gates_do():
    system = tuple(range(20))
    a, b = (*system, 30, 31), (*system, 40, 41)
    gathered = merge_prefixes([conversation(p, r) for p in (a, b) for r in ((1, 2), (3, 4))])
    assert as_sets(gathered) == [(a, ((1, 2), (3, 4))), (b, ((1, 2), (3, 4)))]


def test_texts_whose_prompt_is_unknown_meet_by_what_they_share():
    system, a, b = tuple(range(20)), (50,) * 30, (60,) * 30
    texts = [(*system, *p, r, r + 1, 9) for p in (a, b) for r in (1, 3, 5)]
    unknown = [Tokenized(text, 0, len(text) - 1, len(text)) for text in texts]
    assert [tree.shared for tree in merge_prefixes(unknown).trees] == [system + a, system + b]


def test_a_response_that_begins_as_its_prompt_ends_shares_no_token_of_the_response():
    short, long = conversation((1, 2), (3, 3, 3)), conversation((1, 2, 3), (3, 3), gate=1)
    gathered = merge_prefixes([short, long])
    assert [tree.shared for tree in gathered.trees] == [(1, 2)]
    assert {(b.tokens, b.start) for b in gathered.trees[0].branches} == {
        ((3, 3, 3), 0),
        ((3, 3, 3), 1),
    }


def test_the_conversations_of_a_tree_gather_to_that_tree():
    tree = TokenTree((1, 2, 3), (Branch((4, 5, 9), 0, 2), Branch((6, 9), 0, 1)), gate=2)
    gathered = merge_prefixes(
        [Tokenized((1, 2, 3, 4, 5, 9), 2, 3, 5), Tokenized((1, 2, 3, 6, 9), 2, 3, 4)]
    )
    assert gathered.trees == [tree]
    assert gathered.places == [0, 1]
    assert gathered.num_tokens == tree.num_tokens


def test_nothing_gathers_to_nothing():
    assert merge_prefixes([]).trees == []


def test_a_conversation_without_a_response_token_is_refused():
    with pytest.raises(ValueError, match="need 0 <= gate < start < stop <= length"):
        Tokenized((1, 2), 0, 2, 2)

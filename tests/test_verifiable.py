"""Prompts that can be checked: what is asked is what is checked, and it tells samples apart."""

import pytest

from panoply.scorers.function import load_function
from panoply.synthetic.verifiable import DOMAINS, RULES, obeys, verifiable_prompts

GOOD = {
    "brief": "A wide road of water that runs to the sea.",
    "long": "It flows. " * 40,
    "list": "1. apple\n2. pear\n\n3. fig\n",
    "words": "The quiet river carried a Golden leaf.",
    "plain": "Rain falls on the old roof.",
    "question": "Why is the sea salty?\n",
}
LABELS = {"few": 12, "many": 70, "count": 3, "word": "golden", "other": "quiet"}


def test_prompts_are_different_and_the_domains_come_in_turn():
    found = verifiable_prompts(60, 0)
    assert len({one.prompt_id for one in found}) == 60
    assert [one.domain for one in found] == [*DOMAINS] * 10
    assert verifiable_prompts(20, 0) == found[:20]
    assert verifiable_prompts(60, 1) != found


def test_a_prompt_says_what_its_label_checks():
    for one in verifiable_prompts(120, 3):
        told = [value for name, value in one.label.items() if name != "domain"]
        assert all(str(value) in one.text for value in told)
        assert "{" not in one.text
        assert obeys("", one.label) == 0


@pytest.mark.parametrize("domain", sorted(RULES))
def test_a_response_obeys_its_own_domain(domain):
    assert set(RULES) == set(DOMAINS) == set(GOOD)
    assert obeys(GOOD[domain], LABELS | {"domain": domain}) == 1


@pytest.mark.parametrize(
    ("domain", "response"),
    [
        ("brief", "Oh."),
        ("brief", "It is a very long and wide body of water that runs to the sea."),
        ("long", "It flows. " * 34),
        ("list", "apple, pear, fig"),
        ("list", "Here they are:\n1. apple\n2. pear\n3. fig"),
        ("words", "The quietly running river is golden."),
        ("plain", "Rain, again, falls."),
        ("question", "Why is it salty? Do you know?"),
        ("question", "Why is it salty? I wonder."),
    ],
)
def test_a_response_that_misses_what_was_asked_does_not(domain, response):
    assert obeys(response, LABELS | {"domain": domain}) == 0


def test_what_suits_one_domain_does_not_suit_another():
    for mine in ("brief", "long", "list", "question"):
        others = [obeys(GOOD[mine], LABELS | {"domain": domain}) for domain in DOMAINS]
        assert sum(others) <= 3


def test_without_a_label_there_is_no_verdict_and_a_strange_one_is_refused():
    assert obeys("yes", None) is None
    with pytest.raises(
        ValueError, match=r"must have a domain of \['brief', .*got \{'domain': 'x'\}"
    ):
        obeys("yes", {"domain": "x"})


def test_it_can_be_served_as_a_function_arm():
    assert load_function("panoply.synthetic.verifiable:obeys") is not None


def test_more_prompts_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"hardly more than .* prompts: take fewer"):
        verifiable_prompts(2000, 0)

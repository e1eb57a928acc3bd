"""The functions that come along: answers and numbers as people and models write them."""

import time

import pytest

from panoply.serve.verifiers import answer_of, exact, last_number, length, regex


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris \n", "Paris"),
        (r"So \boxed{1} and then \boxed{\frac{1}{2}} follows.", r"\frac{1}{2}"),
        (r"\boxed{never closed", r"\boxed{never closed"),
        (r"{ \boxed{a{b}c} }", "a{b}c"),
        ("<think>no</think><answer> yes </answer>", "yes"),
        ("<answer>a</answer> <answer>b</answer>", "b"),
        ("</answer><answer>", "</answer><answer>"),
        ("6 * 7 = 42\n#### 42\n", "42"),
        ("#### Answer\nIt is Paris", "#### Answer\nIt is Paris"),
        ("", ""),
    ],
)
def test_the_answer_is_where_models_mark_it(text, answer):
    assert answer_of(text) == answer


def test_an_exact_answer_is_the_label_or_one_of_them():
    assert exact("Paris\n", "Paris") == 1
    assert exact("paris", "Paris") == 0
    assert exact(r"So \boxed{42}.", 42) == 1
    assert exact("b", ["a", "b"]) == 1
    assert exact("", "") == 1
    assert exact("c", []) == 0
    assert exact("c", None) is None


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        ("It is 41, no, 42.", "42", 1),
        ("It is 42, no, 41.", "42", 0),
        ("42", 42, 1),
        ("$1,000.50 in all", "1000.5", 1),
        ("1,2", 2, 1),
        ("-3", -3, 1),
        ("\N{MINUS SIGN}3 degrees", "-3", 1),
        ("8-3", 3, 1),
        ("f(x)-3", 3, 1),
        (r"\boxed{-\frac{3}{4}} in 5 steps", "-0.75", 1),
        ("3/4", 0.75, 1),
        ("3/0", 0, 1),
        (".5 of it", "1/2", 1),
        ("1.5e3", 1500, 1),
        ("x2 = 7", 7, 1),
        ("so x2", 2, 0),
        ("no number", 2, 0),
        ("", 2, 0),
        ("steps\n#### 7", "reason\n#### 7", 1),
        ("0.1", 0.1, 1),
        ("1e999999999", "3", 0),
        ("9" * 100_000, "3", 0),
        ("1", None, None),
    ],
)
def test_the_last_number_is_compared_as_a_number(response, label, expected):
    assert last_number(response, label) == expected


def test_a_label_without_a_number_is_an_error_and_not_a_wrong_answer():
    with pytest.raises(ValueError, match="label holds no number: 'Paris'"):
        last_number("42", "Paris")


def test_a_pattern_is_searched_and_stopped_when_it_backtracks():
    assert regex("<think>a</think>b", r"^<think>.*</think>") == 1
    assert regex("b", "a") == 0
    assert regex("b", None) is None
    with pytest.raises(ValueError, match="must be a regular expression, got 3"):
        regex("b", 3)
    with pytest.raises(Exception, match="missing \\)"):
        regex("b", "(")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        regex("a" * 60 + "b" * 40 + "!", r"^(a|a|aa)+(b|b|bb)+$")
    assert time.monotonic() - start < 10


def test_length_counts_characters():
    assert length("naïve 🙂") == 7

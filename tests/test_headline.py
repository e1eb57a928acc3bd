"""Trackers draw few numbers of a run, each under a name of its own."""

import pytest

from panoply.report.headline import MOST_HEADLINES, flat, headline, tracker_names
from tests.builders.example_metrics import example_metrics


def test_of_many_numbers_the_forty_that_a_reader_looks_for_first_are_chosen():
    metrics = example_metrics(num_objectives=40, num_sources=30)
    assert sum(1 for _ in flat(metrics)) > 1000
    chosen = headline(metrics)
    assert len(chosen) == MOST_HEADLINES
    assert next(iter(chosen)) == "pairs/gate/macro/accuracy_length_balanced"
    assert {"pairs/gate/log_loss", "pairs/mlp/macro/accuracy_length_balanced"} <= chosen.keys()
    assert chosen["comparisons/gate - best_fixed/value"] == 0.0641
    assert not [name for name in chosen if "/per_source/" in name]


def test_few_numbers_are_all_kept_and_what_is_not_finite_is_no_number():
    metrics = {"a": {"b": 1, "c": None, "d": float("nan")}, "e": float("inf"), "f": "text", "g": 2}
    assert headline(metrics) == {"a/b": 1.0, "g": 2.0}


@pytest.mark.parametrize(
    "pair",
    [
        ("set (v1)", "set [v1]"),
        ("Set", "set"),
        ("a" * 251, "a" * 252),
        ("a:b", "a_b"),
        ("x//y", "x__y"),
    ],
)
def test_two_paths_never_get_one_name(pair):
    names = tracker_names([f"pairs/{name}" for name in pair])
    assert len({name.casefold() for name in names.values()}) == 2
    assert all(len(name) <= 250 for name in names.values())
    assert tracker_names(reversed(names)) == names


def test_a_name_that_mlflow_takes_stays_as_it_is():
    assert tracker_names(["train/loss", "owner/name-1.5 b"]) == {
        "train/loss": "train/loss",
        "owner/name-1.5 b": "owner/name-1.5 b",
    }

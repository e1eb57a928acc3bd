"""Contextual choice between arms of single sources: what is drawn, and what a known world gives."""

from dataclasses import replace

import numpy as np
import pytest

from evidence.contextual import (
    FIVE,
    Items,
    balanced,
    by_source,
    compete,
    divide,
    recorded,
    report,
)
from evidence.replay import arm_rewards
from panoply.bandit.contexts import with_constant
from panoply.data.tables import Split


def world(seed, num, *, told=True):
    """Every arm is right on its own source, and mostly wrong elsewhere, by much larger margins."""
    rng = np.random.default_rng(seed)
    source = rng.integers(len(FIVE), size=num)
    own = source[:, None] == np.arange(len(FIVE))
    sign = np.where(rng.random(own.shape) < np.where(own, 0.9, 0.4), 1, -1)
    margin = sign * np.where(own, 1, 10) * rng.uniform(0.5, 1.5, own.shape)
    seen = source if told else rng.integers(len(FIVE), size=num)
    return Items(
        margin_NK=margin,
        contexts_NH=with_constant(np.eye(len(FIVE))[seen]),
        source_N=source,
        longer_N=rng.random(num) < 0.7,
        key_N=np.array([f"{seed} {i // 2}" for i in range(num)], dtype=object),
    )


@pytest.mark.parametrize("seed", range(3))
def test_arms_labeled_items_and_items_share_no_prompt(seed):
    keys = [f"prompt {i}" for i in np.random.default_rng(seed).integers(400, size=2000)]
    parts = divide(Split.make(keys, seed, 2))
    prompts = {name: {keys[row] for row in rows} for name, rows in parts.items()}
    assert sum(len(rows) for rows in parts.values()) == 2000
    assert len(set.union(*prompts.values())) == sum(len(own) for own in prompts.values())
    assert len(parts["items"]) > 0.35 * 2000
    assert len(parts["arms"]) > 0.25 * 2000


def test_every_source_and_length_has_as_many_items():
    items, rng = world(0, 900), np.random.default_rng(0)
    drawn = items.take(balanced(items.cell_N, rng, 900, 10))
    smallest = np.bincount(items.cell_N).min()
    assert np.bincount(drawn.cell_N).tolist() == [smallest] * 10
    assert len(set(map(tuple, drawn.margin_NK.tolist()))) == 10 * smallest  # none twice
    few = items.take(balanced(items.cell_N, rng, 7, 10))
    assert np.bincount(few.cell_N).tolist() == [7] * 10
    # What follows length alone is right on half of them.
    assert drawn.longer_N.mean() == 0.5


def test_a_source_without_pairs_of_one_length_is_named():
    items = replace(world(0, 100), longer_N=np.ones(100, np.bool_))
    with pytest.raises(ValueError, match=r"have \[0, \d+, 0, .* items: take more"):
        balanced(items.cell_N, np.random.default_rng(0), 100, 10)


def test_either_candidate_may_be_the_preferred_one_and_arms_are_right_all_the_same():
    margin = world(0, 1000).margin_NK
    margin[0, 0] = 0.0
    data = recorded(margin, np.random.default_rng(0))
    assert 0.45 < data.correct_NC[:, 0].mean() < 0.55
    assert (data.correct_NC.sum(1) == 1).all()
    assert np.array_equal(arm_rewards(data), margin > 0)


def test_shares_are_counted_on_each_source():
    source, arms = np.array([[0, 0, 1], [1, 0, 0]]), np.array([[1, 0, 1], [0, 1, 1]])
    assert by_source(source, arms, 2).tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_contextual_choice_wins_where_contexts_tell_sources_and_nothing_where_they_do_not():
    seeds = [compete(world(10 + i, 300), world(i, 600), orders=2, seed=i) for i in (0, 1)]
    figures = report(seeds)
    found = {name: value["value"] for name, value in figures["accuracy"].items()}
    assert found["own_source_told"] == pytest.approx(0.9, abs=0.03)
    rivals = [
        *("best_single_hindsight", "best_single_labeled", "moss_without_context", "uniform"),
        *("sequential", "ensemble_raw_sum_costs_k", "ensemble_z_score_costs_k"),
        *("ensemble_agreement_costs_k", "ensemble_z_of_arm_costs_k"),
    ]
    for mine in ("linucb", "thompson", "bayesian_router_labeled", "arm_classifier_labeled"):
        assert found[mine] > max(found[rival] for rival in rivals) + 0.1, mine
    assert found["source_classifier_labeled"] == found["own_source_told"]
    for rival in rivals:
        gain = figures["linucb_minus"][rival]
        assert gain["value"] == pytest.approx(found["linucb"] - found[rival])
        assert gain["ci95"][0] > 0.1
    assert figures["prompts_taken_for"] == np.eye(len(FIVE)).tolist()
    assert np.trace(figures["shares"]["linucb"]) > 0.7 * len(FIVE)
    arms = np.array([[cell["value"] for cell in row] for row in figures["arms"]])
    assert np.diag(arms) == pytest.approx(0.9, abs=0.05)
    assert arms[~np.eye(len(FIVE), dtype=bool)].mean() == pytest.approx(0.4, abs=0.03)

    labeled, items = world(2, 300, told=False), world(3, 600, told=False)
    blind = compete(labeled, items, orders=2, seed=0).right
    assert abs(blind["linucb"][:, 0].mean() - blind["uniform"][:, 0].mean()) < 0.05
    assert abs(blind["source_classifier_labeled"].mean() - blind["uniform"][:, 0].mean()) < 0.06


def test_the_same_seed_gives_the_same_figures():
    labeled, items = world(1, 100), world(0, 100)
    once, again = (report([compete(labeled, items, orders=2, seed=0)]) for _ in range(2))
    np.testing.assert_equal(once, again)  # NaN stands where there are too few prompts

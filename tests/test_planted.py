"""The planted world: known truth, readable attributes, and a gap that only a gate can close."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from panoply.data.schema import PROMPT, prompt_id, split_key, text_id
from panoply.synthetic.planted import PlantedWorld, make_world
from panoply.synthetic.raters import MISSING_SHARE, RATING_SOURCES
from panoply.types import Array


@cache
def world(seed: int, homogeneous: bool = False) -> PlantedWorld:
    return make_world(seed, homogeneous=homogeneous)


def ids(table: pa.Table, column: str) -> list[str]:
    rows = zip(table["prompt"].to_pylist(), table[column].to_pylist(), strict=True)
    return [text_id(prompt, response) for prompt, response in rows]


def attributes(planted: PlantedWorld) -> Array:
    table = planted.truth.responses
    return np.stack([table[name].to_numpy() for name in planted.truth.attributes], axis=1)


def texts(planted: PlantedWorld) -> list[str]:
    """The responses in the order of `truth.responses`."""
    text_of: dict[str, str] = {}
    for column in ("chosen", "rejected"):
        found = ids(planted.pairs, column)
        text_of |= dict(zip(found, planted.pairs[column].to_pylist(), strict=True))
    return [text_of[i] for i in planted.truth.responses["text_id"].to_pylist()]


def sides(planted: PlantedWorld) -> tuple[list[int], list[int]]:
    """Rows of `truth.responses` of the chosen and of the rejected responses."""
    row = {i: n for n, i in enumerate(planted.truth.responses["text_id"].to_pylist())}
    chosen, rejected = (ids(planted.pairs, column) for column in ("chosen", "rejected"))
    return [row[i] for i in chosen], [row[i] for i in rejected]


def differences(planted: PlantedWorld, values: Array) -> Array:
    chosen, rejected = sides(planted)
    return values[chosen] - values[rejected]


def labeling_weights(planted: PlantedWorld) -> Array:
    """The weights `[P, A]` that labeled each pair."""
    truth = planted.truth
    domain = [truth.domains.index(name) for name in planted.pairs["subset"].to_pylist()]
    return truth.weights[domain]


def accuracy(margin: Array) -> float:
    return float(np.mean((margin > 1e-12) + 0.5 * (np.abs(margin) <= 1e-12)))


def best_fixed(difference: Array) -> Array:
    """The nonnegative weights of least logistic loss: a convex problem."""

    def loss(weights: Array) -> tuple[float, Array]:
        margin = difference @ weights
        gradient = -(difference * expit(-margin)[:, None]).mean(axis=0)
        return float(np.logaddexp(0.0, -margin).mean()), gradient

    size = difference.shape[1]
    start, bounds = np.full(size, 0.1), [(0.0, None)] * size
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x


def gap(planted: PlantedWorld, values: Array) -> float:
    """How much the planted weights beat the best fixed weights, fitted on the same pairs."""
    difference = differences(planted, values)
    oracle = accuracy((difference * labeling_weights(planted)).sum(axis=1))
    return oracle - accuracy(difference @ best_fixed(difference))


def halves(planted: PlantedWorld) -> npt.NDArray[np.bool_]:
    """Which responses are of the first half of the prompts."""
    size = planted.truth.responses.num_rows
    return np.arange(size) < size // 2


def readings(planted: PlantedWorld) -> Array:
    """Attributes `[N, A]` as a bag-of-words ridge reads them off one half of the prompts."""
    train, said = halves(planted), texts(planted)
    words = TfidfVectorizer(token_pattern=r"\w+").fit(
        [y for y, t in zip(said, train, strict=True) if t]
    )
    features = words.transform(said)
    return Ridge(alpha=1.0).fit(features[train], attributes(planted)[train]).predict(features)


def test_labels_agree_with_the_true_margin_in_four_of_five_pairs():
    for planted in (world(0), world(1, homogeneous=True)):
        margin = (differences(planted, attributes(planted)) * labeling_weights(planted)).sum(axis=1)
        signed = margin[np.abs(margin) > 1e-12]
        assert np.mean(signed > 0) == pytest.approx(0.80, abs=0.01)
        assert planted.truth.agreement == pytest.approx(np.mean(signed > 0), abs=1e-12)


def test_labels_are_surer_the_larger_the_margin_as_bradley_terry_says():
    pooled: list[tuple[float, bool]] = []
    for seed in (0, 1):
        planted = world(seed)
        margin = (differences(planted, attributes(planted)) * labeling_weights(planted)).sum(axis=1)
        pooled += zip(planted.truth.scale * np.abs(margin), margin > 0, strict=True)
    size, agreed = np.array(pooled).T
    order = np.argsort(size)
    for part in np.array_split(order, 6):
        assert agreed[part].mean() == pytest.approx(expit(size[part]).mean(), abs=0.04)


def test_the_reward_is_the_planted_weights_times_the_attributes():
    truth = world(0).truth
    table, values = truth.responses, attributes(world(0))
    for row in range(0, table.num_rows, 97):
        weights = truth.weights[truth.domains.index(table["domain"][row].as_py())]
        expected = sum(float(w) * float(a) for w, a in zip(weights, values[row], strict=True))
        assert table["reward"][row].as_py() == pytest.approx(expected, abs=1e-12)


def test_planted_weights_lie_on_the_simplex_and_mostly_on_three_attributes():
    truth = world(0).truth
    assert len(truth.domains) >= 5
    assert 8 <= len(truth.attributes) <= 10
    assert truth.weights.shape == (len(truth.domains), len(truth.attributes))
    assert (truth.weights >= 0).all()
    np.testing.assert_allclose(truth.weights.sum(axis=1), 1.0, atol=1e-12)
    assert (np.sort(truth.weights, axis=1)[:, -3:].sum(axis=1) >= 0.7).all()


def test_the_oracle_beats_the_best_fixed_weights_by_far():
    for seed in (0, 1):
        assert gap(world(seed), attributes(world(seed))) >= 0.12


def test_eight_points_are_left_on_noisy_attributes_and_on_a_bag_of_words_probe():
    planted, rng = world(0), np.random.default_rng(0)
    true = attributes(planted)
    # Noise of 3/4 of the spread: correlation .8 with the truth.
    noisy = true + 0.75 * true.std(axis=0) * rng.standard_normal(true.shape)
    assert gap(planted, noisy) >= 0.08
    assert gap(planted, readings(planted)) >= 0.08


def test_in_the_homogeneous_world_fixed_weights_do_as_well_as_the_oracle():
    planted = [world(seed, homogeneous=True) for seed in (0, 1)]
    assert abs(np.mean([gap(w, attributes(w)) for w in planted])) < 0.01
    assert np.ptp(planted[0].truth.weights, axis=0).max() == 0


def test_a_homogeneous_world_changes_labels_and_leaves_texts_and_ratings():
    plain = make_world(5, num_prompts=60)
    flagged = make_world(5, num_prompts=60, homogeneous=True)
    assert flagged.ratings.equals(plain.ratings)
    kept = ["text_id", "domain", *plain.truth.attributes]
    assert flagged.truth.responses.select(kept).equals(plain.truth.responses.select(kept))
    assert flagged.pairs.select(["prompt", "source"]).equals(
        plain.pairs.select(["prompt", "source"])
    )
    unordered = [
        list(map(frozenset, zip(ids(w.pairs, "chosen"), ids(w.pairs, "rejected"), strict=True)))
        for w in (plain, flagged)
    ]
    assert unordered[0] == unordered[1]
    assert not flagged.pairs.equals(plain.pairs)


def test_a_bag_of_words_probe_reads_every_attribute_on_other_prompts():
    planted = world(0)
    held, read, true = ~halves(planted), readings(planted), attributes(planted)
    for a, name in enumerate(planted.truth.attributes):
        assert spearmanr(read[held, a], true[held, a]).statistic >= 0.6, name


def test_no_attribute_is_length_in_disguise():
    planted = world(0)
    length = np.array([len(text) for text in texts(planted)])
    true = attributes(planted)
    for a, name in enumerate(planted.truth.attributes):
        assert abs(spearmanr(true[:, a], np.log(length)).statistic) <= 0.4, name
    chosen, rejected = sides(planted)
    longer = np.sign(length[chosen] - length[rejected])
    assert 0.4 <= np.mean(longer[longer != 0] > 0) <= 0.6
    assert length.std() / length.mean() > 0.15


def test_domains_do_not_show_in_the_responses_levels():
    planted = world(0)
    domain, true = np.array(planted.truth.responses["domain"]), attributes(planted)
    means = np.stack([true[domain == name].mean(axis=0) for name in planted.truth.domains])
    assert np.ptp(means, axis=0).max() < 0.15


def test_texts_are_short_distinct_and_counted_as_asked():
    planted = world(0)
    found = planted.truth.responses["text_id"].to_pylist()
    assert len(set(found)) == len(found) == 2400
    assert set(found) == {*ids(planted.pairs, "chosen"), *ids(planted.pairs, "rejected")}
    assert set(ids(planted.ratings, "response")) == set(found)
    prompts = planted.pairs["prompt"].to_pylist()
    assert len({prompt_id(p) for p in prompts}) == len({split_key(p) for p in prompts}) == 600
    assert planted.pairs.num_rows == 600 * 6
    assert all(len(p[0]["content"].split()) <= 15 for p in prompts)
    words = [len(text.split()) for text in texts(planted)]
    assert min(words) >= 2
    assert 18 <= np.mean(words) <= 24
    assert max(words) <= 45


def test_one_of_the_largest_worlds_still_has_distinct_prompts_and_texts():
    planted = make_world(1, num_prompts=1440, num_responses=2)
    found = planted.truth.responses["text_id"].to_pylist()
    assert len(set(found)) == len(found) == 2880


def test_every_domain_is_labeled_by_two_pools_and_pools_differ_in_their_mix():
    planted = world(0)
    source = np.array(planted.pairs["source"].to_pylist())
    subset = np.array(planted.pairs["subset"].to_pylist())
    shares = np.array(
        [
            [np.mean(subset[source == pool] == domain) for domain in planted.truth.domains]
            for pool in planted.truth.pools
        ]
    )
    assert ((shares > 0).sum(axis=0) >= 2).all()
    assert (np.sort(shares, axis=1)[:, -2:].sum(axis=1) > 0.5).all()
    assert shares.shape == (4, len(planted.truth.domains))


def test_tables_have_the_columns_of_a_raw_user_file():
    planted = world(0)
    ratings, pairs = planted.ratings.schema, planted.pairs.schema
    assert ratings.names[:4] == ["prompt", "response", "source", "subset"]
    assert ratings.names[4:] == list(planted.truth.objectives) == list(planted.scales)
    assert all(ratings.field(name).type == pa.float32() for name in ratings.names[4:])
    assert pairs.names == ["prompt", "chosen", "rejected", "source", "subset", "margin"]
    assert ratings.field("prompt").type == pairs.field("prompt").type == PROMPT
    assert planted.pairs["margin"].null_count == planted.pairs.num_rows
    rated = list(planted.truth.objectives.values())
    assert set(rated) == set(planted.truth.attributes)
    assert len(rated) > len(set(rated))


def test_ratings_are_missing_outside_their_source_and_now_and_then_inside():
    planted = world(0)
    source = np.array(planted.ratings["source"].to_pylist())
    assert planted.ratings.num_rows == 2 * 2400
    assert planted.ratings.select(["prompt", "response", "source"]).num_rows == len(
        set(zip(ids(planted.ratings, "response"), source, strict=True))
    )
    present = {
        name: ~np.isnan(planted.ratings[name].to_numpy()) for name in planted.truth.objectives
    }
    for name, there in present.items():
        inside = source == name.split("-")[0]
        assert not there[~inside].any()
        assert there[inside].mean() == pytest.approx(1 - MISSING_SHARE, abs=0.04)
        assert planted.ratings[name].null_count == (~there).sum()
    assert np.any(list(present.values()), axis=0).all()


def test_ratings_follow_the_attribute_on_the_steps_of_their_own_scale():
    planted = world(0)
    row = {i: n for n, i in enumerate(planted.truth.responses["text_id"].to_pylist())}
    rows = np.array([row[i] for i in ids(planted.ratings, "response")])
    true = attributes(planted)[rows]
    assert len(set(planted.scales.values())) >= 4
    for name, attribute in planted.truth.objectives.items():
        score = planted.ratings[name].to_numpy()
        there = ~np.isnan(score)
        source = RATING_SOURCES[name.split("-")[0]]
        steps = np.arange(source.low, source.high + source.step, source.step)
        assert planted.scales[name] == (source.low, source.high)
        assert set(score[there]) == set(steps)
        value = true[there, planted.truth.attributes.index(attribute)]
        assert 0.78 <= np.corrcoef(score[there], value)[0, 1] <= 0.95, name


def test_opposites_are_opposite():
    planted = world(0)
    true, names = attributes(planted), planted.truth.attributes
    for one, other in (("refuses", "complies"), ("hedged", "assured")):
        assert (true[:, names.index(one)] + true[:, names.index(other)] == 1).all()


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    one, again, other = (make_world(seed, num_prompts=60) for seed in (3, 3, 4))
    assert one.ratings.equals(again.ratings)
    assert one.pairs.equals(again.pairs)
    assert one.truth.responses.equals(again.truth.responses)
    assert (one.truth.weights == again.truth.weights).all()
    assert one.pairs["prompt"].to_pylist() != other.pairs["prompt"].to_pylist()
    assert not (one.truth.weights == other.truth.weights).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_prompts", 0),
        ("num_prompts", 100_000),
        ("num_responses", 1),
    ],
)
def test_a_number_out_of_range_is_named(name: str, value: float):
    with pytest.raises(ValueError, match=rf"{name} must be .* got {value!r}"):
        make_world(0, **{name: value})

"""What is reported: formulas against plain Python, missing is never 0, intervals cover."""

import json

import numpy as np
import pytest

from panoply.measure.intervals import (
    macro_interval,
    paired_interval,
    percentiles,
    resampled_spearman,
    resampled_sums,
)
from panoply.measure.metrics import accuracy, macro, pair_metrics, regression_metrics, spearman
from tests.builders import reference


def pairs(num_pairs=400, seed=0, skill=0.6):
    rng = np.random.default_rng(seed)
    margins = rng.normal(size=num_pairs) + skill
    margins[:: num_pairs // 10] = 0
    gaps = rng.integers(-50, 51, size=num_pairs)
    return margins, gaps, rng.integers(num_pairs // 2, size=num_pairs)


def same(one, other):
    return json.dumps(one) == json.dumps(other)


def test_pair_metrics_agree_with_plain_python():
    margins, gaps, groups = pairs()
    found = pair_metrics(margins, gaps, groups)
    m, g = margins.tolist(), gaps.tolist()
    assert found["accuracy"] == pytest.approx(reference.accuracy(m)) == accuracy(margins)
    assert found["accuracy_length_balanced"] == pytest.approx(
        reference.length_balanced_accuracy(m, g)
    )
    assert found["log_loss"] == pytest.approx(reference.bradley_terry_loss(m))
    assert found["ece"] == pytest.approx(reference.expected_calibration_error(m))
    assert found["ties"] == sum(x == 0 for x in m) / len(m)
    assert found["equal_length"] == g.count(0) > 0
    assert found["n"] == 400
    strata = (found["accuracy_chosen_longer"], found["accuracy_chosen_shorter"])
    assert found["accuracy_length_balanced"] == pytest.approx(sum(strata) / 2)


def test_a_scorer_that_follows_length_alone_has_half_of_the_balanced_accuracy():
    _, gaps, groups = pairs()
    found = pair_metrics(np.where(gaps == 0, 1, gaps), gaps, groups)
    assert found["accuracy_chosen_longer"] == 1
    assert found["accuracy_chosen_shorter"] == 0
    assert found["accuracy_length_balanced"] == 0.5


def test_missing_margins_are_counted_and_change_nothing_else():
    margins, gaps, groups = pairs()
    whole = pair_metrics(margins, gaps, groups)
    extra = (np.full(20, np.nan), np.ones(20, int), np.zeros(20, int))
    both = (np.concatenate([a, b]) for a, b in zip((margins, gaps, groups), extra, strict=True))
    found = pair_metrics(*both)
    assert found["missing"] == 20
    assert same(found | {"missing": 0.0}, whole)


def test_an_empty_stratum_leaves_the_balanced_accuracy_undefined():
    margins, gaps, groups = pairs()
    found = pair_metrics(margins, np.abs(gaps) + 1, groups)
    assert np.isnan(found["accuracy_length_balanced"])
    assert np.isnan(found["ci95_length_balanced"]).all()
    assert np.isfinite(found["accuracy"])


def test_no_pairs_give_missing_numbers_and_no_error():
    found = pair_metrics([], [], [])
    assert found["n"] == 0
    assert np.isnan(
        [found["accuracy"], found["log_loss"], found["ece_floor"], *found["ci95"]]
    ).all()
    assert np.isnan(macro_interval([], [], [], [])["value"])


def test_lengths_of_arguments_must_agree():
    with pytest.raises(ValueError, match="lengths differ"):
        pair_metrics([1.0, 2.0], [1], [1, 2])


def test_every_result_can_be_written_as_json():
    margins, gaps, groups = pairs()
    found = pair_metrics(margins, gaps, groups)
    regression = regression_metrics(margins, margins + gaps, gaps, groups, draws=50)
    sources = np.where(groups % 2, "a", "b")
    macros = macro_interval(margins, gaps, sources, groups, draws=50)
    for result in (found, macro({"a": found}), regression, macros):
        assert json.loads(json.dumps(result)) == result


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        margins = np.where(rng.random(300) < 0.7, 1.0, -1.0)
        found = pair_metrics(margins, np.ones(300), np.arange(300), draws=200, seed=seed)
        low, high = found["ci95"]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 200


def test_copies_within_a_group_add_no_evidence():
    margins, gaps, _ = pairs(100)
    groups = np.arange(100)
    copies = [np.repeat(a, 5) for a in (margins, gaps, groups)]
    one, five = pair_metrics(margins, gaps, groups), pair_metrics(*copies)
    assert five["ci95"] == pytest.approx(one["ci95"])
    wide, narrow = one["ci95"], pair_metrics(*copies[:2], np.arange(500))["ci95"]
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_one_group_leaves_nothing_to_resample():
    margins, gaps, _ = pairs()
    assert np.isnan(pair_metrics(margins, gaps, np.zeros(400))["ci95"]).all()
    assert np.isnan(resampled_spearman(margins, gaps, np.zeros(400), draws=5)).all()


def test_names_of_groups_do_not_matter():
    margins, gaps, groups = pairs()
    named = [f"g{g:05d}" for g in groups]
    assert same(pair_metrics(margins, gaps, groups), pair_metrics(margins, gaps, named))


def test_resampled_sums_have_the_mean_and_the_spread_of_the_groups():
    rng = np.random.default_rng(0)
    terms, groups = rng.normal((1, 5), size=(200, 2)), np.arange(200)
    drawn = resampled_sums(terms, groups, draws=4000)
    np.testing.assert_allclose(drawn.mean(0), terms.sum(0), atol=1.5)
    np.testing.assert_allclose(drawn.std(0), np.sqrt(200) * terms.std(0), rtol=0.05)


def test_macro_is_the_mean_over_sources_whatever_their_size():
    large, small = pair_metrics(*pairs(400)), pair_metrics(*pairs(40, seed=1, skill=-1.0))
    found = macro({"large": large, "small": small})
    assert found["accuracy"] == pytest.approx((large["accuracy"] + small["accuracy"]) / 2)
    assert found["n"] == 440
    assert "ci95" not in found


def test_macro_leaves_out_sources_in_which_a_metric_is_not_defined():
    margins, gaps, groups = pairs()
    one_sided = pair_metrics(margins, np.abs(gaps) + 1, groups)
    both = pair_metrics(margins, gaps, groups)
    found = macro({"one_sided": one_sided, "both": both})
    assert found["accuracy_length_balanced"] == both["accuracy_length_balanced"]
    assert np.isnan(macro({"one_sided": one_sided})["accuracy_length_balanced"])


def test_the_macro_interval_is_about_the_macro_of_the_sources():
    margins, gaps, groups = pairs()
    sources = np.where(np.arange(400) < 50, "small", "large")
    each = {
        s: pair_metrics(*(a[sources == s] for a in (margins, gaps, groups)))
        for s in ("small", "large")
    }
    found = macro_interval(margins, gaps, sources, groups)
    assert found["value"] == pytest.approx(macro(each)["accuracy_length_balanced"])
    assert found["ci95"][0] < found["value"] < found["ci95"][1]


def test_the_paired_interval_is_the_difference_and_narrower_than_two_apart():
    margins, gaps, groups = pairs(1000)
    rng = np.random.default_rng(1)
    close = margins + 0.2 * rng.normal(size=1000) - 0.1
    sources = np.where(np.arange(1000) % 3, "a", "b")
    a, b = (macro_interval(m, gaps, sources, groups) for m in (margins, close))
    found = paired_interval(margins, close, gaps, sources, groups)
    back = paired_interval(close, margins, gaps, sources, groups)
    assert found["value"] == pytest.approx(a["value"] - b["value"])
    assert found["ci95"] == pytest.approx([-x for x in reversed(back["ci95"])])
    apart = np.hypot(np.diff(a["ci95"]), np.diff(b["ci95"]))
    assert np.diff(found["ci95"]) < 0.6 * apart
    self_paired = paired_interval(margins, margins, gaps, sources, groups)
    assert (self_paired["value"], self_paired["ci95"]) == (0, [0, 0])


def test_pairs_that_either_scorer_misses_are_left_out_of_both():
    margins, gaps, groups = pairs()
    sources, other = np.zeros(400), margins[::-1].copy()
    missing = other.copy()
    missing[:100] = np.nan
    found = paired_interval(margins, missing, gaps, sources, groups)
    kept = (a[100:] for a in (margins, other, gaps, sources, groups))
    assert same(found, paired_interval(*kept))
    assert found["n"] == 300


def test_regression_metrics_agree_with_plain_python():
    rng = np.random.default_rng(0)
    rated = rng.integers(5, size=150).astype(float)
    predicted = np.round(0.5 * rated + rng.normal(size=150), 1)
    lengths = rng.integers(1, 40, size=150)
    found = regression_metrics(predicted, rated, lengths, np.arange(150), draws=100)
    p, y = predicted.tolist(), rated.tolist()
    assert found["pearson"] == pytest.approx(reference.pearson(p, y))
    assert found["spearman"] == pytest.approx(reference.spearman(p, y))
    assert found["r2"] == pytest.approx(reference.r2(p, y))
    assert found["length_spearman"] == pytest.approx(reference.spearman(lengths.tolist(), y))
    for name in ("pearson", "spearman", "r2"):
        low, high = found[f"{name}_ci95"]
        assert low < found[name] < high


def test_unrated_rows_do_not_count_and_rated_rows_without_a_prediction_are_missing():
    rng = np.random.default_rng(0)
    p, y, lengths = rng.normal(size=(3, 60))
    whole = regression_metrics(p, y, lengths, np.arange(60), draws=20)
    y2, p2 = np.append(y, [np.nan, np.nan, 1.0]), np.append(p, [1.0, np.nan, np.nan])
    found = regression_metrics(p2, y2, np.append(lengths, [1, 2, 3]), np.arange(63), draws=20)
    assert found["missing"] == 1
    assert same(found | {"missing": 0.0}, whole)


def test_correlation_with_a_constant_is_not_defined():
    rated, lengths, groups = np.arange(20.0), np.arange(20), np.arange(20)
    flat = regression_metrics(np.full(20, 0.1), rated, lengths, groups, draws=20)
    assert np.isnan([flat["pearson"], flat["spearman"], *flat["pearson_ci95"]]).all()
    assert flat["r2"] == pytest.approx(reference.r2([0.1] * 20, rated.tolist()))
    still = regression_metrics(rated, np.full(20, 0.1), lengths, groups, draws=20)
    undefined = ("pearson", "spearman", "r2", "length_spearman")
    assert np.isnan([still[name] for name in undefined]).all()
    assert np.isnan(still["spearman_ci95"]).all()


def test_no_rated_rows_give_missing_numbers_and_no_error():
    found = regression_metrics([1.0, 2.0], [np.nan, np.nan], [1, 2], [1, 2], draws=20)
    assert found["n"] == 0
    assert np.isnan([found["pearson"], found["spearman"], found["r2"], *found["r2_ci95"]]).all()


def test_features_far_from_zero_do_not_cancel():
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=(2, 100))
    near = regression_metrics(p, p + y, y, np.arange(100), draws=20)
    far = regression_metrics(p + 1e6, p + y + 1e6, y, np.arange(100), draws=20)
    assert [far["pearson"], far["r2"]] == pytest.approx([near["pearson"], near["r2"]], rel=1e-6)


def test_a_resampled_rank_correlation_is_the_one_of_the_rows_taken():
    rng = np.random.default_rng(0)
    x, y = rng.integers(6, size=(2, 40)).astype(float)
    groups = np.arange(40) // 2
    drawn = resampled_spearman(x, y, groups, draws=5, seed=3)
    taken = np.random.default_rng(3).integers(20, size=(5, 20))
    for rho, chosen in zip(drawn, taken, strict=True):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in chosen])
        assert rho == pytest.approx(spearman(x[rows], y[rows]))


def test_percentiles_leave_out_draws_in_which_nothing_is_defined():
    values = np.append(np.linspace(0, 1, 1001), [np.nan] * 500)
    assert percentiles(values) == pytest.approx([0.025, 0.975])

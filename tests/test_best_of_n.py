"""Best of n: the estimator against enumeration, missing numbers, and where gold turns down."""

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from panoply.config.best_of_n import RecordedBestOfNConfig
from panoply.measure.best_of_n import expected_best, fitted_curve, kl_of, turn_down
from panoply.report.progress import RunLogger
from workflows.best_of_n import run_recorded


@pytest.mark.parametrize("ties", [False, True])
def test_the_expected_gold_is_the_mean_over_all_subsets(ties):
    rng = np.random.default_rng(0)
    gold = rng.normal(size=8)
    proxy = np.array([0, 1, 1, 2, 2, 2, 3, 3.0]) if ties else rng.normal(size=8)
    for n in range(1, 9):
        values = []
        for subset in combinations(range(8), n):
            best = [i for i in subset if proxy[i] == max(proxy[list(subset)])]
            group = [i for i in range(8) if proxy[i] == proxy[best[0]]]
            values.append(gold[group].mean())
        assert expected_best(proxy, gold, [n])[0] == pytest.approx(np.mean(values), abs=1e-12)


def test_of_one_sample_it_is_the_mean_and_of_all_the_best_and_more_there_are_not():
    proxy, gold = [0.3, -1.0, 2.0, 0.0], [1.0, 0.0, 0.5, 0.25]
    one, four, five = expected_best(proxy, gold, [1, 4, 5])
    assert one == pytest.approx(np.mean(gold))
    assert four == pytest.approx(0.5)
    assert np.isnan(five)
    # The proxy's own curve never falls.
    curve = expected_best(proxy, proxy, [1, 2, 3, 4])
    assert (np.diff(curve) > 0).all()


def test_a_missing_number_leaves_its_sample_out_and_is_never_zero():
    proxy, gold = [3.0, np.nan, 1.0, 2.0], [0.0, 1.0, np.nan, 1.0]
    both = expected_best([3.0, 2.0], [0.0, 1.0], [1, 2])
    assert expected_best(proxy, gold, [1, 2]) == pytest.approx(both)
    assert np.isnan(expected_best(proxy, gold, [3])).all()
    assert np.isnan(expected_best([np.nan], [1.0], [1])).all()


def test_a_monotone_change_of_the_proxy_changes_nothing_and_neither_does_the_order_of_samples():
    rng = np.random.default_rng(1)
    proxy, gold = rng.normal(size=30), rng.normal(size=30)
    sizes = [1, 2, 7, 30]
    expected = expected_best(proxy, gold, sizes)
    assert expected_best(np.exp(3 * proxy), gold, sizes) == pytest.approx(expected)
    order = rng.permutation(30)
    assert expected_best(proxy[order], gold[order], sizes) == pytest.approx(expected)


def test_the_distance_from_the_policy_is_zero_for_one_sample_and_grows_like_the_logarithm():
    assert kl_of(1) == 0
    assert kl_of(4) == pytest.approx(np.log(4) - 0.75)


def test_gold_that_turns_down_is_told_with_its_interval_and_gold_that_rises_is_not():
    rng = np.random.default_rng(2)
    sizes = [1, 4, 16, 64]
    overdone, sound = [], []
    for _ in range(60):
        gold = rng.normal(size=64)
        errors = rng.normal(size=64) * np.where(rng.random(64) < 0.1, 8.0, 0.3)
        overdone.append(expected_best(gold + errors, gold, sizes))
        sound.append(expected_best(gold + 0.3 * rng.normal(size=64), gold, sizes))
    turned = turn_down(np.array(overdone))
    assert turned["peak"] in (1, 2)
    assert turned["ci95"][1] < 0
    assert turned["ci95"][0] < turned["value"] < 0
    assert turn_down(np.array(sound)) == {"value": 0.0, "ci95": [0.0, 0.0], "peak": 3.0}
    # A prompt with a hole is left out whole, so that every n has the same prompts.
    holes = np.array([*sound, [0.0, np.nan, 0.0, -9.0]])
    assert turn_down(holes)["value"] == 0.0
    assert np.isnan(turn_down(np.full((3, 4), np.nan))["value"])


def test_a_curve_that_rises_and_is_bent_back_is_fitted_and_others_are_said_not_to_hold():
    rng = np.random.default_rng(3)
    sizes = [1, 2, 4, 8, 16, 32, 64]
    d = np.sqrt([kl_of(n) for n in sizes])
    alpha_P = rng.normal(1.0, 0.2, 80)
    gold = 0.3 + np.outer(alpha_P, d) - 0.4 * d**2
    fit = fitted_curve(gold, sizes)
    assert fit["holds"]
    assert fit["alpha"]["value"] == pytest.approx(alpha_P.mean())
    assert fit["beta"]["value"] == pytest.approx(0.4)
    assert fit["alpha"]["ci95"][0] < 1 < fit["alpha"]["ci95"][1]
    assert fit["rest"] == pytest.approx(0, abs=1e-9)
    # Gold of a proxy with errors of heavy tails: it rises, and is bent back.
    errors = rng.normal(size=(60, 64)) * np.where(rng.random((60, 64)) < 0.1, 3.0, 0.5)
    normal = rng.normal(size=(60, 64))
    rows = zip(normal + errors, normal, strict=True)
    bent = [expected_best(proxy, values, sizes) for proxy, values in rows]
    assert fitted_curve(np.array(bent), sizes)["holds"]
    for other in (
        0.3 + np.outer(alpha_P, d) + 0.2 * d**2,  # rises ever faster
        0.3 - np.outer(alpha_P, d),  # falls from the beginning
        0.3 + np.outer(alpha_P, np.array(sizes) == 8),  # no such curve
        np.full((80, 7), 0.3),
    ):
        assert not fitted_curve(other, sizes)["holds"]
    assert not fitted_curve(gold[:, :4], sizes[:4])["holds"]  # two numbers fit three
    assert not fitted_curve(gold[:5], sizes)["holds"]  # a handful of prompts
    assert not fitted_curve(np.full((3, 7), np.nan), sizes)["holds"]


def recorded(folder, rows, **settings):
    """Settings of a run on recorded scores."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    fields = {"samples": str(folder / "samples.parquet"), "report_to": ("none",)} | settings
    return RecordedBestOfNConfig(out=str(folder / "out"), **fields)


def sample_rows(num_prompts=30, num_samples=12):
    """Samples of which the scorer `good` knows which are right, and `bad` the opposite."""
    rng = np.random.default_rng(4)
    rows = []
    for prompt in range(num_prompts):
        for _ in range(num_samples):
            is_right = bool(rng.random() < 0.4)
            good = is_right + rng.normal(0, 0.3)
            scores = {"score_good": good, "score_bad": -good, "score_flat": 1.0}
            rows.append({"item": prompt, "is_correct": is_right, **scores})
    return rows


def test_recorded_scores_give_the_curves_of_their_samples_without_a_model(tmp_path):
    rows = sample_rows()
    rows[5]["score_good"] = None  # missing, and not the worst
    rng = np.random.default_rng(5)
    config = recorded(tmp_path, [rows[i] for i in rng.permutation(len(rows))])
    metrics = run_recorded(config, RunLogger())
    found = metrics["best_of_n"]
    assert list(found["good"]) == [str(n) for n in range(1, 13)]
    assert found.keys() == {"good", "bad", "flat", "mean", "mean_raw", "agreement", "any right"}
    for n in (1, 4, 11):
        values = []
        for prompt in range(30):
            own = [row for row in rows if row["item"] == prompt and row["score_good"] is not None]
            own.sort(key=lambda row: row["score_good"])
            ways = comb(len(own), n)
            picked = [comb(i, n - 1) * row["is_correct"] for i, row in enumerate(own)]
            values.append(sum(picked) / ways)
        assert found["good"][str(n)]["value"] == pytest.approx(np.mean(values))
    entries = metrics["optimization"]["strategies"]
    assert entries["bad"]["turn"]["ci95"][1] < 0  # its own scores rise, and gold falls
    assert entries["bad"]["proxy"]["11"] > entries["bad"]["proxy"]["2"] > 0
    assert entries["bad"]["peak"] == 1
    assert set(entries["flat"]["proxy"].values()) == {0.0}
    assert found["flat"]["12"]["value"] == pytest.approx(found["flat"]["1"]["value"])
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Right choices among 12 samples" in html
    assert "n = 8" in html
    assert "n = 7<" not in html  # on the curves alone


def test_recorded_samples_that_cannot_be_are_refused(tmp_path):
    rows = sample_rows(num_prompts=2, num_samples=3)
    for settings, message in (
        ({"samples": "none.parquet"}, "no such file"),
        ({"prompt": "problem"}, "`prompt` must be a column of the samples: item, is_correct"),
        ({"gold": "verdict"}, "`gold` must be a column"),
        ({"scores": ("score_good", "score_none")}, "`scores` must be columns .*score_none"),
        ({"gold": "score_good"}, r"'score_good' .* holds .*: gold is whether"),
        ({"prompt": "score_good"}, "fewer than two samples"),
        ({"num_samples": (1, 4)}, "`num_samples` must be at most 3"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_recorded(recorded(tmp_path, rows, **settings), RunLogger())
    rows = [{"item": "a", "is_correct": True, "score": 1.0}] * 2
    with pytest.raises(ValueError, match="no column that begins with 'score_'"):
        run_recorded(recorded(tmp_path, rows), RunLogger())
    rows = [{"item": "a", "is_correct": "yes", "score_a": 1.0}] * 2
    with pytest.raises(ValueError, match=r"'is_correct' .* holds string, which is no number"):
        run_recorded(recorded(tmp_path, rows), RunLogger())
    with pytest.raises(ValueError, match="ascending numbers"):
        RecordedBestOfNConfig(samples="a", num_samples=(2, 1))


def test_sizes_are_all_of_few_samples_and_powers_of_two_of_many():
    config = RecordedBestOfNConfig(samples="a")
    assert config.sizes(4) == (1, 2, 3, 4)
    assert config.sizes(40) == (1, 2, 4, 8, 16, 32, 40)
    assert config.sizes(64) == (1, 2, 4, 8, 16, 32, 64)
    assert RecordedBestOfNConfig(samples="a", num_samples=(2, 8)).sizes(9) == (1, 2, 8)


SCORES = Path(__file__).parents[2] / "shared" / "data" / "arms" / "rewardmath_scores.parquet"


@pytest.mark.skipif(not SCORES.is_file(), reason="the published scores are not here")
def test_published_scores_reach_the_published_accuracies_and_two_models_turn_down(tmp_path):
    names = ("internlm2_7b", "armorm_llama3_8b", "grm_gemma_2b", "beaver_7b")
    config = RecordedBestOfNConfig(
        samples=str(SCORES),
        scores=tuple(f"score_{name}" for name in names),
        num_samples=(1, 2, 4, 7, 10),
        out=str(tmp_path / "out"),
        report_to=("none",),
    )
    metrics = run_recorded(config, RunLogger())
    by_arm = {name: by_n["10"]["value"] for name, by_n in metrics["best_of_n"].items()}
    # The right one of ten candidates, a tie for the best shared.
    assert by_arm["internlm2_7b"] == pytest.approx(0.3727, abs=5e-5)
    assert by_arm["armorm_llama3_8b"] == pytest.approx(0.2101, abs=5e-5)
    assert by_arm["grm_gemma_2b"] == pytest.approx(0.0497, abs=5e-5)
    entries = metrics["optimization"]["strategies"]
    turned = {name for name, entry in entries.items() if entry["turn"]["ci95"][1] < 0}
    assert turned == {"beaver_7b", "grm_gemma_2b"}
    assert not any(entry["fit"]["holds"] for entry in entries.values())

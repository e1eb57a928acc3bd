"""Escalation: what is fitted on planted pairs, whom a served one asks, and what it costs."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest

from panoply.config.composite import CompositeConfig, Escalation, PartConfig
from panoply.config.composite_fit import CompositeFit, EscalationFit
from panoply.measure.calibration import fit_scale
from panoply.measure.intervals import wins
from panoply.scorers.composite.asking import CallBudget
from panoply.scorers.composite.escalation import (
    fit_escalation,
    fused_log_odds,
    fused_scores,
    group_unit,
    pooled_spread,
    rank_by_size,
)
from panoply.scorers.composite.fitting import RIDGE, fit_weights
from panoply.scorers.composite.scorer import CompositeScorer
from panoply.wire.request import Chat, Score, scored

USER = {"role": "user", "content": "Which?"}


def planted(slope, judge, num_prompts=400, seed=0):
    """Margins of a scorer, verdicts of a judge, and prompts; the first response is the better one.

    P(the margin points right | |z|) = sigma(slope |z|); the judge is right at rate `judge`.
    """
    rng = np.random.default_rng(seed)
    size = np.abs(rng.normal(size=(num_prompts, 6)))
    is_right = rng.random(size.shape) < 1 / (1 + np.exp(-slope * size))
    z = np.where(is_right, size, -size)
    verdict = np.where(rng.random(size.shape) < judge, 1.0, -1.0)
    groups = np.repeat(np.arange(num_prompts), 6)
    return z.ravel(), verdict.ravel(), groups


# Fitting


def test_weights_are_those_of_a_search_in_plain_python_and_never_negative():
    rng = np.random.default_rng(3)
    margins = rng.normal(size=(300, 2)) + np.array([0.8, 0.1])
    weights = fit_weights(margins)

    def loss(a, b):
        rms = np.sqrt((margins**2).mean(0))
        odds = [math.log1p(math.exp(-(a * x + b * y))) for x, y in margins.tolist()]
        return sum(odds) / len(odds) + RIDGE / 2 * ((a * rms[0]) ** 2 + (b * rms[1]) ** 2)

    best = loss(*weights)
    for step in (-0.02, 0.02):
        assert loss(weights[0] + step, weights[1]) > best
        assert loss(weights[0], weights[1] + step) > best
    assert fit_weights(margins * [1, -1])[1] == 0
    assert fit_weights(margins[:, :1])[0] == pytest.approx(fit_scale(margins[:, 0]), rel=0.02)
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_weights(np.full((3, 2), np.nan))


def test_planted_coefficients_come_out_again():
    z, verdict, groups = planted(slope=1.5, judge=0.8, num_prompts=3000)
    fit = fit_escalation(z, verdict, groups, spread=1.0, share=0.25)
    assert fit.slope == pytest.approx(1.5, abs=0.1)
    assert fit.fused_slope == pytest.approx(1.5, abs=0.1)
    assert fit.verdict == pytest.approx(math.log(0.8 / 0.2), abs=0.1)
    assert np.mean(fit.slope * np.abs(z) <= fit.ask_below) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_margins_that_say_nothing_are_called_so_and_telling_ones_are_not(seed):
    z, verdict, groups = planted(slope=1.5, judge=0.8, seed=seed)
    assert fit_escalation(z, verdict, groups, 1.0, 0.2).is_informative
    rng = np.random.default_rng(100 + seed)
    right = rng.random(len(z)) < 0.6
    blind = np.where(right, np.abs(z), -np.abs(z))  # right as often at any size
    assert not fit_escalation(blind, verdict, groups, 1.0, 0.2).is_informative
    useless = np.where(rng.random(len(z)) < 0.5, 1.0, -1.0)
    assert not fit_escalation(z, useless, groups, 1.0, 0.2).is_informative


def test_asking_the_unsure_pairs_gains_more_than_random_ones_on_pairs_that_were_not_fitted_on():
    z, verdict, groups = planted(slope=1.5, judge=0.8)
    fit = fit_escalation(z, verdict, groups, 1.0, 0.3)
    z, verdict, _ = planted(slope=1.5, judge=0.8, seed=9)
    fused = fused_log_odds(z, verdict, fit.fused_slope, fit.verdict)
    gain = wins(fused) - wins(z)
    asked = rank_by_size(z) < 0.3 * len(z)
    assert gain[asked].sum() > 0.6 * gain.sum()
    assert wins(fused).mean() > max(wins(z).mean(), wins(verdict).mean())


def test_a_verdict_that_is_missing_leaves_the_first_parts_margin():
    assert fused_log_odds([2.0, -1.0], [np.nan, 3.0], 0.5, 1.0).tolist() == [2.0, 2.5]


def test_units_of_groups_are_deviations_shrunk_to_the_frozen_one():
    spread = pooled_spread([[1.0, 3.0], [0.0, 1.0, 2.0], [5.0], [np.nan, 1.0]])
    assert spread == pytest.approx(math.sqrt((2.0 + 2.0) / 3))
    assert group_unit([1.0, 3.0], 2.0) == pytest.approx(math.sqrt((2.0 + 4.0) / 2))
    assert group_unit([1.0], 2.0) == pytest.approx(2.0)
    many = np.random.default_rng(0).normal(size=10_000)
    assert group_unit(many, 50.0) == pytest.approx(many.std(), rel=0.15)


# Scores of a group

FIT = EscalationFit(
    spread=2.0,
    slope=1.0,
    fused_slope=0.8,
    verdict=1.5,
    ask_below=0.6,
    area=0.1,
    area_low=0.05,
    area_high=0.15,
    gain_of_all=0.1,
)


def test_scores_without_a_verdict_keep_the_first_parts_order_and_level():
    values = np.array([4.0, 1.0, 2.5])
    unit = group_unit(values, FIT.spread)
    fused = fused_scores(values, np.full((3, 3), np.nan), unit, FIT)
    assert np.diff(fused) == pytest.approx(np.diff(values) / unit)
    assert fused.mean() == pytest.approx(values.mean() / 2.0)


def test_the_difference_of_two_scores_is_their_fused_log_odds():
    verdict = np.array([[np.nan, -1.0], [1.0, np.nan]])
    a, b = fused_scores([1.0, 0.5], verdict, 2.0, FIT)
    assert a - b == pytest.approx(0.8 * 0.25 - 1.5)


# Served


class Part:
    """A part that scores by a rule, and keeps what it is asked."""

    def __init__(self, score):
        self.score_of, self.asked = score, []

    async def score(self, items):
        """Answers by the rule."""
        self.asked += [item.responses for item in items]
        return tuple(tuple(map(self.score_of, item.responses)) for item in items)


def number(response):
    return scored(float(response))


def verdict_of(response):
    return scored({"1.0": 5.0, "1.1": 1.0}.get(response, 3.0))


def escalating(second=verdict_of, clock=lambda: 0.0, **settings):
    names = ("cheap", "judge")
    config = CompositeConfig(
        parts={name: PartConfig(where="function:m:f") for name in names},
        rule=Escalation(**{"first": "cheap", "second": "judge"} | settings),
        fitted=CompositeFit(
            pairs=("p",),
            num_pairs=9,
            parts={},
            escalation=FIT,
        ),
    )
    parts = {"cheap": Part(number), "judge": Part(second)}
    return CompositeScorer(config, parts, clock), parts["judge"]


def ask(scorer, *groups):
    return asyncio.run(scorer.score([Chat((USER,), group) for group in groups]))


def test_the_second_part_is_asked_about_unsure_pairs_alone_and_may_turn_them():
    scorer, judge = escalating()
    (results,) = ask(scorer, ("9", "1.0", "1.1"))
    assert judge.asked == [("1.0", "1.1")]
    best, low, high = (result.score for result in results)
    assert best > low > high  # the judge turned the two that were close
    assert results[1].details.objectives == {"cheap": 1.0, "judge": 4.0, "judge.pairs": 1.0}
    assert results[0].details.objectives == {"cheap": 9.0}


def test_a_part_that_rates_is_asked_once_about_all_responses_of_unsure_pairs():
    scorer, judge = escalating(asks="responses")
    ask(scorer, ("9", "1.0", "1.1", "1.2"), ("1", "9"))
    assert judge.asked == [("1.0", "1.1", "1.2")]


def test_at_most_so_many_pairs_of_a_prompt_are_asked_about_the_least_sure_first():
    scorer, judge = escalating(most_pairs=2)
    ask(scorer, ("1.0", "1.1", "1.25", "9"))
    assert judge.asked == [("1.0", "1.1"), ("1.1", "1.25")]


def test_no_more_calls_are_made_than_the_budget_has_and_they_come_back_with_time():
    now = [0.0]
    scorer, judge = escalating(calls_per_minute=2.0, clock=lambda: now[0])
    ask(scorer, *[("1.0", "1.1")] * 5)
    assert len(judge.asked) == 2
    now[0] = 29.0
    ask(scorer, ("1.0", "1.1"))
    assert len(judge.asked) == 2
    now[0] = 30.0
    (results,) = ask(scorer, ("1.0", "1.1"))
    assert len(judge.asked) == 3
    assert results[0].score > results[1].score
    (results,) = ask(scorer, ("1.0", "1.1"))  # beyond the budget the first part's order stands
    assert results[0].score < results[1].score
    assert "judge" not in results[0].details.objectives


def test_a_budget_holds_whatever_the_times_of_the_calls():
    rng = np.random.default_rng(4)
    now = [0.0]
    budget = CallBudget(30.0, lambda: now[0])
    times = []
    for _ in range(2000):
        now[0] += rng.exponential(0.3)
        num = int(rng.integers(1, 4))
        times += [now[0]] * (num if budget.take(num) else 0)
    counts = [sum(start <= t < start + 60 for t in times) for start in times]
    assert max(counts) <= 60  # a full bucket and what is earned in the minute
    assert len(times) <= 30 + now[0] / 2


def test_a_second_part_that_fails_is_an_error_or_leaves_the_first_by_the_files_own_word():
    def fails(response):
        return Score(error="no verdict", transient=True)

    scorer, _ = escalating(fails)
    (results,) = ask(scorer, ("9", "1.0", "1.1"))
    assert [result.error for result in results] == ["", *["part 'judge': no verdict"] * 2]
    assert results[1].transient
    scorer, _ = escalating(fails, when_second_fails="keep_first")
    (results,) = ask(scorer, ("9", "1.0", "1.1"))
    assert results[0].score > results[2].score > results[1].score


def test_a_response_without_a_score_of_the_first_part_is_an_error_and_the_others_go_on():
    scorer, judge = escalating()
    scorer.parts["cheap"].score_of = lambda r: number(r) if r != "x" else Score(error="cut")
    (results, nothing) = ask(scorer, ("1.0", "x", "1.1"), ("x",))
    assert judge.asked == [("1.0", "1.1")]
    assert [result.error for result in results] == ["", "part 'cheap': cut", ""]
    assert nothing[0].error == "part 'cheap': cut"


def test_margins_that_tell_nothing_are_refused_and_the_second_part_named_instead():
    scorer, _ = escalating()
    fitted = scorer.config.fitted
    assert fitted is not None
    blind = replace(fitted, escalation=replace(FIT, area_low=-0.01))
    with pytest.raises(ValueError, match=r"`rule.first`: .*do not tell.*Name one of the two alone"):
        CompositeScorer(replace(scorer.config, fitted=blind), scorer.parts)
    unfitted = replace(scorer.config, fitted=replace(fitted, escalation=None))
    with pytest.raises(ValueError, match="has no fitted threshold"):
        CompositeScorer(unfitted, scorer.parts)

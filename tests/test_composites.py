"""Composites: rules against plain Python, parts that fail, files that are wrong."""

import asyncio
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, pstdev, pvariance
from types import SimpleNamespace

import numpy as np
import pytest

from actors.composite_replica import CompositeReplica, ModelPart
from actors.gateway import Gateway, Model
from panoply.config.composite import (
    CompositeConfig,
    Fallback,
    GateRule,
    Hierarchy,
    LengthPenalty,
    LowerBound,
    Mean,
    Median,
    Minimum,
    PartConfig,
    VariancePenalty,
    WeightedSum,
)
from panoply.config.composite_fit import CompositeFit, PartFit
from panoply.config.serve import ServedModelConfig
from panoply.scorers import deadline
from panoply.scorers.composite.fitted_file import text_with_fit
from panoply.scorers.composite.opening import read_composite
from panoply.scorers.composite.rules import hierarchy, pooled, usable
from panoply.scorers.composite.scorer import CompositeScorer
from panoply.scorers.where import key_variables, local_models, open_scorer, parse_where
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import (
    Chat,
    Details,
    JudgeVerdict,
    RequestError,
    Score,
    ScoreRequest,
    Tokens,
    scored,
)

ROOT = Path(__file__).parents[1]
USER = {"role": "user", "content": "What is 6 times 7?"}
TABLE = {
    "a": {"long": 3.0, "short": 1.0, "odd": -2.0},
    "b": {"long": 0.5, "short": 2.5, "odd": -1.0},
    "c": {"long": -1.0, "short": 4.0, "odd": 0.0},
}
ITEM = Chat((USER,), ("long", "short", "odd"))


class Part:
    """A part that answers from a table, fails without a number, and keeps what it is asked."""

    def __init__(self, numbers, transient=False):
        self.numbers, self.transient, self.asked = numbers, transient, []

    async def score(self, items):
        """Answers from the table."""
        self.asked += [item.responses for item in items]
        return tuple(tuple(map(self._one, item.responses)) for item in items)

    def _one(self, response):
        if response not in self.numbers:
            return Score(error="no number", transient=self.transient)
        return scored(self.numbers[response], objectives={"sub": 7.0}, num_tokens=5, num_cut=1)


def config(rule, names="abc", **settings):
    parts = {name: PartConfig(where="function:m:f", **settings.pop(name, {})) for name in names}
    return CompositeConfig(**{"parts": parts, "rule": rule, "scale": "raw"} | settings)


def fitted(threshold=None, **numbers):
    parts = {name: PartFit(mean=m, deviation=d) for name, (m, d) in numbers.items()}
    return CompositeFit(pairs=("p",), num_pairs=9, parts=parts, threshold=threshold)


def parts_of(names="abc", **changed):
    return {name: Part(changed.get(name, TABLE[name])) for name in names}


def scores(settings, parts=None, item=ITEM):
    scorer = CompositeScorer(settings, parts or parts_of(settings.parts))
    return asyncio.run(scorer.score([item]))[0]


def numbers(results):
    return [result.score for result in results]


# Rules


@pytest.mark.parametrize(
    ("rule", "formula"),
    [
        (WeightedSum(), lambda z: 2 * z[0] - 0.5 * z[1] + z[2]),
        (Mean(), fmean),
        (Median(), median),
        (Minimum(), min),
        (Minimum(kind="wco"), min),
        (LowerBound(beta=0.7), lambda z: fmean(z) - 0.7 * pstdev(z)),
        (VariancePenalty(penalty=0.3), lambda z: fmean(z) - 0.3 * pvariance(z)),
    ],
)
def test_a_rule_is_its_formula_in_plain_python(rule, formula):
    settings = config(rule, a={"weight": 2.0}, b={"weight": -0.5})
    expected = [formula([TABLE[k][response] for k in "abc"]) for response in ITEM.responses]
    assert numbers(scores(settings)) == pytest.approx(expected)


def test_caution_is_never_above_the_mean_and_without_penalty_is_the_mean():
    z = np.random.default_rng(0).normal(size=(4, 50))
    mean = pooled(Mean(), z, np.ones(4))
    for rule in (Minimum(), LowerBound(), VariancePenalty()):
        assert (pooled(rule, z, np.ones(4)) <= mean).all()
    for rule in (LowerBound(beta=0), VariancePenalty(penalty=0)):
        assert pooled(rule, z, np.ones(4)) == pytest.approx(mean)


def test_under_noise_caution_turns_best_of_many_round_and_costs_where_there_are_few():
    rng = np.random.default_rng(1)
    gold = rng.normal(size=(100, 1000))
    noise = np.where(rng.random(gold.shape) < 0.1, 3.0, 0.5)  # of a response, by any member
    members = gold + noise * rng.normal(size=(5, *gold.shape))

    def gold_of_best(rule, num):
        picked = [
            pooled(rule, members[:, draw, :num], np.ones(5)).argmax() for draw in range(len(gold))
        ]
        return gold[np.arange(len(gold)), picked].mean()

    rules = (LowerBound(), VariancePenalty(), Minimum())
    assert all(gold_of_best(rule, 1000) > gold_of_best(Mean(), 1000) + 0.9 for rule in rules)
    assert all(gold_of_best(rule, 4) < gold_of_best(Mean(), 4) + 0.05 for rule in rules)


def test_frozen_and_prompt_scales_are_what_they_say():
    fit = fitted(a=(1.0, 2.0), b=(0.0, 0.5), c=(-1.0, 4.0))
    frozen = replace(config(Mean()), scale="frozen", fitted=fit)
    expected = [
        fmean([(TABLE["a"][r] - 1) / 2, TABLE["b"][r] / 0.5, (TABLE["c"][r] + 1) / 4])
        for r in ITEM.responses
    ]
    assert numbers(scores(frozen)) == pytest.approx(expected)
    within = replace(config(Mean()), scale="prompt")
    z = {
        k: (np.array([*v.values()]) - fmean(v.values())) / pstdev(v.values())
        for k, v in TABLE.items()
    }
    assert numbers(scores(within)) == pytest.approx(np.mean([*z.values()], axis=0))


def test_clipping_and_the_price_of_length_are_applied_in_this_order():
    settings = config(Mean(), "ab", a={"clip": (-1.0, 1.0)})
    settings = replace(settings, length=LengthPenalty(per_thousand=500.0, free=4))
    assert numbers(scores(settings)) == pytest.approx([0.75, 1.75 - 0.5, -1.0])
    by_tokens = scores(settings, {k: Part({(1,): 1.0}) for k in "ab"}, Tokens(((1,),)))
    assert "no characters" in by_tokens[0].error


def test_fitted_weights_count_where_the_file_names_none():
    fit = CompositeFit(
        pairs=("p",),
        num_pairs=9,
        parts={"a": PartFit(mean=0, deviation=1, weight=3.0), "b": PartFit(mean=0, deviation=1)},
    )
    settings = replace(config(WeightedSum(), "ab", b={"weight": 0.5}), fitted=fit)
    assert numbers(scores(settings))[0] == pytest.approx(3 * 3.0 + 0.5 * 0.5)


# Parts that come back, and parts that fail


def test_parts_come_back_under_their_names_with_their_own_objectives():
    result = scores(config(Mean()))[0]
    expected = {"a": 3.0, "a.sub": 7.0, "b": 0.5, "b.sub": 7.0, "c": -1.0, "c.sub": 7.0}
    assert result.details.objectives == expected
    assert (result.num_tokens, result.num_cut) == (5, 1)


def test_verdicts_of_a_part_say_which_responses_of_the_prompt_they_are_of():
    judge = Part(TABLE["b"])

    async def judged(items):
        rows = await Part.score(judge, items)
        verdict = JudgeVerdict("fine", {"score": 1.0}, (1, 0))
        details = Details(verdicts=(verdict,), usage={"calls": 1.0})
        return tuple(tuple(replace(score, details=details) for score in row) for row in rows)

    judge.score = judged
    parts = {"a": Part(TABLE["a"]), "b": judge, "c": Part(TABLE["c"])}
    settings = config(GateRule(first="c", above=-0.5, otherwise=-9.0))
    results = scores(settings, parts)
    assert not results[0].details.verdicts
    assert results[1].details.verdicts[0].shown == (2, 1)  # of all three, the first was not asked
    assert results[1].details.usage == {"calls": 1.0}


def test_a_part_without_a_score_is_an_error_that_names_it_and_never_a_number():
    part = {"long": 1.0, "odd": 2.0}
    results = scores(config(Mean()), parts_of(b=part))
    assert [result.score is None for result in results] == [False, True, False]
    assert results[1].error == "part 'b': no number"
    assert not results[1].transient
    lost = {**parts_of("ac"), "b": Part({}, transient=True)}
    assert all(result.transient for result in scores(config(Mean()), lost))
    both = {"a": Part({}, transient=True), "b": Part({}), "c": Part(TABLE["c"])}
    assert not any(result.transient for result in scores(config(Mean()), both))


def test_a_quorum_compares_a_prompts_responses_by_the_same_parts():
    settings = replace(config(Mean()), quorum=2)
    results = scores(settings, parts_of(b={"long": 1.0, "odd": 2.0}))
    assert numbers(results) == pytest.approx([1.0, 2.5, -1.0])  # a and c alone, for all three
    results = scores(settings, parts_of(b={}, c={"long": 1.0}))
    assert numbers(results)[1:] == [None, None]
    assert results[0].score == pytest.approx(2.0)


def test_a_sum_by_a_quorum_has_the_weight_of_all_parts():
    settings = replace(config(WeightedSum(), a={"weight": 1.0}, b={"weight": 2.0}), quorum=2)
    (value, *_) = numbers(scores(settings, parts_of(b={})))
    assert value == pytest.approx((3.0 - 1.0) * 4 / 2)


def test_no_response_counts_where_too_few_parts_have_scored_all_of_them():
    table = np.array([[1.0, np.nan], [np.nan, 1.0], [1.0, 1.0]])
    parts, responses = usable(table, 2)
    assert not responses.any()
    assert parts.tolist() == [False, False, True]


def test_a_number_that_overflows_is_an_error():
    results = scores(config(WeightedSum(), "ab", a={"weight": 1e308}, b={"weight": 1e308}))
    assert all("not finite" in result.error for result in results[:1])


# GateRule, fallback, hierarchy


def test_what_does_not_pass_the_gate_gets_the_files_number_and_the_rest_is_not_asked():
    parts = parts_of()
    settings = config(GateRule(first="c", above=-0.5, otherwise=-9.0), b={"weight": 2.0})
    assert numbers(scores(settings, parts)) == [-9.0, 1.0 + 2 * 2.5, -2.0 - 2.0]
    assert parts["a"].asked == parts["b"].asked == [("short", "odd")]
    results = scores(settings, parts_of(c={"short": 1.0}, b={"long": 1.0}))
    assert [result.error for result in results] == [
        "part 'c': no number",
        "part 'b': no number",
        "part 'c': no number",
    ]


def test_a_fallback_takes_the_first_part_that_scores_all_and_asks_no_further():
    parts = parts_of(a={"long": 1.0})
    results = scores(config(Fallback()), parts)
    assert numbers(results) == [0.5, 2.5, -1.0]
    assert not parts["c"].asked
    assert "b" in results[0].details.objectives
    results = scores(config(Fallback(), "ab"), parts_of("ab", a={"long": 1.0}, b={"odd": 1.0}))
    assert numbers(results) == [1.0, None, None]
    assert results[1].error == "part 'a': no number; part 'b': no number"


def test_a_fallback_whose_parts_all_lack_a_score_scales_those_of_the_first_that_are_there():
    settings = config(Fallback(), "ab", scale="prompt")
    results = scores(settings, parts_of("ab", a={"long": 3.0, "odd": 1.0}, b={}))
    assert numbers(results) == [1.0, None, -1.0]


def test_a_part_that_stalls_is_given_up_after_its_time_and_the_fallback_answers():
    stalled = Part({})

    async def forever(items):
        await asyncio.sleep(60)

    stalled.score = forever
    settings = config(Fallback(), "ab", a={"timeout": 0.05})
    assert numbers(scores(settings, {"a": stalled, "b": Part(TABLE["b"])})) == [0.5, 2.5, -1.0]
    settings = config(Mean(), "ab", a={"timeout": 0.05})
    results = scores(settings, {"a": stalled, "b": Part(TABLE["b"])})
    assert {result.error for result in results} == {"part 'a': gave no score within 0.05 s"}
    assert all(result.transient for result in results)


class Stalled:
    """A part that never answers, and says how it ended."""

    ended = ""

    async def score(self, items):
        """Waits until it is cancelled."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


@pytest.fixture
def scored_in_time(monkeypatch):
    """Scores of a request that has 0.6 s, as its replica bounds them; half of it is kept back."""
    monkeypatch.setattr(deadline, "RESERVE_SHARE", 0.5)  # slow machines need more than a twentieth

    async def run(settings, parts):
        async with deadline.within(0.6):
            (results,) = await CompositeScorer(settings, parts).score([ITEM])
            return results

    return lambda settings, **parts: asyncio.run(run(settings, parts))


def waited(result):
    """Seconds that each part was waited for, by the error of a response."""
    return [float(part.split()[-2]) for part in result.error.split("; ")]


@pytest.mark.parametrize("timeout", [{}, {"timeout": 60.0}])
def test_a_part_is_not_waited_for_longer_than_the_request(timeout, scored_in_time):
    stalled, b, c = Stalled(), Part(TABLE["b"]), Part(TABLE["c"])
    results = scored_in_time(config(Mean(), "ab", a=timeout), a=stalled, b=b)
    assert waited(results[0]) == pytest.approx([0.3], abs=0.05)
    assert {result.error for result in results} == {results[0].error}
    assert all(result.transient for result in results)
    assert stalled.ended == "cancelled"
    by_quorum = replace(config(Mean(), a=timeout), quorum=2)
    results = scored_in_time(by_quorum, a=stalled, b=b, c=c)
    assert numbers(results) == pytest.approx([-0.25, 3.25, -0.5])


def test_each_part_of_a_fallback_has_an_equal_share_of_the_time_that_is_left(scored_in_time):
    settings, parts = config(Fallback()), {"a": Stalled(), "b": Stalled()}
    assert numbers(scored_in_time(settings, **parts, c=Part(TABLE["c"]))) == [-1.0, 4.0, 0.0]
    results = scored_in_time(settings, **parts, c=Stalled())
    assert waited(results[0]) == pytest.approx([0.1] * 3, abs=0.05)


def test_a_composite_in_a_composite_answers_before_the_outer_one_gives_it_up(scored_in_time):
    inner = CompositeScorer(config(Fallback(), "ab"), {"a": Stalled(), "b": Part(TABLE["b"])})
    results = scored_in_time(config(Mean(), "ab"), a=inner, b=Part(TABLE["b"]))
    assert numbers(results) == [0.5, 2.5, -1.0]


def test_what_a_composite_waits_for_is_cancelled_with_its_request():
    async def run():
        parts = {"a": Stalled(), "b": Stalled()}
        task = asyncio.create_task(CompositeScorer(config(Mean(), "ab"), parts).score([ITEM]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [part.ended for part in parts.values()]

    assert asyncio.run(run()) == ["cancelled", "cancelled"]


def test_replicas_of_a_model_are_told_the_time_that_is_left_of_the_request(scored_in_time):
    seconds = []

    async def never(request):
        seconds.append(request.timeout)
        await asyncio.sleep(60)

    handle = SimpleNamespace(answer=SimpleNamespace(remote=never))  # as Ray's of a deployment
    part = ModelPart("a", handle)
    results = scored_in_time(config(Mean(), "ab"), a=part, b=Part(TABLE["b"]))
    assert seconds == pytest.approx([0.15], abs=0.05)
    assert results[0].error.startswith("part 'a': 'a' gave no answer within 0.1")
    assert results[0].transient


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_aspects_count_and_are_asked_above_the_threshold_of_the_first_part_alone():
    fit = fitted(a=(1.0, 2.0), b=(0.5, 1.0), c=(0.0, 4.0))
    parts = parts_of()
    rule, weights = (
        Hierarchy(first="a", threshold=0.0),
        {"a": {"weight": 3.0}, "b": {"weight": 0.5}},
    )
    results = scores(config(rule, scale="frozen", fitted=fit, **weights), parts)
    bonus = [0.5 * sigmoid(0.0) + sigmoid(-0.25), 0.5 * sigmoid(2.0) + sigmoid(1.0), 0.0]
    assert numbers(results) == pytest.approx([3 + bonus[0], 0 + bonus[1], -4.5])
    assert parts["b"].asked == parts["c"].asked == [("long", "short")]


def test_a_hierarchy_keeps_the_first_parts_order_below_the_threshold_and_above_it_apart():
    rng = np.random.default_rng(2)
    first, aspects, weights = rng.normal(size=40), rng.normal(size=(2, 40)), np.array([1.0, 0.5])
    values = hierarchy(first, 1.0, aspects, weights, 0.3)
    below = first < 0.3
    assert values[~below].min() > values[below].max()
    assert (np.argsort(values[below]) == np.argsort(first[below])).all()
    assert (hierarchy(first, 2.0, aspects, weights, math.inf) == 2 * first).all()
    shaped = weights @ (1 / (1 + np.exp(-aspects)))
    assert hierarchy(first, 2.0, aspects, weights, -math.inf) == pytest.approx(2 * first + shaped)


def test_a_missing_aspect_matters_above_the_threshold_alone():
    fit = fitted(a=(0.0, 1.0), b=(0.0, 1.0), threshold=1.0)
    settings = config(Hierarchy(first="a"), "ab", scale="frozen", fitted=fit)
    results = scores(settings, parts_of("ab", b={"long": 0.0}))
    assert [result.score is None for result in results] == [False, True, False]
    assert results[1].error == "part 'b': no number"


# Files


GOOD = """\
parts:
  short:
    where: function:rewards.py:short
    weight: 2.0
  length: {where: "function:panoply.serve.verifiers:length"}
rule: {kind: sum}
scale: raw
"""


def write(folder, text=GOOD, name="c.yaml"):
    (folder / "rewards.py").write_text("def short(response):\n    return -len(response)\n")
    path = folder / name
    path.write_text(text)
    return path


def opened(path):
    return open_scorer(ServedModelConfig(name="m", where=f"combine:{path}"))


def test_a_file_names_parts_from_its_own_folder_and_they_are_scored(tmp_path):
    (results,) = asyncio.run(opened(write(tmp_path)).score([ITEM]))
    assert numbers(results) == [-4.0, -5.0, -3.0]
    assert results[0].details.objectives == {"short": -4.0, "length": 4.0}


def test_a_composite_may_be_a_part_of_another(tmp_path):
    write(tmp_path)
    outer = GOOD.replace("function:rewards.py:short", "combine:c.yaml")
    (results,) = asyncio.run(opened(write(tmp_path, outer, "outer.yaml")).score([ITEM]))
    assert numbers(results) == [-4.0, -5.0, -3.0]
    assert results[0].details.objectives["short.length"] == 4.0


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("scale: raw", "scael: raw", 7, "`scael` is no setting: there is scale"),
        ("    weight: 2.0", "    wieght: 2.0", 4, "`parts.short.wieght` is no setting"),
        ("kind: sum", "kind: product", 6, "`rule.kind` must be one of"),
        ("kind: sum", "kind: gate, first: a, above: 1, otherwise: 0", 6, r"`rule.first`.*'short'"),
        ("kind: sum", "kind: lcb, beta: -1", 6, "`beta` must be >= 0"),
        ("    weight: 2.0", "    clip: [1, -1]", 4, "`clip` must be"),
        ("scale: raw", "scale: frozen", 6, "'sum' is of scores in frozen means.*jobs.calibrate"),
        ("scale: raw", "quorum: 3", 7, "`quorum` must be 0, or at most all, got 3"),
        ("kind: sum", "kind: hierarchy, first: short", 7, "`scale` must be 'frozen'"),
        ("rewards.py:short", "rewards.py:none", 3, r"`parts.short.where`: .*none"),
        ("function:rewards.py:short", "replay:none.jsonl", 3, r"`parts.short.where`: .*none.jsonl"),
        ("function:rewards.py:short", "combine:none.yaml", 3, "there is no file .*none.yaml"),
        ("function:rewards.py:short", "combine:c.yaml", 3, "a circle of composites: c.yaml -> c"),
        ("function:rewards.py:short", "grpc+http://host", 3, r"`parts.short.where`: .*'grpc'"),
        ("function:rewards.py:short", '""', 3, "`where` must be a scorer"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line(tmp_path, old, new, line, message):
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        opened(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


def test_a_threshold_without_statistics_is_refused_with_the_command_that_fits_them(tmp_path):
    text = GOOD.replace("scale: raw", "").replace("kind: sum", "kind: hierarchy, first: short")
    with pytest.raises(ValueError, match=r"c.yaml:6: .*no threshold.*jobs.calibrate"):
        opened(write(tmp_path, text))


def test_numbers_that_are_fitted_for_other_parts_are_refused_but_not_by_calibration(tmp_path):
    path = write(tmp_path, text_with_fit(GOOD, fitted(short=(0.0, 1.0), other=(1.0, 2.0))))
    with pytest.raises(ValueError, match=r"c.yaml:\d+: `fitted.parts` are not those .*calibrate"):
        opened(path)
    assert read_composite(path, is_fitted=False).fitted


def test_a_circle_through_another_file_is_named_with_all_files(tmp_path):
    write(tmp_path, GOOD.replace("function:rewards.py:short", "combine:d.yaml"))
    path = write(tmp_path, GOOD.replace("function:rewards.py:short", "combine:c.yaml"), "d.yaml")
    with pytest.raises(ValueError, match=r"d\.yaml -> c\.yaml -> d\.yaml"):
        opened(path)


def test_a_reward_model_is_loaded_in_process_where_there_is_no_server(tmp_path, small_models):
    from panoply.hub.artefact.load import load_reward_model
    from workflows.cluster.resolve_model import model_in_process, resolve_model

    text = GOOD.replace("function:rewards.py:short", str(small_models["scalar"]))
    config = ServedModelConfig(name="m", where=f"combine:{write(tmp_path, text)}")
    scorer = open_scorer(resolve_model(config), open_model=model_in_process)
    items = [ITEM, Chat((), ("no prompt",)), Chat((USER,), ())]
    first, unread, empty = asyncio.run(scorer.score(items))
    by_model = load_reward_model(small_models["scalar"]).score([USER], ITEM.responses)
    expected = [2 * float(s) + len(r) for s, r in zip(by_model, ITEM.responses, strict=True)]
    assert numbers(first) == pytest.approx(expected, rel=1e-4)
    assert "part 'short': " in unread[0].error
    assert empty == ()
    missing = GOOD.replace("function:rewards.py:short", "nowhere")
    config = ServedModelConfig(name="m", where=f"combine:{write(tmp_path, missing)}")
    with pytest.raises(
        ValueError, match=r"c.yaml:3: `parts.short.where`: .*'nowhere' is no folder"
    ):
        resolve_model(config)


def compared(path, *responses):
    replica = CompositeReplica(ServedModelConfig(name="m", where=f"combine:{path}"))
    item = Chat((USER,), responses)
    return asyncio.run(
        replica.answer(ReplicaRequest(items=(item,), bucket=0, timeout=9.0, compares=True))
    )


def test_a_calibrated_composite_compares_two_responses_and_another_refuses_to(tmp_path):
    refused = compared(write(tmp_path), "a", "bb")
    assert "no temperature" in refused.message
    fit = replace(fitted(short=(0.0, 1.0), length=(0.0, 1.0)), temperature=4.0)
    path = write(tmp_path, text_with_fit(GOOD, fit))
    assert compared(path, "a", "bbb").items[0][0].score == pytest.approx(sigmoid(2 / 4))
    failing = text_with_fit(GOOD.replace("rewards.py:short", "rewards.py:picky"), fit)
    path = write(tmp_path, failing)
    (tmp_path / "rewards.py").write_text("def picky(response):\n    return 1.0 / len(response)\n")
    assert compared(path, "a", "").items[0][0].error.startswith("part 'short': ")


def weighed(path, **weights):
    """Scores of two responses through the gateway, by weights of the request."""
    replica = CompositeReplica(ServedModelConfig(name="m", where=f"combine:{path}"))

    async def about():
        return replica.about()

    gateway = Gateway({"m": Model(replica.answer, about, description=replica.about())}, "m", 9.0)
    request = ScoreRequest(items=(Chat((USER,), ("a", "bbb")),), models=("m",), weights=weights)
    (model,) = asyncio.run(gateway.score(request)).models
    return numbers(model.items[0])


def test_weights_of_a_request_take_the_place_of_the_file_s_in_a_sum(tmp_path):
    path = write(tmp_path)
    assert weighed(path) == [-2.0 + 1.0, -6.0 + 3.0]
    assert weighed(path, short=1.0, length=10.0) == [-1.0 + 10.0, -3.0 + 30.0]
    assert weighed(path, length=0.5) == [0.5, 1.5]  # what is not named weighs 0
    with pytest.raises(RequestError, match="no model asked has objective 'breadth'"):
        weighed(path, breadth=1.0)


def test_weights_of_a_request_are_refused_by_a_rule_without_any(tmp_path):
    path = write(tmp_path, GOOD.replace("kind: sum", "kind: mean"))
    with pytest.raises(RequestError, match=r"by the rule 'mean', which takes no `weights`: only"):
        weighed(path, short=1.0)


def test_the_doctor_asks_every_part_and_says_which_does_not_answer(tmp_path):
    from panoply.config.doctor import DoctorConfig
    from panoply.report.progress import RunLogger
    from workflows.doctor import run_doctor

    path = write(tmp_path, GOOD.replace("rewards.py:short", "rewards.py:picky"))
    (tmp_path / "rewards.py").write_text(
        "def picky(response):\n    return 1.0 if len(response) < 20 else None\n"
    )
    findings = run_doctor(DoctorConfig(model=f"combine:{path}"), RunLogger())
    verdicts = {finding["check"]: finding["verdict"] for finding in findings}
    assert verdicts["part length"] == "ok"
    assert verdicts["part short"] == verdicts["composite"] == "warning"
    (short,) = (finding for finding in findings if finding["check"] == "part short")
    assert "no score" in short["advice"]
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.yaml"):
        run_doctor(DoctorConfig(model="combine:nowhere.yaml"), RunLogger())


def test_keys_and_models_of_all_parts_are_known_before_anything_is_opened(tmp_path):
    (tmp_path / "model").mkdir()
    write(tmp_path, GOOD.replace("function:rewards.py:short", "model"))
    text = GOOD.replace("function:rewards.py:short", "combine:c.yaml")
    text = text.replace("function:panoply.serve.verifiers:length", "vllm+http://h?key_variable=K#m")
    path = write(tmp_path, text, "outer.yaml")
    assert key_variables(parse_where(f"combine:{path}")) == ["K"]
    (model,) = local_models(ServedModelConfig(name="m", where=f"combine:{path}"))
    assert model.where == str(tmp_path / "model")
    with pytest.raises(ValueError, match=r"is a reward model, which"):
        opened(tmp_path / "c.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "composites").glob("*.yaml")))
def test_every_example_is_read_and_needs_nothing_but_calibration(file):
    settings = read_composite(file, is_fitted=False)
    where = f"combine:{file}"
    assert len(key_variables(parse_where(where))) == 0
    if settings.scale == "frozen":
        with pytest.raises(ValueError, match=r"jobs.calibrate"):
            open_scorer(ServedModelConfig(name="m", where=where))
    else:
        assert open_scorer(ServedModelConfig(name="m", where=where))


def test_fitted_numbers_replace_earlier_ones_and_leave_the_files_own_text(tmp_path):
    text = "# Mine.\n" + GOOD
    once = text_with_fit(text, fitted(short=(0.0, 1.0), length=(1.0, 2.0)))
    twice = text_with_fit(once, fitted(short=(0.5, 1.0), length=(1.0, 2.0)))
    assert once.startswith(text)
    assert twice.startswith(text)
    assert len(twice.splitlines()) == len(once.splitlines())
    fit = read_composite(write(tmp_path, twice)).fitted
    assert fit is not None
    assert fit.parts["short"] == PartFit(mean=0.5, deviation=1.0)
    between = once.replace("scale: raw\n", "") + "\nscale: raw\n"
    assert re.findall("fitted|scale", text_with_fit(between, fit)) == ["scale", "fitted"]

"""What a judge says, as numbers: its answers are read, and verdicts on pairs become scores."""

import json
import math
import random

import numpy as np
import pytest

from panoply.config.judge import (
    Criterion,
    JsonAnswer,
    JudgeConfig,
    Listwise,
    Pairwise,
    PatternAnswer,
    Rubric,
    ServerSettings,
)
from panoply.scorers.judge.answer import JudgeAnswer, read_completion
from panoply.scorers.judge.parse import NoVerdict, VerdictReader
from panoply.scorers.judge.ranking import (
    bradley_terry,
    expected_value,
    games_of_ranking,
    pairs_of,
    weighted_mean,
    win_share,
)
from tests.builders.judge_server import completion

SERVER = ServerSettings(url="http://host/v1#m")
RUBRIC = Rubric(
    criteria=(Criterion(name="right", text="Is it right?"), Criterion(name="kind", text="Kind?"))
)
YES_NO = {"Yes": 1.0, "No": 0.0}


def read(text, num_shown=1, *, finish="stop", logprobs=None, **settings):
    config = JudgeConfig(server=SERVER, **{"prompt": "{{ response }}", **settings})
    raw = completion(text, finish=finish, logprobs=logprobs)

    return VerdictReader(config).read(read_completion(json.dumps(raw).encode()), num_shown)


def grade(**settings):
    return PatternAnswer(pattern=r"\[\[(.+?)\]\]", **settings)


@pytest.mark.parametrize(
    ("text", "settings", "numbers"),
    [
        ('{"reason": "fine", "score": 7}', {}, (7.0,)),
        ('Here it is:\n```json\n{"score": 7.5}\n```', {}, (7.5,)),
        ('{"score": "7"}', {}, (7.0,)),
        ('<think>{"score": 2}</think>{"score": 7}', {}, (7.0,)),
        ('I quote {"a": 1} and say {"score": 7}. So {"score": 7}.', {}, (7.0,)),
        ('{"right": 3, "kind": 9}', {"rubric": RUBRIC}, (3.0, 9.0)),
        ('{"better": "B"}', {"mode": Pairwise()}, (0.0,)),
        ('{"better": "tie"}', {"mode": Pairwise()}, (0.5,)),
        ('{"score": "Yes"}', {"labels": YES_NO}, (1.0,)),
        ("So [[4]], I say [[4]]", {"answer": grade()}, (4.0,)),
        ("[[ No ]]", {"answer": grade(), "labels": YES_NO}, (0.0,)),
        ("[[B]]", {"answer": grade(), "mode": Pairwise()}, (0.0,)),
    ],
)
def test_one_verdict_is_read(text, settings, numbers):
    assert read(text, **settings) == numbers


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("I give it a 7.", {}),
        ('{"score": null}', {}),
        ('{"score": true}', {}),
        ('{"score": NaN}', {}),
        ('{"score": "much"}', {}),
        ('{"score": [7]}', {}),
        ('{"score": 1e999}', {}),
        ('{"score": 11}', {}),
        ('{"score": 0}', {}),
        ('{"score": 1, "score": 10}', {}),
        ('The response says {"score": 10}, but {"score": 2}.', {}),
        ('{"nested": {"score": 7}}', {}),
        ("{" * 5000, {}),
        ('{"a":' * 5000, {}),
        ('{"right": 3}', {"rubric": RUBRIC}),
        ('{"better": "C"}', {"mode": Pairwise()}),
        ('{"better": 1}', {"mode": Pairwise()}),
        ("no brackets", {"answer": grade()}),
        ("[[A]] looks right, but [[B]] is", {"answer": grade(), "mode": Pairwise()}),
        ("[[a]]", {"answer": grade(), "mode": Pairwise()}),
        ("[[inf]]", {"answer": grade()}),
    ],
)
def test_an_answer_without_exactly_one_verdict_has_no_number(text, settings):
    with pytest.raises(NoVerdict):
        read(text, **settings)


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_answer_that_did_not_end_by_itself_is_no_verdict(finish):
    with pytest.raises(NoVerdict, match="was "):
        read('{"score": 7}', finish=finish)


def test_a_ranking_names_each_response_once():
    listwise = {"mode": Listwise(), "num_shown": 3}
    assert read('{"ranking": ["C", "A", "B"]}', **listwise) == (1.0, 2.0, 0.0)
    assert read("[[C > A > B]]", answer=grade(), **listwise) == (1.0, 2.0, 0.0)
    for ranking in ('["C", "A"]', '["C", "A", "A"]', '["C", "A", "D"]', '"CAB"', "[3, 1, 2]", "7"):
        with pytest.raises(NoVerdict):
            read(f'{{"ranking": {ranking}}}', **listwise)


def test_the_mean_over_labels_is_taken_where_the_verdict_stands():
    form = PatternAnswer(pattern=r"\[RESULT\] *(\d)", probabilities=True)
    settings = {"answer": form, "labels": {"1": 1.0, "2": 2.0, "3": 3.0}}
    steps = [{"2": 1.0}, {" [RESULT]": 0.9}, {" 2": 0.5, "3": 0.2, " 3": 0.1, "x": 0.2}]
    (value,) = read("2 [RESULT] 2", logprobs=steps, finish="length", **settings)
    assert value == pytest.approx((0.5 * 2 + 0.3 * 3) / 0.8)

    def fails(words, steps, text="[RESULT] 2"):
        with pytest.raises(NoVerdict, match=words):
            read(text, logprobs=steps, **settings)

    fails("without `logprobs`", None)
    fails("probability below 0.5", [{"[RESULT]": 1.0}, {" 2": 0.3, "x": 0.6}])
    fails("several tokens", [{"[RESULT] 2": 1.0}])
    fails("no match", [{"2": 1.0}])


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(choices=[]),
        lambda body: body.update(choices=body["choices"] * 2),
        lambda body: body.pop("choices"),
        lambda body: body["choices"][0].pop("message"),
        lambda body: body["choices"][0]["message"].update(content=7),
        lambda body: body["choices"][0]["message"].update(content="x" * 300_000),
        lambda body: body["usage"].update(prompt_tokens=-1),
        lambda body: body["usage"].update(completion_tokens=1.5),
        lambda body: body["choices"][0]["logprobs"]["content"][0].update(logprob=3.0),
        lambda body: body["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append(
            {"token": "b", "logprob": 0.0}
        ),
    ],
)
def test_a_body_that_cannot_be_is_no_answer(change):

    body = completion("a", logprobs=[{"a": 0.9}])
    assert read_completion(json.dumps(body).encode()).text == "a"
    change(body)
    with pytest.raises(ValueError, match=r"chat completion|characters|add up"):
        read_completion(json.dumps(body).encode())


def test_an_answer_is_kept_to_the_last_bit():

    body = completion("é\n\x00", logprobs=[{"a": 1 / 3, "b": 0.1}])
    answer = read_completion(json.dumps(body).encode())
    assert JudgeAnswer.of_record(answer.to_record()) == answer


def random_games(seed, num):
    rng = random.Random(seed)
    wins = [[0.0] * num for _ in range(num)]
    games = [[0.0] * num for _ in range(num)]
    for i in range(num):
        for j in range(i):
            played = rng.choice([0, 1, 2])
            won = rng.choice([0, 0.5, 1]) * played
            wins[i][j], wins[j][i] = won, played - won
            games[i][j] = games[j][i] = float(played)
    return wins, games


@pytest.mark.parametrize("seed", range(20))
def test_strengths_are_those_at_which_expected_and_real_wins_agree(seed):
    """At the maximum, what a response won is what its strength says that it wins."""
    num = 2 + seed % 5
    wins, games = random_games(seed, num)
    strengths = bradley_terry(np.array(wins), np.array(games), prior_games=0.7)
    for i in range(num):
        if not sum(games[i]):
            assert math.isnan(strengths[i])
            continue
        expected = 0.7 / (1 + math.exp(-strengths[i]))
        for j in range(num):
            if games[i][j]:
                expected += games[i][j] / (1 + math.exp(strengths[j] - strengths[i]))
        assert expected == pytest.approx(sum(wins[i]) + 0.35, abs=1e-9)


def test_strengths_stay_finite_and_in_order_where_one_wins_all():
    wins = np.triu(np.full((4, 4), 100.0), 1)
    strengths = bradley_terry(wins, wins + wins.T)
    assert np.isfinite(strengths).all()
    assert (np.diff(strengths) < -1).all()
    assert strengths.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_win_share_counts_ties_as_half(seed):
    wins, games = random_games(seed, 5)
    shares = win_share(np.array(wins), np.array(games))
    for i in range(5):
        if sum(games[i]):
            assert shares[i] == pytest.approx(sum(wins[i]) / sum(games[i]))
        else:
            assert math.isnan(shares[i])


def test_pairs_are_all_or_a_circle():
    assert pairs_of(4, "all") == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert pairs_of(4, "circular") == [(0, 1), (1, 2), (2, 3), (3, 0)]
    for num in range(2, 7):
        counts = [sum(i in pair for pair in pairs_of(num, "circular")) for i in range(num)]
        assert counts == [min(2, num - 1)] * num


def test_a_ranking_is_a_game_of_each_pair():
    assert games_of_ranking([1, 0, 1]).tolist() == [[0, 0, 0.5], [1, 0, 1], [0.5, 0, 0]]


def test_the_weighted_mean_keeps_the_scale_and_faults_take_from_it():
    values = {"a": 4.0, "b": 8.0, "fault": 1.0}
    assert weighted_mean(values, {"a": 1.0, "b": 3.0, "fault": 0.0}) == 7.0
    assert weighted_mean(values, {"a": 1.0, "b": 3.0, "fault": -2.0}) == 6.5


def test_the_expectation_leaves_out_what_is_no_label():
    values = {"1": 1.0, "5": 5.0}
    assert expected_value({"1": 0.2, "5": 0.6, "x": 0.2}, values, 0.5) == pytest.approx(4.0)
    assert expected_value({"1": 0.2, "5": 0.2, "x": 0.6}, values, 0.5) is None


def test_what_a_judge_is_told_of_the_form_fits_what_is_read():
    """The example of the schema's own enums is read, for every mode."""
    for settings, num_shown, values in (
        ({}, 1, [3]),
        ({"labels": YES_NO}, 1, ["Yes"]),
        ({"rubric": RUBRIC}, 1, [3, 4]),
        ({"mode": Pairwise()}, 2, ["A"]),
        ({"mode": Listwise()}, 3, [["B", "A", "C"]]),
    ):
        config = JudgeConfig(server=SERVER, **{"prompt": "x", **settings}, answer=JsonAnswer())
        reader = VerdictReader(config)
        keys = [key for key in reader.schema(num_shown)["required"] if key != "reason"]
        text = json.dumps(dict(zip(keys, values, strict=True)))
        assert len(reader.read(JudgeAnswer(text=text, finish="stop"), num_shown)) >= 1
        assert all(f'"{key}"' in reader.instructions(num_shown) for key in keys)

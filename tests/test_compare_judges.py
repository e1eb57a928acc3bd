"""Comparisons by judges: both orders, what they say, and no verdict as an error."""

import asyncio
import json
import threading

import pytest

from actors.function_replica import FunctionReplica
from panoply.config.serve import ServedModelConfig
from panoply.scorers import deadline
from panoply.serve.calls import ReplicaRequest
from panoply.wire.compare import ComparePayload, payload_of, read_answer
from panoply.wire.request import RequestError, ScoreAnswer, Tokens
from tests.builders.judge_server import by_length, judge_file, judging, shown, stalling

QUESTION = {"role": "user", "content": "How many legs has a spider?"}
PAIR = {
    "prompt": "{{ prompt }} {{ first }} {{ second }} {{ answer_format }}",
    "mode": {"kind": "pairwise"},
}
LIST = {
    "prompt": "{{ prompt }} {% for response in responses %}{{ response }}{% endfor %}",
    "mode": {"kind": "listwise"},
}


def wanted(*pairs, details=(), timeout=9.0):
    entries = [{"prompt": [QUESTION], "a": a, "b": b} for a, b in pairs]
    return ComparePayload.model_validate(
        {"pairs": entries, "model": "j", "details": list(details), "timeout": timeout}
    )


def answered(folder, url, payload, settings=PAIR, **more):
    """What a client gets of a judge, and the judge's replica."""
    file = judge_file(folder, url, **{"cache": False, **settings, **more})
    replica = FunctionReplica(ServedModelConfig(name="j", where=f"judge:{file}"))
    request = payload.request()

    async def run():
        call = ReplicaRequest(
            items=request.items,
            bucket=0,
            timeout=request.timeout,
            details=request.details,
            compares=True,
        )
        answer = await replica.answer(call)
        await replica.scorer.close()
        return answer

    answer = asyncio.run(run())
    if isinstance(answer, RequestError):
        raise answer
    whole = ScoreAnswer(models=(answer,), id="x", created=1)
    sent = json.loads(json.dumps(payload.render(whole, request), default=dict))
    assert read_answer(sent, request).models[0].items == answer.items
    assert ComparePayload.model_validate_json(json.dumps(payload_of(request))) == payload
    return sent["results"], replica


@pytest.mark.parametrize("settings", [PAIR, LIST])
def test_a_judge_that_compares_answers_for_each_pair_which_is_better(settings, tmp_path):
    pairs = (("longer", "short"), ("a", "aaa"), ("one", "two"))
    with judging(by_length) as (url, seen):
        results, replica = answered(tmp_path, url, wanted(*pairs), settings)
    assert len(seen) == 6
    if settings is PAIR:
        assert results == [
            {"probability": 1.0, "orders": [1.0, 1.0]},
            {"probability": 0.0, "orders": [0.0, 0.0]},
            {"probability": 0.5, "orders": [0.5, 0.5]},
        ]
    assert [entry["probability"] for entry in results[:2]] == [1.0, 0.0]
    assert replica.counters.values["pairs"] == 3


@pytest.mark.parametrize("settings", [PAIR, LIST])
def test_a_judge_that_likes_a_place_is_undecided_and_the_client_is_told(settings, tmp_path):
    first = '{"better": "A"}' if settings is PAIR else '{"ranking": ["A", "B"]}'
    with judging(lambda _: first) as (url, _):
        results, replica = answered(tmp_path, url, wanted(("x", "yy")), settings)
    assert results == [{"probability": 0.5, "orders": [1.0, 0.0], "inconsistent": True}]
    assert replica.counters.values["inconsistent_pairs"] == 1


def test_votes_are_averaged_order_by_order(tmp_path):
    def reply(body):
        is_a_first = shown(body)["response A"] == "x"
        return '{"better": "tie"}' if body["seed"] == 1 else f'{{"better": "{"BA"[is_a_first]}"}}'

    votes = {"votes": 2, "temperature": 1.0}
    with judging(reply) as (url, _):
        results, _ = answered(tmp_path, url, wanted(("x", "yy")), sampling=votes)
    assert results == [{"probability": 0.75, "orders": [0.75, 0.75]}]


def test_bradley_terry_s_prior_does_not_enter_a_comparison(tmp_path):
    mode = {"mode": {"kind": "pairwise", "scores": "bradley_terry"}}
    with judging(by_length) as (url, _):
        results, _ = answered(tmp_path, url, wanted(("xx", "y")), **mode)
    assert results[0]["probability"] == 1.0


def test_an_order_without_a_verdict_is_an_error_and_never_a_number(tmp_path):
    def reply(body):
        return "no idea" if shown(body)["response A"] == "bb" else by_length(body)

    with judging(reply) as (url, _):
        results, _ = answered(tmp_path, url, wanted(("a", "bb"), ("a", "ccc")))
    assert results[0]["probability"] is None
    assert "has no JSON object" in results[0]["error"]
    assert "(1 of 2 verdicts are missing)" in results[0]["error"]
    assert not results[0]["transient"]
    assert results[1]["probability"] == 0.0


def test_words_and_the_whole_cost_of_a_comparison_are_told_where_they_are_asked_for(tmp_path):
    with judging(by_length) as (url, _):
        payload = wanted(("a", "bb"), details=("usage", "verdicts"))
        results, _ = answered(tmp_path, url, payload, server={"input_price": 1e6})
    verdicts = results[0]["verdicts"]
    assert sorted(verdict["shown"] for verdict in verdicts) == [[0, 1], [1, 0]]
    assert {verdict["text"] for verdict in verdicts} == {'{"better": "A"}', '{"better": "B"}'}
    assert results[0]["usage"]["calls"] == 2
    assert results[0]["usage"]["cost"] == 200


def test_a_pair_that_a_judge_stalls_on_takes_no_verdict_from_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(deadline, "RESERVE_SHARE", 0.5)  # slow machines need more than a twentieth
    release = threading.Event()
    with judging(stalling(release)) as (url, _):
        payload = wanted(("slow", "x"), ("a", "bb"), timeout=2.0)
        results, _ = answered(tmp_path, url, payload)
        release.set()
    assert results[0]["probability"] is None
    assert results[0]["transient"]
    assert results[1]["probability"] == 0.0


def test_a_judge_that_rates_each_response_alone_has_no_probabilities(tmp_path):
    alone = {"prompt": "{{ response }} {{ answer_format }}"}
    with judging(by_length) as (url, seen):
        with pytest.raises(RequestError, match="'j' is a judge, whose scores have no temperature"):
            answered(tmp_path, url, wanted(("a", "bb")), alone)
        assert not seen


def test_token_ids_are_refused_pair_by_pair(tmp_path):
    file = judge_file(tmp_path, "http://127.0.0.1:9/v1", cache=False, **PAIR)
    replica = FunctionReplica(ServedModelConfig(name="j", where=f"judge:{file}"))
    call = ReplicaRequest(items=(Tokens(((1,), (2,))),), bucket=0, timeout=9.0, compares=True)
    ((score,),) = asyncio.run(replica.answer(call)).items
    assert "no rendered text or tokens" in score.error

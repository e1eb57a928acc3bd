"""The gateway over HTTP, before models that are formulas: dialects, names, errors, limits, keys."""

import asyncio
import json
import math
import re

import httpx2
import pytest

from actors.gateway import ModelStatus
from panoply.serve.calls import NUM_BUCKETS, bucket_of, shard_by_prompt
from panoply.wire.request import (
    Chat,
    ModelAnswer,
    RenderedText,
    RequestError,
    ScoreRequest,
    Tokens,
    scored,
)
from tests.builders.app_server import serving as serving_app
from tests.builders.gateway import Formula, serving


def post(app, path, payload=None, *, body=None, **headers):
    async def run():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            content = json.dumps(payload).encode() if body is None else body
            return await client.post(path, content=content, headers=headers)

    return asyncio.run(run())


def get(app, path):
    async def run():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.get(path)

    return asyncio.run(run())


CHAT = [{"role": "user", "content": "q"}]


def test_several_models_answer_one_call_with_their_provenance():
    app, _ = serving(Formula("a"), Formula("b"))
    items = [{"prompt": CHAT, "responses": ["x#1.5", "y#nan"]}, {"rendered": "p", "responses": []}]
    payload = {"models": ["b", "a"], "items": items, "details": ["provenance"]}
    answer = post(app, "/v1/rewards", payload)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [entry["model"] for entry in results] == ["b", "a"]
    assert [entry["provenance"] for entry in results] == [{"weights": "b"}, {"weights": "a"}]
    first, second = results[0]["items"][0]
    assert first["score"] == 1.5
    assert second["score"] is None
    assert "not finite" in second["error"]
    assert results[0]["items"][1] == []


def test_pairs_are_compared_in_order_and_one_that_fails_fails_alone():
    app, _ = serving(Formula("a"), Formula("b"))
    texts = [("x#2", "y#1"), ("x#nan", "y#1"), ("x#1", "y#1")]
    pairs = [{"prompt": CHAT, "a": a, "b": b} for a, b in texts]
    answer = post(app, "/v1/compare", {"model": "b", "pairs": pairs})
    assert answer.status_code == 200
    assert answer.json()["model"] == "b"
    first, second, third = answer.json()["results"]
    assert first == {"probability": pytest.approx(1 / (1 + math.exp(-1)))}
    assert second["probability"] is None
    assert "not finite" in second["error"]
    assert third == {"probability": 0.5}
    named = post(app, "/models/a/v1/compare", {"pairs": pairs[2:]}).json()
    assert (named["model"], named["results"]) == ("a", [{"probability": 0.5}])
    assert post(app, "/v1/compare", {"pairs": [{"prompt": CHAT, "a": "x"}]}).status_code == 400


def test_a_lost_model_fails_each_pair_once():
    app, _ = serving(Formula("a", dies=2))
    answer = post(app, "/v1/compare", {"pairs": [{"prompt": CHAT, "a": "x#1", "b": "y#2"}] * 3})
    assert [entry["transient"] for entry in answer.json()["results"]] == [True] * 3


def test_a_path_names_the_model_and_overrules_the_payload():
    a, b = Formula("a"), Formula("b")
    app, _ = serving(a, b)
    payload = {"model": "/some/path", "input": "x#2", "use_activation": False}
    answer = post(app, "/models/b/classify", payload)
    assert answer.json()["data"][0]["probs"] == [2.0]
    assert (len(a.calls), len(b.calls)) == (0, 1)
    assert post(app, "/get_reward", {"query": ["x#3"]}).json()["rewards"] == [3.0]
    assert len(a.calls) == 1


def test_a_name_that_no_model_has_is_told_with_those_there_are():
    app, _ = serving(Formula("a"))
    answer = post(app, "/classify", {"model": "gpt", "input": "x#2"})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"
    assert "no model is called 'gpt'; there are ['a']" in answer.json()["error"]["message"]
    assert post(app, "/models/z/get_reward", {"query": []}).status_code == 404


def test_openrlhf_gets_empty_lists_for_empty_lists_and_no_model_is_asked():
    formula = Formula("a")
    app, _ = serving(formula)
    answer = post(app, "/get_reward", {"query": [], "prompts": [], "labels": []})
    assert answer.json() == {"rewards": [], "scores": [], "extra_logs": {}}
    assert formula.calls == []


def test_prompts_are_spread_over_buckets_and_put_together_in_order():
    formula = Formula("a")
    app, _ = serving(formula)
    queries = [f"prompt {i % 10} says#{i}" for i in range(40)]
    prompts = [f"prompt {i % 10}" for i in range(40)]
    answer = post(app, "/get_reward", {"query": queries, "prompts": prompts})
    assert answer.json()["rewards"] == [float(i) for i in range(40)]
    assert len(formula.calls) <= 10
    seen = [item.prompt for call in formula.calls for item in call.items]
    assert len(seen) == 40
    for call in formula.calls:
        assert {bucket_of(item) for item in call.items} == {call.bucket}


def test_items_of_one_prompt_share_a_bucket_and_buckets_share_the_work():
    def chat(text, response):
        return Chat(({"role": "user", "content": text},), (response,))

    assert bucket_of(chat("q", "a")) == bucket_of(chat("q", "b"))
    assert bucket_of(RenderedText("p", ("a",))) == bucket_of(RenderedText("p", ("b",)))
    long = "x" * 600
    assert bucket_of(RenderedText("", (long + "a",))) == bucket_of(RenderedText("", (long + "b",)))
    assert bucket_of(Tokens(((1, 2),))) == bucket_of(Tokens(((1, 2),)))
    buckets = {bucket_of(chat(str(i), "")) for i in range(1000)}
    assert len(buckets) == NUM_BUCKETS


def test_an_item_without_responses_is_asked_of_nobody():
    request = ScoreRequest(items=(RenderedText("p", ()), RenderedText("p", ("a",))))
    assert [part.places for part in shard_by_prompt(request, 1.0)] == [(1,)]


def test_a_lost_replica_costs_one_more_try():
    formula = Formula("a", dies=1)
    app, _ = serving(formula)
    assert post(app, "/get_reward", {"query": ["x#1"]}).json()["rewards"] == [1.0]
    assert len(formula.calls) == 2


def test_replicas_lost_twice_are_told_as_a_passing_fault():
    app, _ = serving(Formula("a", dies=2), Formula("b"))
    answer = post(app, "/get_reward", {"query": ["x#1"]})
    assert answer.status_code == 503
    assert "lost the replica" in answer.json()["error"]
    app, _ = serving(Formula("a", dies=2), Formula("b"))
    items = [{"prompt": CHAT, "responses": ["x#1"]}]
    results = post(app, "/v1/rewards", {"models": ["a", "b"], "items": items}).json()["results"]
    assert results[0]["items"][0][0]["transient"] is True
    assert results[1]["items"][0][0]["score"] == 1.0


@pytest.mark.parametrize(
    ("path", "payload", "message"),
    [
        ("/get_reward", {"query": ["SECRET#1"]}, lambda answer: answer["error"]),
        ("/v1/classify", {"input": "SECRET#1"}, lambda answer: answer["error"]["message"]),
        ("/predict", {"inputs": "SECRET#1"}, lambda answer: answer["error"]),
        (
            "/v1/compare",
            {"pairs": [{"prompt": CHAT, "a": "SECRET", "b": ""}]},
            lambda answer: answer["error"],
        ),
    ],
)
def test_what_nobody_foresaw_is_a_500_in_the_dialects_words_and_one_line_of_log(
    path, payload, message, caplog
):
    async def raises(call):
        raise KeyError(f"unforeseen: {call.items}")

    formula = Formula("a")
    formula.ask = raises
    answer = post(serving(formula)[0], path, payload)
    assert answer.status_code == 500
    assert "model 'a' failed with KeyError" in message(answer.json())
    (line,) = [record for record in caplog.records if record.name == "ray.serve"]
    assert re.fullmatch(
        r"model 'a' failed: KeyError at .*test_gateway\.py:\d+ in raises", line.getMessage()
    )
    assert line.exc_info is None
    assert "SECRET" not in answer.text + caplog.text


def test_an_unforeseen_fault_of_one_model_does_not_take_the_answers_of_the_others():
    async def raises(call):
        raise KeyError

    formula = Formula("a")
    formula.ask = raises
    items = [{"prompt": CHAT, "responses": ["x#1"]}]
    app, _ = serving(formula, Formula("b"))
    results = post(app, "/v1/rewards", {"models": ["a", "b"], "items": items}).json()["results"]
    assert results[0]["items"][0][0]["transient"] is False
    assert "failed with KeyError" in results[0]["items"][0][0]["error"]
    assert results[1]["items"][0][0]["score"] == 1.0


def test_an_answer_that_does_not_fit_is_a_500_too():
    async def another(call):
        return ModelAnswer(model="a", items=((scored(1.0), scored(2.0)),))

    formula = Formula("a")
    formula.ask = another
    answer = post(serving(formula)[0], "/get_reward", {"query": ["x#1"]})
    assert answer.status_code == 500
    assert "internal error" in answer.json()["error"]


def test_a_busy_model_answers_429_with_the_time_to_come_back():
    busy = RequestError("'a' is busy", 429, 2.6)
    answer = post(serving(Formula("a", refuses=busy))[0], "/get_reward", {"query": ["x#1"]})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


def test_a_busy_model_does_not_take_the_answers_of_the_others():
    busy = RequestError("'a' is busy", 429, 2.0)
    app, _ = serving(Formula("a", refuses=busy), Formula("b"))
    items = [{"prompt": CHAT, "responses": ["x#1"]}]
    results = post(app, "/v1/rewards", {"models": ["a", "b"], "items": items}).json()["results"]
    assert results[0]["items"][0][0] == {"score": None, "error": "'a' is busy", "transient": True}
    assert results[1]["items"][0][0]["score"] == 1.0


def test_a_request_is_answered_within_its_own_time():
    app, _ = serving(Formula("a", seconds=5.0))
    items = [{"prompt": CHAT, "responses": ["x#1"]}]
    results = post(app, "/v1/rewards", {"items": items, "timeout": 0.1}).json()["results"]
    assert results[0]["items"][0][0]["error"] == "'a' gave no answer within 0.1 s"


def test_a_model_that_failed_says_why_and_is_not_asked():
    formula = Formula("a")
    app, gateway = serving(formula, Formula("b"))
    asyncio.run(gateway.learn({"a": ModelStatus("failed", "FileNotFoundError: no weights")}))
    answer = post(app, "/get_reward", {"query": ["x#1"]})
    assert answer.status_code == 503
    assert "could not be started: FileNotFoundError: no weights" in answer.json()["error"]
    assert formula.calls == []
    assert get(app, "/ready").status_code == 200
    asyncio.run(gateway.learn({"b": ModelStatus("failed", "it too")}))
    assert get(app, "/ready").status_code == 503
    assert get(app, "/health").status_code == 200


def test_models_are_listed_with_what_they_are():
    app, gateway = serving(Formula("a"), Formula("b"))
    asyncio.run(gateway.learn({"a": ModelStatus("ready", ""), "b": ModelStatus("idle", "")}))
    a, b = get(app, "/v1/models").json()["data"]
    assert (a["id"], a["state"], a["kind"], a["default"]) == ("a", "ready", "scalar", True)
    assert (b["id"], b["state"], b["default"]) == ("b", "idle", False)
    assert "kind" not in b


def test_one_model_is_retrieved_by_its_name_and_told_to_tei_s_clients():
    app, gateway = serving(Formula("a"), Formula("b"))
    asyncio.run(gateway.learn({"a": ModelStatus("ready", ""), "b": ModelStatus("ready", "")}))
    gateway.models["b"].description = {
        "kind": "scalar",
        "provenance": {"weights": "w", "dtype": "float32"},
    }
    listed = get(app, "/v1/models").json()["data"]
    assert get(app, "/v1/models/b").json() == listed[1]
    assert (listed[1]["id"], listed[1]["object"]) == ("b", "model")
    assert listed[1]["created"] > 1_700_000_000
    answer = get(app, "/v1/models/c")
    assert answer.status_code == 404
    assert "no model is called 'c'; there are ['a', 'b']" in answer.json()["error"]["message"]
    info = get(app, "/models/b/info").json()
    assert (info["model_id"], info["model_sha"], info["model_dtype"]) == ("b", "w", "float32")
    assert info["model_type"]["reranker"]["id2label"] == {"0": "LABEL_0"}
    assert get(app, "/info").json()["model_id"] == "a"
    assert get(app, "/models/c/info").status_code == 404


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/chat/completions", "score and write no text"),
        ("/generate", "score and write no text"),
        ("/models/a/tokenize", "with the tokenizer in the model's folder"),
        ("/embed", "a reward model has no embedding"),
        ("/v1/judge", ""),
        ("/", ""),
    ],
)
def test_what_is_no_endpoint_is_told_with_those_there_are(path, hint):
    app, _ = serving(Formula("a"))
    answer = get(app, "/classify") if path == "/" else post(app, path, {})
    assert answer.status_code == (405 if path == "/" else 404)
    message = answer.json()["error"]["message"]
    assert hint.lower() in message.lower()
    for endpoint in ("/v1/rewards", "/get_reward", "/v1/score/evaluation", "/models/NAME"):
        assert endpoint in message


def test_tei_s_bare_path_scores_for_every_model_and_shows_the_page_to_browsers():
    app, _ = serving(Formula("a"), Formula("b"))
    raw = {"raw_scores": True}
    assert post(app, "/", {"inputs": "x#1.5"} | raw).json() == [{"score": 1.5, "label": "LABEL_0"}]
    ranks = post(app, "/models/b", {"query": "q", "texts": ["x#1", "y#2"]} | raw).json()
    assert [rank["index"] for rank in ranks] == [1, 0]
    assert post(app, "/models/z", {"inputs": "x#1.5"}).status_code == 404
    assert get(app, "/").headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("path", "payload", "num"),
    [
        ("/get_reward", {"query": ["[cut] #1", "b #2", "[cut] #3"]}, "2"),
        ("/slime", {"prompt": "q", "response": "[cut] #1"}, "1"),
        ("/v1/classify", {"input": ["a #1", "[cut] #2"]}, "1"),
        ("/predict", {"inputs": "[cut] #1"}, "1"),
        (
            "/v1/rewards",
            {
                "models": ["a", "b"],
                "items": [{"prompt": CHAT, "responses": ["[cut] #1", "b #2"]}, {"responses": []}],
            },
            "1",
        ),
        ("/v1/compare", {"pairs": [{"prompt": CHAT, "a": "[cut] #1", "b": "b #2"}]}, "1"),
        ("/get_reward", {"query": ["a #1"]}, None),
        ("/v1/rewards", {"items": []}, None),
    ],
)
def test_a_header_says_how_many_texts_were_cut(path, payload, num):
    app, _ = serving(Formula("a"), Formula("b"))
    answer = post(app, path, payload)
    assert answer.status_code == 200
    assert answer.headers.get("x-truncated-texts") == num


def test_a_prompt_that_cannot_be_read_costs_a_request_only_its_own_scores():
    formula = Formula("a")
    app, _ = serving(formula)
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    items = [
        {"prompt": [*CHAT, call, *CHAT], "responses": ["x#1", "x#2"]},
        {"prompt": CHAT, "responses": ["x#3"]},
        {"responses": ["x#4"]},
    ]
    bad, good, alone = post(app, "/v1/rewards", {"items": items}).json()["results"][0]["items"]
    assert [score["score"] for score in bad] == [None, None]
    assert "tool_calls" in bad[0]["error"]
    assert (good[0]["score"], alone[0]["score"]) == (3.0, 4.0)
    sent = {item.responses: item.prompt for call in formula.calls for item in call.items}
    assert sent == {("x#3",): tuple(CHAT), ("x#4",): ()}


def test_responses_that_are_answered_with_a_reason_alone_count_for_the_limits():
    formula = Formula("a")
    app, _ = serving(formula)
    unread, good = [{"role": "z" * 40, "content": "q"}], {"prompt": CHAT, "responses": ["x#1"]}
    pairs = [{"prompt": unread, "a": "", "b": ""}] * 2048 + [{"prompt": CHAT, "a": "", "b": ""}]
    for path, payload in (
        ("/v1/rewards", {"items": [{"prompt": unread, "responses": [""] * 90_000}, good]}),
        ("/v1/rewards", {"items": [{"prompt": unread, "responses": []}] * 4096 + [good]}),
        ("/v1/compare", {"pairs": pairs}),
    ):
        answer = post(app, path, payload)
        assert (answer.status_code, "at most 4096" in answer.text) == (413, True), path
        assert len(answer.content) < 500
    assert formula.calls == []


def test_weights_go_to_the_models_that_have_the_objectives():
    a, b = Formula("a", objectives=("brevity",)), Formula("b")
    app, gateway = serving(a, b)
    asyncio.run(gateway.learn({"a": ModelStatus("ready", ""), "b": ModelStatus("ready", "")}))
    payload = {"models": ["a", "b"], "items": [{"prompt": CHAT, "responses": ["x#1"]}]}
    assert post(app, "/v1/rewards", payload | {"weights": {"brevity": 2.0}}).status_code == 200
    assert (a.calls[0].weights, b.calls[0].weights) == ({"brevity": 2.0}, {})
    answer = post(app, "/v1/rewards", payload | {"weights": {"breviti": 2.0}})
    assert answer.status_code == 400
    assert "no model asked has objective 'breviti'; they have ['brevity']" in answer.json()["error"]


def test_a_key_is_asked_for_by_the_models_that_have_one():
    app, _ = serving(Formula("a"), Formula("b"), keys={"b": "secret"})
    assert post(app, "/get_reward", {"query": ["x#1"]}).status_code == 200
    for sent in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        answer = post(app, "/models/b/get_reward", {"query": ["x#1"]}, **sent)
        assert answer.status_code == 401
        assert "secret" not in answer.text
    items = [{"prompt": CHAT, "responses": ["x#1"]}]
    both = {"models": ["a", "b"], "items": items}
    assert post(app, "/v1/rewards", both).status_code == 401
    for name, value in (("Authorization", "Bearer secret"), ("X-API-Key", "secret")):
        assert post(app, "/v1/rewards", both, **{name: value}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"query": ["\\ud800"]}', 400),
        (b"[]", 400),
        (b'{"query": [1]}', 400),
        (b'{"query": NaN}', 400),
        (b'{"query": ["' + b"x" * 2000 + b'"]}', 413),
        (json.dumps({"query": ["x#1"] * 51}).encode(), 413),
    ],
)
def test_bodies_that_are_wrong_or_too_large_are_refused_in_words(body, status):
    app, _ = serving(Formula("a"), max_bytes=1000 if b"xxx" in body else 10**6, max_responses=50)
    answer = post(app, "/get_reward", body=body)
    assert answer.status_code == status
    assert len(answer.json()["error"]) > 10


def test_no_origin_is_let_in_and_the_page_runs_nothing_of_others():
    app, _ = serving(Formula("a"))
    answer = post(app, "/get_reward", {"query": ["x#1"]}, Origin="http://evil")
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    page = get(app, "/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert get(app, "/page/page.js").status_code == 200
    assert "--paper" in get(app, "/page/base.css").text


def test_huggingface_s_client_scores_and_asks_what_it_talks_to(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # nothing but this machine is asked
    app, _ = serving(Formula("a"), Formula("b"))
    with serving_app(app) as url:
        for address, model in ((url, "a"), (f"{url}/models/b", "b"), (f"{url}/predict", "a")):
            client = hub.InferenceClient(address, provider="hf-inference")
            first = client.text_classification("[cut] #1.5", function_to_apply="none", top_k=1)
            assert (first.score, first.label) == (1.5, "LABEL_0")
            squashed = client.text_classification("x#1.5").score
            assert squashed == pytest.approx(1 / (1 + math.exp(-1.5)))
            if address != f"{url}/predict":
                assert client.get_endpoint_info()["model_id"] == model
        assert hub.InferenceClient(url, provider="hf-inference").health_check()


def test_openapi_describes_the_payloads_of_every_dialect():
    openapi = get(serving(Formula("a"))[0], "/openapi.json").json()
    schema = openapi["paths"]["/classify"]["post"]["requestBody"]["content"]["application/json"]
    names = [entry["$ref"].rpartition("/")[2] for entry in schema["schema"]["anyOf"]]
    assert len(names) == 2
    assert all(name in openapi["components"]["schemas"] for name in names)
    text = json.dumps(openapi)
    for ref in {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}:
        assert ref in openapi["components"]["schemas"]
    assert "/models/{name}/v1/rewards" in openapi["paths"]

"""Whatever is sent, the answer is the answer or a 4xx that says what is wrong: nothing else."""

import json
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoply.wire.dialect import decode
from panoply.wire.limits import TURN_CHARACTERS, RequestLimits
from panoply.wire.request import (
    Chat,
    Details,
    Driver,
    ModelAnswer,
    RenderedText,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    Tokens,
    scored,
    single_model_scores,
)
from panoply.wire.routes import ENDPOINTS
from tests.builders.wire_scores import LIMITS, post, post_bytes, request_of

PATHS = sorted({path for endpoint in ENDPOINTS for path in endpoint.paths})
USER = {"role": "user", "content": "Why?"}
FINITE = st.floats(-1e6, 1e6, allow_nan=False)
SCORES = st.lists(FINITE, max_size=20)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def texts(scores):
    return [f"text #{score!r}" for score in scores]


@given(SCORES)
@QUICK
def test_order_is_kept_and_n_in_is_n_out(scores):
    query, raw = texts(scores), {"use_activation": False}
    assert post("/get_reward", {"query": query})[1]["rewards"] == scores
    data = post("/classify", {"input": query} | raw)[1]["data"]
    assert [entry["probs"][-1] for entry in data] == scores
    assert [entry["index"] for entry in data] == list(range(len(scores)))
    data = post("/pooling", {"input": query} | raw)[1]["data"]
    assert [entry["data"] for entry in data] == [[score] for score in scores]
    data = post("/score", {"text_1": "q", "text_2": query} | raw)[1]["data"]
    assert [entry["score"] for entry in data] == scores
    data = post("/score", {"text_1": query[:1] * len(query), "text_2": query} | raw)[1]["data"]
    assert [entry["score"] for entry in data] == scores
    answer = post("/classify", {"text": query})[1]
    assert [entry["embedding"] for entry in answer] == [[score] for score in scores]
    answer = post("/v1/embeddings", {"input": query})[1]["data"]
    assert [entry["embedding"] for entry in answer] == [[score] for score in scores]
    answer = post("/predict", {"inputs": [[text] for text in query], "raw_scores": True})[1]
    assert [labels[0]["score"] for labels in answer] == scores
    item = {"prompt": [USER], "responses": query}
    answer = post("/v1/rewards", {"items": [item, item]})[1]["results"][0]["items"]
    assert [[entry["score"] for entry in entries] for entries in answer] == [scores, scores]


@given(SCORES)
@QUICK
def test_ranks_are_a_permutation_from_high_to_low(scores):
    documents = texts(scores)
    results = post("/rerank", {"query": "q", "documents": documents, "use_activation": False})[1]
    ranked = [r["relevance_score"] for r in results["results"]]
    assert ranked == sorted(scores, reverse=True)
    assert [scores[r["index"]] for r in results["results"]] == ranked
    ranks = post("/rerank", {"query": "q", "texts": documents, "raw_scores": True})[1]
    assert [rank["score"] for rank in ranks] == ranked


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
CHAT = [USER, {"role": "assistant", "content": [{"type": "text", "text": "So."}]}]
RERANK = {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}
VALID = {
    "/v1/rewards": {
        "items": [
            {"prompt": [USER], "responses": ["a"], "label": 1},
            {"rendered": "x", "responses": []},
        ],
        "models": ["m"],
        "details": ["gate"],
        "weights": {"safety": 1.0},
        "activation": "none",
        "timeout": 1,
    },
    "/get_reward": {"query": ["a"], "prompts": ["a"], "labels": [None]},
    "/slime": {"prompt": [USER], "response": "a", "label": {"gold": [1]}},
    "/classify": {"input": [[1, 2], [3]], "use_activation": False, "model": "m"},
    "/pooling": {"messages": CHAT, "task": "classify", "chat_template_kwargs": {}},
    "/score": {"text_1": ["q"], "text_2": ["a"], "activation": None},
    "/rerank": RERANK,
    "/v1/embeddings": {"input": ["a"], "encoding_format": "float"},
    "/sglang/v1/rerank": {"query": "q", "documents": ["a"], "top_n": 1},
    "/predict": {"inputs": [["a"], ["a", "b"]], "raw_scores": True},
    "/": {"query": "q", "texts": ["a"], "return_text": True, "truncate": False},
    "/v1/score/evaluation": {"model": "model", "messages": ["a"], "max_length": None},
}


def places(value, here=()):
    """Every place of a JSON value, as the keys that lead there."""
    yield here
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*here, key))


def put(value, place, new):
    """The value with something else in one place."""
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = put(value[place[0]], place[1:], new)
    return copy


def broken(path):
    """Payloads for a path that hold anything in one place."""
    where = st.sampled_from([*places(VALID[path])])
    return st.tuples(st.just(path), st.builds(put, st.just(VALID[path]), where, JSON))


@given(st.sampled_from(list(VALID)).flatmap(broken))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_anything_in_any_place_is_parsed_or_a_4xx_and_never_another_exception(sent):
    path, payload = sent
    body = json.dumps(payload).encode()
    try:
        request = asked_bytes(path, body)
    except RequestError:
        status, answer = post_bytes(path, body)
        assert 400 <= status < 500
        assert json.dumps(answer, ensure_ascii=False).encode()
    else:
        assert isinstance(request, ScoreRequest)
        assert all(type(item) in (Chat, RenderedText, Tokens) for item in request.items)


@pytest.mark.parametrize("path", VALID)
def test_what_is_broken_above_is_whole_before(path):
    assert asked_bytes(path, json.dumps(VALID[path]).encode()).items


@pytest.mark.parametrize("path", PATHS)
@given(payload=JSON)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_no_path_takes_just_any_json(path, payload):
    status, answer = post_bytes(path, json.dumps(payload).encode())
    assert 400 <= status < 500
    assert json.dumps(answer, ensure_ascii=False).encode()


def asked_bytes(path, body):
    return LIMITS.check(request_of(path, decode(body, LIMITS)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8: byte 0"),
        (b'{"query": ["\xe9"]}', "not UTF-8: byte 12"),
        (b'{"query": [NaN]}', "NaN is no finite number"),
        (b'{"query": ["a #1"], "labels": [-Infinity]}', "-Infinity is no finite number"),
        (b'{"query": ["a #1"], "labels": [1e999]}', "1e999 is no finite number"),
        (b'{"query": ["a #1"], "labels": [' + b"9" * 5000 + b"]}", "not JSON"),
        (b'{"query": ["\\ud800"]}', "half a character"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[]", "must be a JSON object, got []"),
        (b"null", "must be a JSON object, got None"),
        (b'"text"', "must be a JSON object"),
        (b'{"query": 3}', "`query`: Input should be a valid list, got 3"),
        (b'{"query": ["a #1", 3]}', "`query.1`: Input should be a valid string, got 3"),
        (b'{"query": ["a #1"], "prompts": ["a", "b"]}', "2 `prompts` for 1 of `query`"),
        (b'{"prompts": ["a"]}', "`query`: Field required"),
    ],
)
def test_a_broken_body_is_told_what_is_wrong(body, message):
    status, answer = post_bytes("/get_reward", body)
    assert status == 400
    assert message in answer["error"]


def test_a_label_may_be_deep_but_not_deeper_than_is_read():
    for depth, expected in ((100, {200}), (400, {400}), (900, {400})):
        label = "[" * depth + "]" * depth
        body = f'{{"query": ["a #1"], "labels": [{label}]}}'.encode()
        assert post_bytes("/get_reward", body)[0] in expected


def test_a_key_that_is_no_text_does_not_break_the_message():
    body = b'{"items": [], "weights": {"\\ud83d\\ude00": "x"}, "\\ud83d": 1}'
    status, answer = post_bytes("/v1/rewards", body)
    assert status == 400
    assert "half a character" in answer["error"]
    status, answer = post_bytes("/v1/rewards", body.replace(b'ud83d": 1', b'ud83d\\ude00": 1'))
    assert "`\\U0001f600`: not read by `/v1/rewards`" in answer["error"]
    status, answer = post_bytes("/v1/rewards", body.replace(b', "\\ud83d": 1', b""))
    assert "`weights.\\U0001f600`: Input should be a valid number" in answer["error"]
    assert json.dumps(answer, ensure_ascii=False).encode()


def test_ten_thousand_items_are_too_many_and_the_limit_is_told():
    query = ["a #1"] * 10_000
    calls = [
        ("/get_reward", {"query": query}),
        ("/classify", {"input": query}),
        ("/classify", {"input": [[1]] * 10_000}),
        ("/rerank", {"query": "q", "documents": query}),
        ("/predict", {"inputs": [[text] for text in query]}),
        ("/v1/rewards", {"items": [{"prompt": [USER], "responses": query}]}),
        ("/v1/rewards", {"items": [{"prompt": [USER], "responses": []}] * 10_000}),
    ]
    for path, payload in calls:
        status, answer = post(path, payload)
        assert status == 413
        assert "10000 texts in one request, at most 4096" in str(answer)
    assert post("/get_reward", {"query": query}, RequestLimits(max_responses=10_000))[0] == 200


def test_long_texts_and_large_bodies_are_refused_with_the_limit():
    limits = RequestLimits(max_characters=20, max_bytes=200)
    assert post("/get_reward", {"query": ["x" * 16 + "#1"]}, limits)[0] == 200
    status, answer = post("/get_reward", {"query": ["x" * 30 + "#1"]}, limits)
    assert status == 413
    assert "32 characters or tokens in one request, at most 20" in answer["error"]
    assert post("/classify", {"input": [1] * 21}, limits)[0] == 413
    status, answer = post("/get_reward", {"query": ["x" * 300]}, limits)
    assert status == 413
    assert "315 bytes in one request, at most 200" in answer["error"]


def test_a_prompt_counts_once_for_all_of_its_responses():
    item = {"prompt": [{"role": "user", "content": "x" * 10}], "responses": ["#1", "#2", "#3"]}
    for room, status in ((20, 200), (19, 413)):
        limits = RequestLimits(max_characters=room + TURN_CHARACTERS)
        assert post("/v1/rewards", {"items": [item]}, limits)[0] == status


def test_a_long_wrong_value_is_told_in_short():
    status, answer = post("/get_reward", {"query": [["x" * 10_000] * 10] * 100})
    assert status == 400
    assert "`query.0`: Input should be a valid string, got [" in answer["error"]
    assert len(answer["error"]) < 200


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_a_score_that_is_not_finite_in_float32_is_an_error_and_never_a_number(value):
    assert scored(value).score is None
    assert str(value) in scored(value).error
    with pytest.raises(ValueError, match="finite"):
        Score(score=value)


def test_a_score_has_a_number_or_a_reason():
    with pytest.raises(ValueError, match="a score or an error"):
        Score()
    with pytest.raises(ValueError, match="a score or an error"):
        Score(score=0.0, error="x")
    assert scored(0.0).score == 0.0


def test_a_detail_without_a_value_is_left_out_of_a_score_that_has_one():
    broken = Driver("safety", math.nan, 1.0)
    details = scored(1.0, objectives={"safety": math.nan, "tone": 2.0}, drivers=[broken]).details
    assert details == Details(objectives={"tone": 2.0})
    with pytest.raises(ValueError, match="details must be finite"):
        Details(drivers=(broken,))


def test_an_answer_of_another_shape_is_an_error_of_ours_and_not_scores_in_the_wrong_place():
    request = ScoreRequest(items=(Chat((USER,), ("a", "b")), Chat((USER,), ("c",))))
    score = scored(1.0)
    for items in (((score,), (score, score)), ((score, score, score),), ()):
        answer = ScoreAnswer(models=(ModelAnswer(model="m", items=items),), id="1", created=1)
        with pytest.raises(RequestError, match="internal error") as raised:
            single_model_scores(answer, request)
        assert raised.value.status == 500


def test_an_error_keeps_its_status_between_processes():
    error = pickle.loads(pickle.dumps(RequestError("full", 429, 2.5)))
    assert (str(error), error.status, error.retry_after) == ("full", 429, 2.5)

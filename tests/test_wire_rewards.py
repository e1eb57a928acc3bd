"""Our own endpoint: several models, details, weights, and there and back again."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoply.wire.request import Chat, RenderedText, ScoreRequest, Tokens, sigmoid
from panoply.wire.rewards import RewardsPayload, payload_of, read_answer
from tests.builders.wire_scores import answer_to, post, request_of

USER = {"role": "user", "content": "Why?"}
ITEM = {"prompt": [USER], "responses": ["good #1.5", "bad #-2"]}


def test_several_models_answer_in_the_order_they_were_named():
    status, answer = post("/v1/rewards", {"models": ["b", "a"], "items": [ITEM]})
    assert status == 200
    assert [result["model"] for result in answer["results"]] == ["b", "a"]
    for result in answer["results"]:
        assert [entry["score"] for entry in result["items"][0]] == [1.5, -2]
        assert "objectives" not in result["items"][0][0]
        assert "provenance" not in result


def test_details_come_when_asked_for():
    details = ["objectives", "gate", "drivers", "provenance"]
    (result,) = post("/v1/rewards", {"items": [ITEM], "details": details})[1]["results"]
    assert result["provenance"] == {"weights": "w", "template": "t"}
    entry = result["items"][0][0]
    assert entry["objectives"] == {"helpfulness": 0.75, "brevity": -1.5}
    assert entry["gate"] == {"helpfulness": 0.75, "brevity": 0.25}
    driver = {"objective": "helpfulness", "value": 0.75, "contribution": 1.5}
    assert entry["drivers"] == [driver]


def test_a_failed_score_is_null_with_a_reason_beside_the_others():
    item = {"prompt": [USER], "responses": ["a #1", "b #nan", "c #lost", "d #0"]}
    status, answer = post("/v1/rewards", {"items": [item]})
    assert status == 200
    first, broken, lost, zero = answer["results"][0]["items"][0]
    assert first["score"] == 1
    assert broken["score"] is lost["score"] is None
    assert "not finite" in broken["error"]
    assert not broken["transient"]
    assert lost["transient"]
    assert zero["score"] == 0
    assert "error" not in zero


def test_scores_are_raw_and_squashed_on_request():
    payload = {"items": [ITEM], "activation": "sigmoid"}
    entries = post("/v1/rewards", payload)[1]["results"][0]["items"][0]
    assert [entry["score"] for entry in entries] == [sigmoid(1.5), sigmoid(-2)]


def test_weights_and_the_time_that_is_left_reach_the_models():
    request = request_of("/v1/rewards", {"items": [ITEM], "weights": {"safety": 2}, "timeout": 3})
    assert request.weights == {"safety": 2}
    assert request.timeout == 3
    assert request.items == (Chat((USER,), ("good #1.5", "bad #-2")),)


def test_empty_lists_are_answered_with_empty_lists():
    assert post("/v1/rewards", {"items": []})[1]["results"][0]["items"] == []
    nothing = {"prompt": [USER], "responses": []}
    items = post("/v1/rewards", {"items": [nothing, ITEM, nothing]})[1]["results"][0]["items"]
    assert [len(entries) for entries in items] == [0, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": []}, "`item`: not read by `/v1/rewards`"),
        ({"items": [ITEM | {"weight": 1}]}, "`items.0.weight`: Extra inputs"),
        ({"items": [ITEM | {"rendered": "x"}]}, "name `prompt` (messages) or `rendered`"),
        ({"items": [ITEM | {"prompt": "Why?"}]}, "`prompt`: Input should be a valid list"),
        ({"items": [ITEM | {"prompt": []}]}, "must end with a user or tool turn"),
        ({"items": [ITEM | {"responses": "So"}]}, "`items.0.responses`: Input should be a valid l"),
        ({"models": ["a", "a"]}, "names one twice"),
        ({"details": ["all"]}, "`details.0`: Input should be 'objectives', 'gate', 'drivers', "),
        ({"timeout": 0}, "`timeout`: Input should be greater than 0"),
        ({"weights": {"safety": "2"}}, "`weights.safety`: Input should be a valid number"),
        ({"activation": "softmax"}, "`activation`: Input should be 'none' or 'sigmoid'"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    status, answer = post("/v1/rewards", {"items": [ITEM]} | change)
    assert status == 400
    assert message in answer["error"]


CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (
            [USER, CALL, {"role": "tool", "content": "5"}],
            "`prompt.1`: Value error, message holds a tool's call (`tool_calls`)",
        ),
        ([IMAGE], "`prompt.0`: Value error, message has a part of type 'image_url'"),
        (
            [{"role": "narrator", "content": "x"}],
            "message has the unknown role 'narrator', not one of system",
        ),
        ([USER, {"role": "assistant", "content": "So."}], "must end with a user or tool turn"),
        ("Why?", "`prompt`: Input should be a valid list"),
    ],
)
def test_a_prompt_that_cannot_be_read_costs_only_its_own_scores(prompt, why):
    broken = {"prompt": prompt, "responses": ["a #1", "b #2"]}
    nothing = {"prompt": prompt, "responses": []}
    items = [broken, ITEM, nothing, ITEM]
    status, answer = post("/v1/rewards", {"models": ["m", "n"], "items": items})
    assert status == 200
    for result in answer["results"]:
        bad, good, none, last = result["items"]
        assert [entry["score"] for entry in good] == [entry["score"] for entry in last] == [1.5, -2]
        assert none == []
        assert [entry["score"] for entry in bad] == [None, None]
        assert all(why in entry["error"] and not entry["transient"] for entry in bad)
    assert len(request_of("/v1/rewards", {"items": items}).items) == 2
    status, answer = post("/v1/rewards", {"items": [broken]})
    assert status == 400
    assert why in answer["error"]


def test_a_pair_whose_prompt_cannot_be_read_fails_alone():
    good, bad = ({"prompt": prompt, "a": "x #1", "b": "y #1"} for prompt in ([USER], [IMAGE]))
    status, answer = post("/v1/compare", {"pairs": [bad, good]})
    assert status == 200
    assert answer["results"][0]["probability"] is None
    assert "`prompt.0`" in answer["results"][0]["error"]
    assert answer["results"][1] == {"probability": 0.5}
    assert post("/v1/compare", {"pairs": [bad]})[0] == 400


def test_responses_alone_reach_the_models_without_a_prompt():
    item = {"responses": ["good #1.5"], "label": "gold"}
    assert request_of("/v1/rewards", {"items": [item]}).items == (Chat((), ("good #1.5",), "gold"),)
    assert payload_of(ScoreRequest(items=(Chat((), ("good #1.5",)),))) == {
        "items": [{"responses": ("good #1.5",)}]
    }


def test_what_was_cut_is_told_beside_the_score_with_its_tokens():
    item = {"prompt": [USER], "responses": ["[cut] #1", "a #2"]}
    cut, whole = post("/v1/rewards", {"items": [item]})[1]["results"][0]["items"][0]
    assert (cut["truncated"], cut["num_cut"]) == (True, 3)
    assert not {"truncated", "num_cut"} & whole.keys()


TEXT = st.text(max_size=8)
LABEL = st.none() | TEXT | st.lists(st.integers(-9, 9), max_size=2)
NUMBER = st.builds("{}#{!r}".format, st.sampled_from(["", "[cut] "]), st.floats(-1e3, 1e3))
RESPONSES = st.lists(NUMBER, max_size=3).map(tuple)
PROMPT = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": TEXT}),
    max_size=3,
).map(tuple)
REQUESTS = st.builds(
    ScoreRequest,
    items=st.lists(
        st.builds(Chat, PROMPT, RESPONSES, LABEL) | st.builds(RenderedText, TEXT, RESPONSES, LABEL),
        max_size=4,
    ).map(tuple),
    models=st.lists(TEXT, max_size=3, unique=True).map(tuple),
    weights=st.dictionaries(TEXT, st.floats(-5, 5), max_size=2),
    details=st.frozensets(st.sampled_from(["objectives", "gate", "drivers", "provenance"])),
    timeout=st.none() | st.floats(0.1, 100),
)


@given(REQUESTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_requests_and_answers_go_there_and_back(request):
    payload = json.loads(json.dumps(payload_of(request)))
    call = RewardsPayload.model_validate(payload)
    assert call.request() == request
    answer = answer_to(request)
    assert read_answer(json.loads(json.dumps(call.render(answer, request))), request) == answer


def test_failed_scores_go_there_and_back_too():
    request = ScoreRequest(items=(Chat((USER,), ("a #nan", "b #lost", "c #1")),))
    answer = answer_to(request)
    call = RewardsPayload.model_validate(json.loads(json.dumps(payload_of(request))))
    payload = json.loads(json.dumps(call.render(answer, request)))
    assert read_answer(payload, request) == answer


def test_an_answer_to_another_request_is_refused():
    request = request_of("/v1/rewards", {"items": [ITEM], "models": ["m"]})
    payload = post("/v1/rewards", {"items": [ITEM], "models": ["m"]})[1]
    assert read_answer(payload, request).models[0].model == "m"
    for other in ({"items": [ITEM, ITEM], "models": ["m"]}, {"items": [ITEM], "models": ["n"]}):
        with pytest.raises(ValueError, match="were asked"):
            read_answer(payload, request_of("/v1/rewards", other))
    with pytest.raises(ValueError, match=r"\[\] answered"):
        read_answer(
            {"id": "1", "created": 1, "results": []}, request_of("/v1/rewards", {"items": []})
        )
    with pytest.raises(ValueError, match=r"no answer of `/v1/rewards`: `id`: Field required"):
        read_answer({}, request)


def test_token_ids_have_no_place_in_our_own_dialect():
    with pytest.raises(ValueError, match="no token ids"):
        payload_of(ScoreRequest(items=(Tokens(((1,),)),)))

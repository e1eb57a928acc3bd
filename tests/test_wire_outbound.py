"""What each dialect's server reads in our payloads, and what we read in its answers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoply.wire.limits import RequestLimits
from panoply.wire.outbound import DIALECTS
from panoply.wire.request import Chat, RenderedText, RequestError, Tokens
from panoply.wire.routes import endpoint_at
from panoply.wire.templates import as_chat
from tests.builders.wire_scores import answer_to, say

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}
RENDERED = RenderedText("<s><|user|>\nWhy?</s>\n<|assistant|>\n", ("a #1.5", "b #-2"), "gold")
MANY = Chat((SYSTEM, USER), ("a #1.5", "b #-2", "c #0"), {"gold": [1]})
ONE = Chat((USER,), ("a #1.5", "b #-2"))
IDS = Tokens(((1, 2, 3), (4,)))

CARRIED = {
    "panoply": [(RENDERED, ""), (MANY, "")],
    "slime": [(RENDERED, ""), (MANY, "")],
    "vllm": [(RENDERED, ""), (MANY, ""), (MANY, "llama3"), (IDS, "")],
    "sglang": [(RENDERED, ""), (MANY, "chatml"), (IDS, "")],
    "openrlhf": [(RENDERED, ""), (MANY, "llama3")],
    "tei": [(RENDERED, ""), (ONE, ""), (MANY, "zephyr")],
}
EVERY = [(name, item, template) for name, cases in CARRIED.items() for item, template in cases]


def ask(dialect, item, template="", model=""):
    """The requests that a server reads in our posts, and the scores that we read in its answers."""
    requests, scores = [], []
    for post in DIALECTS[dialect].posts(item, model, template):
        payload = json.loads(json.dumps(post.payload_within(3)))
        call = endpoint_at(DIALECTS[dialect].path, payload).parse(payload)
        requests.append(RequestLimits().check(call.request()))
        answer = call.render(answer_to(requests[-1]), requests[-1])
        scores.extend(post.read(json.loads(json.dumps(answer, allow_nan=False))))
    return requests, scores


@pytest.mark.parametrize(("dialect", "item", "template"), EVERY)
def test_every_dialect_gives_back_raw_scores_in_order(dialect, item, template):
    requests, scores = ask(dialect, item, template)
    assert [score.score for score in scores] == [say(r, ()).score for r in item.responses]
    assert sum(request.num_responses for request in requests) == len(item.responses)


@pytest.mark.parametrize(
    ("dialect", "item", "template"), [case for case in EVERY if case[1] != IDS]
)
def test_any_number_of_any_scores_comes_back(dialect, item, template):
    @given(st.lists(st.floats(-1e6, 1e6), max_size=6))
    @settings(max_examples=25, deadline=None, derandomize=True)
    def check(numbers):
        responses = tuple(f"text #{number!r}" for number in numbers)
        item_of_scores = type(item)(item.prompt, responses, item.label)
        assert [score.score for score in ask(dialect, item_of_scores, template)[1]] == numbers

    check()


@pytest.mark.parametrize("item", [RENDERED, MANY])
@pytest.mark.parametrize("dialect", ["panoply", "slime"])
def test_what_carries_messages_carries_the_whole_item(dialect, item):
    requests, _ = ask(dialect, item)
    read = [part for request in requests for part in request.items]
    assert tuple(response for part in read for response in part.responses) == item.responses
    assert {type(part) for part in read} == {type(item)}
    assert all((part.prompt, part.label) == (item.prompt, item.label) for part in read)


def test_vllm_is_sent_messages_and_each_name_of_the_switch():
    requests, _ = ask("vllm", MANY, model="m")
    assert [request.items for request in requests] == [
        (Chat(MANY.prompt, (response,)),) for response in MANY.responses
    ]
    assert all(request.models == ("m",) for request in requests)
    (post,) = DIALECTS["vllm"].posts(IDS, "m", "")
    switches = dict.fromkeys(("use_activation", "activation", "softmax"), False)
    assert post.payload == {"model": "m", "input": IDS.responses, **switches}


def test_openrlhf_gets_bos_prompts_and_labels_and_gives_objectives():
    (request,), scores = ask("openrlhf", MANY, "llama3")
    assert [as_chat(item, "llama3").prompt for item in request.items] == [MANY.prompt] * 3
    assert all(item.prompt.startswith("<|begin_of_text|><|start") for item in request.items)
    assert all(item.label == MANY.label for item in request.items)
    assert scores[0].details.objectives == {"helpfulness": 0.75, "brevity": -1.5}
    (post,) = DIALECTS["openrlhf"].posts(RENDERED, "", "")
    assert post.payload["query"][0] == f"{RENDERED.prompt}a #1.5"


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "tei"])
def test_servers_that_add_bos_are_sent_none(dialect):
    requests, _ = ask(dialect, RENDERED)
    texts = [
        response for request in requests for part in request.items for response in part.responses
    ]
    assert texts == [f"<|user|>\nWhy?</s>\n<|assistant|>\n{r}" for r in RENDERED.responses]


def test_our_own_server_is_told_the_time_and_gives_objectives():
    (request,), scores = ask("panoply", MANY, model="armorm")
    assert (request.timeout, request.models) == (3, ("armorm",))
    assert scores[0].details.objectives == {"helpfulness": 0.75, "brevity": -1.5}


def test_scores_that_failed_at_our_own_server_stay_errors():
    _, (bad, lost, good) = ask("panoply", Chat((USER,), ("a #nan", "b #lost", "c #0")))
    assert ("not finite" in bad.error, bad.transient) == (True, False)
    assert lost.transient
    assert good.score == 0


@pytest.mark.parametrize(
    ("dialect", "item", "why"),
    [
        ("panoply", IDS, "no token ids"),
        ("slime", IDS, "no token ids"),
        ("openrlhf", IDS, "no token ids"),
        ("tei", IDS, "no token ids"),
        ("openrlhf", MANY, "no messages, unless `template`"),
        ("sglang", MANY, "no messages, unless `template`"),
        ("tei", MANY, "no more than one turn before the response, unless `template`"),
    ],
)
def test_what_a_dialect_cannot_carry_is_refused(dialect, item, why):
    with pytest.raises(RequestError, match=why) as raised:
        DIALECTS[dialect].posts(item, "", "")
    assert raised.value.status == 422


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("template", ["", "chatml"])
def test_a_response_without_its_prompt_goes_to_our_own_servers_alone(dialect, template):
    alone = Chat((), ("a #1.5", "b #-2"))
    if dialect == "panoply":
        (request,), scores = ask(dialect, alone, template)
        assert request.items == (alone,)
        assert [score.score for score in scores] == [1.5, -2]
    else:
        with pytest.raises(RequestError, match="takes no response without its prompt"):
            DIALECTS[dialect].posts(alone, "", template)


def test_our_own_server_says_of_a_remote_arm_s_texts_what_was_cut():
    _, scores = ask("panoply", Chat((USER,), ("[cut] #1.5", "b #-2")))
    assert [score.num_cut for score in scores] == [3, 0]


def our_answer(score):
    """An answer of our own server to an item of two responses."""
    scores = [{"score": score}, {"score": 1.0}]
    return {"id": "i", "created": 1, "results": [{"model": "m", "items": [scores]}]}


def read(dialect, answer, item=ONE):
    return DIALECTS[dialect].posts(item, "", "chatml")[0].read(answer)


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        ("openrlhf", {"rewards": [None, float("nan")]}),
        ("vllm", {"data": [{"index": 0, "probs": [None]}, {"index": 1, "probs": [float("nan")]}]}),
        ("vllm", {"data": [{"index": i, "probs": [0.2, 0.8]} for i in range(2)]}),
        ("sglang", [{"embedding": [None]}, {"embedding": [0.1, 0.2]}]),
        ("sglang", [{"embedding": []}, {"embedding": [float("inf")]}]),
        ("tei", [[{"score": None}], [{"score": 1.0}, {"score": 2.0}]]),
    ],
)
def test_null_nan_and_several_labels_are_errors_of_their_response(dialect, answer):
    scores = read(dialect, answer)
    assert len(scores) == 2
    assert all(score.score is None and not score.transient for score in scores)


@pytest.mark.parametrize("answer", [None, float("nan"), {"score": None}])
def test_slime_s_null_is_an_error(answer):
    assert read("slime", answer)[0].error


@pytest.mark.parametrize("answer", [0.7, 1, {"score": 0.7}, {"score": 1, "model": "m"}])
def test_slime_s_number_may_stand_in_an_object(answer):
    expected = answer["score"] if isinstance(answer, dict) else answer
    assert read("slime", answer)[0].score == expected


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        ("openrlhf", {"rewards": [1.0]}),
        ("openrlhf", {"rewards": ["1.0", "2.0"]}),
        ("openrlhf", {"scores": [1.0, 2.0]}),
        ("openrlhf", {"rewards": 1.0}),
        ("vllm", {"data": [{"index": 0, "probs": [1.0]}, {"index": 0, "probs": [1.0]}]}),
        ("vllm", {"data": [{"index": 0, "probs": [1.0]}]}),
        ("vllm", {"data": [[{"score": 1.0, "label": "LABEL_0"}]]}),
        ("sglang", {"embedding": [1.0]}),
        ("sglang", [{"embedding": [1.0]}]),
        ("tei", [{"score": 1.0}, {"score": 1.0}]),
        ("slime", "0.7"),
        ("slime", True),
        ("slime", {"reward": 1.0}),
        ("panoply", {"results": []}),
        *(("panoply", our_answer(score)) for score in ("1.0", True, "NaN", [1.0], {}, 1e39)),
        ("vllm", {"data": [{"index": 0, "probs": [True]}, {"index": 1, "probs": ["1.0"]}]}),
        ("sglang", [{"embedding": [True]}, {"embedding": ["1.0"]}]),
        ("tei", [[{"score": "1.0"}], [{"score": True}]]),
    ],
)
def test_an_answer_of_another_kind_is_no_score_at_all(dialect, answer):
    with pytest.raises(ValueError, match=r".+"):
        read(dialect, answer)
    for other in (None, [], {}, "x", [None], {"data": None}):
        if (dialect, other) != ("slime", None):
            with pytest.raises(ValueError, match=r".+"):
                read(dialect, other)


def test_vllm_s_entries_are_put_in_order_by_their_index():
    data = [{"index": 1, "probs": [2.0]}, {"index": 0, "probs": [1.0]}]
    assert [score.score for score in read("vllm", {"data": data})] == [1, 2]


def test_logs_of_another_length_are_no_objectives():
    logs = {"helpfulness": [1, 2.5], "steps": [1], "why": ["a", None], "mean": 3.0}
    logs["was_cut"] = [True, False]
    scores = read("openrlhf", {"rewards": [0, 1.0], "extra_logs": logs})
    assert [score.score for score in scores] == [0, 1]
    assert [score.details.objectives for score in scores] == [
        {"helpfulness": 1},
        {"helpfulness": 2.5},
    ]

"""Each client's payloads, answered and read as that client reads them."""

import base64
import math
import struct
import subprocess
import sys
from typing import get_args

import pytest

from panoply.data.schema import ROLES
from panoply.wire.endpoints import ENDPOINTS, endpoint_at
from panoply.wire.request import Chat, Rendered, Role, Tokens, sigmoid
from tests.wire_scores import asked, post

USER = {"role": "user", "content": "Why?"}
CHAT = [USER, {"role": "assistant", "content": "So. #1.5"}]
TEXT = "<|user|>Why?<|end|><|assistant|>So. #1.5<|end|>"


def squashed(score):
    return 1 / (1 + math.exp(-score))


# OpenRLHF


def test_openrlhf_of_today_sends_one_sample_and_reads_three_keys():
    prompt = "<|user|>Why?<|end|><|assistant|>"
    payload = {"query": [TEXT], "prompts": [prompt], "labels": [None]}
    status, answer = post("/get_reward", payload)
    assert status == 200
    # The client: reward=info.get("rewards"), scores=info.get("scores") or rewards, extra_logs.
    assert answer["rewards"] == answer["scores"] == [1.5]
    assert answer["extra_logs"] == {"helpfulness": [0.75], "brevity": [-1.5]}
    assert asked("/get_reward", payload).items == (Rendered(prompt, ("So. #1.5<|end|>",)),)


def test_openrlhf_up_to_0_5_sends_queries_alone():
    status, answer = post("/get_reward", {"query": ["a #1", "b #-2", "c #3"]})
    assert status == 200
    assert answer["rewards"] == [1, -2, 3]


def test_openrlhf_s_other_urls_get_empty_lists_for_empty_lists():
    status, answer = post("/get_reward", {"query": [], "prompts": [], "labels": []})
    assert status == 200
    assert answer == {"rewards": [], "scores": [], "extra_logs": {}}


def test_a_prompt_that_openrlhf_truncated_leaves_the_query_whole():
    payload = {"query": ["end of prompt. So #1"], "prompts": ["start and end of prompt."]}
    assert asked("/get_reward", payload).items == (Rendered("", ("end of prompt. So #1",)),)


def test_openrlhf_s_labels_arrive_whatever_they_are():
    payload = {"query": ["a #1", "b #2"], "labels": ["42", {"gold": [1, None]}]}
    assert [i.label for i in asked("/get_reward", payload).items] == ["42", {"gold": [1, None]}]


# vLLM and verl


def test_verl_reads_the_last_of_probs_from_vllm():
    payload = {"model": "/models/rm", "input": TEXT, "use_activation": False}
    status, answer = post("/classify", payload)
    assert status == 200
    assert answer["data"][-1]["probs"][-1] == 1.5
    assert answer["model"] == "/models/rm"
    assert asked("/classify", payload).models == ("/models/rm",)


def test_vllm_s_classify_has_the_keys_of_vllm():
    status, answer = post("/v1/classify", {"model": "m", "input": ["a #1", "b #-1"]})
    assert status == 200
    assert answer.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert answer["object"] == "list"
    assert answer["id"].startswith("classify-")
    for i, (entry, score) in enumerate(zip(answer["data"], (1, -1), strict=True)):
        probs = pytest.approx([squashed(score)])
        assert entry == {"index": i, "label": "LABEL_0", "probs": probs, "num_classes": 1}
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 9


@pytest.mark.parametrize("switch", ["use_activation", "activation", "softmax"])
def test_raw_scores_are_one_flag_away_in_vllm_by_each_of_its_names(switch):
    for path, payload, read in (
        ("/classify", {"input": TEXT}, lambda a: a["data"][0]["probs"][-1]),
        ("/pooling", {"input": TEXT}, lambda a: a["data"][0]["data"][-1]),
        ("/score", {"text_1": "q", "text_2": "So #1.5"}, lambda a: a["data"][0]["score"]),
        ("/rerank", {"query": "q", "documents": ["So #1.5"]}, score_of_first),
    ):
        assert read(post(path, payload | {switch: False})[1]) == 1.5
        assert read(post(path, payload | {switch: True})[1]) == pytest.approx(squashed(1.5))
        assert read(post(path, payload)[1]) == pytest.approx(squashed(1.5))
        assert read(post(path, payload | {switch: None})[1]) == pytest.approx(squashed(1.5))


def score_of_first(answer):
    return answer["results"][0]["relevance_score"]


def test_messages_are_rendered_by_us_and_the_last_turn_is_what_is_scored():
    payload = {
        "model": "m",
        "messages": CHAT,
        "add_generation_prompt": False,
        "add_special_tokens": False,
        "use_activation": False,
        "truncate_prompt_tokens": 4096,
        "chat_template_kwargs": {},
    }
    status, answer = post("/classify", payload)
    assert status == 200
    assert answer["data"][0]["probs"] == [1.5]
    assert asked("/classify", payload).items == (Chat((USER,), ("So. #1.5",)),)
    parts = [USER, {"role": "assistant", "content": [{"type": "text", "text": "So. #1.5"}]}]
    assert asked("/classify", payload | {"messages": parts}) == asked("/classify", payload)


def test_token_ids_stay_token_ids():
    one = asked("/classify", {"input": [1, 2, 3]})
    many = asked("/classify", {"input": [[1, 2, 3], [4]]})
    assert one.items == (Tokens(((1, 2, 3),)),)
    assert many.items == (Tokens(((1, 2, 3),)), Tokens(((4,),)))
    answer = post("/classify", {"input": [[1, 2, 3], [4]], "use_activation": False})[1]
    assert [entry["probs"] for entry in answer["data"]] == [[0.6], [0.4]]


def test_vllm_s_pooling_gives_floats_or_base64():
    payload = {"model": "m", "input": ["a #1.5"], "task": "classify", "use_activation": False}
    answer = post("/pooling", payload)[1]
    assert answer["data"] == [{"index": 0, "object": "pooling", "data": [1.5]}]
    coded = post("/pooling", payload | {"encoding_format": "base64"})[1]["data"][0]["data"]
    assert struct.unpack("<f", base64.b64decode(coded)) == (1.5,)
    assert post("/pooling", payload | {"task": "embed"})[0] == 400


@pytest.mark.parametrize(
    ("first", "second"),
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
def test_vllm_s_score_takes_one_to_many_and_pairs_by_all_of_its_names(first, second):
    payload = {"model": "m", first: "q", second: ["a #1", "b #2"], "use_activation": False}
    status, answer = post("/v1/score", payload)
    assert status == 200
    assert [(e["index"], e["object"], e["score"]) for e in answer["data"]] == [
        (0, "score", 1),
        (1, "score", 2),
    ]
    one = asked("/score", payload).items
    assert one == (Chat(({"role": "user", "content": "q"},), ("a #1", "b #2")),)
    assert len(asked("/score", payload | {first: ["q", "r"]}).items) == 2
    status, answer = post("/score", payload | {first: ["q", "r", "s"]})
    assert status == 400
    assert "1:1, 1:N or N:N, got 3:2" in answer["error"]["message"]


def test_vllm_s_rerank_is_sorted_with_its_documents():
    payload = {"model": "m", "query": "q", "documents": ["a #1", "b #9", "c #1", "d #-3"]}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        results = post(path, payload)[1]["results"]
        assert [r["index"] for r in results] == [1, 0, 2, 3]
        assert results[0]["document"] == {"text": "b #9"}
    for top_n, wanted in ((2, [1, 0]), (0, [1, 0, 2, 3]), (None, [1, 0, 2, 3]), (1, [1])):
        ranked = post("/rerank", payload | {"top_n": top_n})[1]["results"]
        assert [r["index"] for r in ranked] == wanted


def test_ranks_follow_raw_scores_where_the_sigmoid_is_full():
    payload = {"query": "q", "documents": ["a #50", "b #60"]}
    results = post("/rerank", payload)[1]["results"]
    assert [r["relevance_score"] for r in results] == [1, 1]
    assert [r["index"] for r in results] == [1, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"date": "today"}},
        {"add_generation_prompt": True},
        {"continue_final_message": True},
        {"messages": [USER]},
        {"messages": []},
        {"messages": [CHAT[1]]},
        {"messages": [USER, CHAT[1] | {"tool_calls": [{"name": "f"}]}]},
        {"messages": [USER, CHAT[1] | {"reasoning_content": "Hm."}]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]},
        {"messages": [{"role": "narrator", "content": "x"}, CHAT[1]]},
        {"input": "both"},
    ],
)
def test_what_would_move_a_score_in_silence_is_refused(change):
    status, answer = post("/classify", {"model": "m", "messages": CHAT} | change)
    assert status == 400
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "BadRequestError"
    assert f"`{'body' if 'input' in change else next(iter(change))}" in answer["error"]["message"]


# SGLang


def test_sglang_s_list_is_answered_with_a_list_of_raw_scores():
    status, answer = post("/classify", {"model": "m", "text": ["a #7.81", "b #-60"]})
    assert status == 200
    # Its documentation reads [r["embedding"][0] for r in response.json()].
    assert [entry["embedding"][0] for entry in answer] == [7.81, -60]
    assert answer[0]["meta_info"]["prompt_tokens"] == 7
    alone = post("/classify", {"model": "m", "text": "a #7.81"})[1]
    assert alone["embedding"] == [7.81]
    assert post("/classify", {"input_ids": [[1, 2]]})[1][0]["embedding"] == [0.3]
    assert post("/classify", {"input_ids": [1, 2]})[1]["embedding"] == [0.3]


def test_verl_reads_the_last_embedding_from_sglang():
    status, answer = post("/v1/embeddings", {"model": "/models/rm", "input": TEXT})
    assert status == 200
    assert answer["data"][-1]["embedding"][-1] == 1.5
    coded = post("/v1/embeddings", {"input": TEXT, "encoding_format": "base64"})[1]
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert struct.unpack("<f", raw) == (1.5,)


# TEI


def test_tei_tells_a_text_from_a_pair_from_a_batch():
    raw = {"raw_scores": True, "truncate": False, "truncation_direction": "right"}
    one = [{"score": 1.5, "label": "LABEL_0"}]
    assert post("/predict", {"inputs": TEXT} | raw) == (200, one)
    pair = {"inputs": ["Why?", "So #1.5"]} | raw
    assert post("/predict", pair) == (200, one)
    assert asked("/predict", pair).items == (Chat((USER,), ("So #1.5",)),)
    batch = {"inputs": [["a #1"], ["b", "c #2"]]} | raw
    assert [p[0]["score"] for p in post("/predict", batch)[1]] == [1, 2]
    assert post("/predict", {"inputs": TEXT})[1][0]["score"] == pytest.approx(squashed(1.5))
    for wrong in (["a", "b", "c"], [["a"], []], [["a", "b", "c"]], 1, None):
        assert post("/predict", {"inputs": wrong})[0] == 422


def test_tei_s_ranks_are_sorted_and_give_texts_on_request():
    payload = {"query": "q", "texts": ["a #1", "b #2"], "raw_scores": True}
    assert post("/rerank", payload)[1] == [{"index": 1, "score": 2}, {"index": 0, "score": 1}]
    texts = post("/rerank", payload | {"return_text": True})[1]
    assert [rank["text"] for rank in texts] == ["b #2", "a #1"]


# slime


def test_slime_s_answer_is_the_number_itself():
    payload = {"prompt": "<|user|>Why?<|end|>", "response": "So #0.7", "label": None}
    assert post("/slime", payload) == (200, 0.7)
    details = post("/slime/details", payload)[1]
    assert details["score"] == 0.7  # --reward-key score
    assert details["objectives"] == {"helpfulness": 0.35, "brevity": -0.7}
    chat = {"prompt": [USER], "response": "So #0.7", "label": "gold"}
    assert post("/slime", chat) == (200, 0.7)
    assert asked("/slime", chat).items == (Chat((USER,), ("So #0.7",), "gold"),)


# All of them


def test_a_score_that_failed_fails_a_request_that_cannot_say_so():
    lost, broken = "a #lost", "b #nan"
    for path, payload, status in (
        ("/get_reward", {"query": ["c #1", broken]}, 422),
        ("/get_reward", {"query": ["c #1", broken, lost]}, 503),
        ("/classify", {"input": ["c #1", broken]}, 422),
        ("/score", {"text_1": "q", "text_2": ["c #1", broken]}, 422),
        ("/rerank", {"query": "q", "documents": ["c #1", broken]}, 422),
        ("/pooling", {"input": [lost, "c #1"]}, 503),
        ("/classify", {"text": ["c #1", broken]}, 422),
        ("/v1/embeddings", {"input": ["c #1", broken]}, 422),
        ("/predict", {"inputs": [["c #1"], [broken]]}, 424),
        ("/rerank", {"query": "q", "texts": ["c #1", lost]}, 503),
        ("/slime", {"prompt": "q", "response": broken}, 422),
        ("/slime/details", {"prompt": "q", "response": lost}, 503),
    ):
        found, answer = post(path, payload)
        assert found == status
        assert "scores failed" in str(answer)
        assert "/v1/rewards" in str(answer)


def test_errors_have_each_dialect_s_own_shape():
    keys = {"object", "message", "type", "param", "code"}
    assert post("/v1/embeddings", {})[1].keys() == keys
    assert post("/classify", {"text": 3})[1]["error"].keys() == {"message"}
    assert post("/predict", {})[1].keys() == {"error", "error_type"}
    assert isinstance(post("/get_reward", {})[1]["error"], str)
    assert post("/rerank", {"query": 1, "texts": []})[0] == 422
    assert post("/rerank", {"query": 1, "documents": []})[0] == 400


def test_dialects_at_one_path_are_told_apart_by_their_keys():
    assert endpoint_at("/classify", {"text": "x"}).dialect == "sglang"
    assert endpoint_at("/classify", {"input": "x", "text": "x"}).dialect == "vllm"
    assert endpoint_at("/classify", {}).dialect == "vllm"
    assert endpoint_at("/rerank", {"texts": []}).dialect == "tei"
    with pytest.raises(KeyError):
        endpoint_at("/unknown")
    shared = [e for e in ENDPOINTS if e.keys]
    for path in {path for endpoint in shared for path in endpoint.paths}:
        there = [e.keys for e in ENDPOINTS if path in e.paths]
        assert len(set.union(*map(set, there))) == sum(map(len, there))


def test_every_payload_has_a_schema_for_the_docs():
    for endpoint in ENDPOINTS:
        assert endpoint.call.model_json_schema()["type"] == "object"


def test_the_sigmoid_is_the_formula_and_saturates_without_overflow():
    for score in (-30.0, -2.0, 0.0, 0.5, 30.0):
        assert sigmoid(score) == pytest.approx(1 / (1 + math.exp(-score)), rel=1e-14)
    assert sigmoid(-1e30) == 0
    assert sigmoid(1e30) == 1


def test_roles_are_those_of_the_data():
    assert get_args(Role) == ROLES


def test_a_client_loads_neither_torch_nor_ray_nor_arrow():
    code = "import sys, panoply.wire.client, panoply.wire.endpoints; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "pyarrow", "transformers"} & set(done.stdout.split())

"""Each client's payloads, answered and read as that client reads them."""

import base64
import math
import struct
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch

from panoply.wire.conversation import ROLES
from panoply.wire.request import Chat, RenderedText, Role, Tokens, sigmoid
from panoply.wire.routes import ENDPOINTS, endpoint_at
from tests.builders.wire_scores import post, request_of

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
    assert request_of("/get_reward", payload).items == (RenderedText(prompt, ("So. #1.5<|end|>",)),)


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
    assert request_of("/get_reward", payload).items == (
        RenderedText("", ("end of prompt. So #1",)),
    )


def test_openrlhf_s_labels_arrive_whatever_they_are():
    payload = {"query": ["a #1", "b #2"], "labels": ["42", {"gold": [1, None]}]}
    assert [i.label for i in request_of("/get_reward", payload).items] == [
        "42",
        {"gold": [1, None]},
    ]


# vLLM and verl


def test_verl_reads_the_last_of_probs_from_vllm():
    payload = {"model": "/models/rm", "input": TEXT, "use_activation": False}
    status, answer = post("/classify", payload)
    assert status == 200
    assert answer["data"][-1]["probs"][-1] == 1.5
    assert answer["model"] == "/models/rm"
    assert request_of("/classify", payload).models == ("/models/rm",)


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
    assert request_of("/classify", payload).items == (Chat((USER,), ("So. #1.5",)),)
    parts = [USER, {"role": "assistant", "content": [{"type": "text", "text": "So. #1.5"}]}]
    assert request_of("/classify", payload | {"messages": parts}) == request_of(
        "/classify", payload
    )


def test_token_ids_stay_token_ids():
    single = request_of("/classify", {"input": [1, 2, 3]})
    many = request_of("/classify", {"input": [[1, 2, 3], [4]]})
    assert single.items == (Tokens(((1, 2, 3),)),)
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
    single = request_of("/score", payload).items
    assert single == (Chat(({"role": "user", "content": "q"},), ("a #1", "b #2")),)
    assert len(request_of("/score", payload | {first: ["q", "r"]}).items) == 2
    status, answer = post("/score", payload | {first: ["q", "r", "s"]})
    assert status == 400
    assert "1:1, 1:N or N:N, got 3:2" in answer["error"]["message"]


def test_vllm_s_rerank_is_sorted_with_its_documents():
    payload = {"model": "m", "query": "q", "documents": ["a #1", "b #9", "c #1", "d #-3"]}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        results = post(path, payload)[1]["results"]
        assert [r["index"] for r in results] == [1, 0, 2, 3]
        assert results[0]["document"] == {"text": "b #9"}
    for top_n, expected in ((2, [1, 0]), (0, [1, 0, 2, 3]), (None, [1, 0, 2, 3]), (1, [1])):
        ranked = post("/rerank", payload | {"top_n": top_n})[1]["results"]
        assert [r["index"] for r in ranked] == expected


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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("endianness", ["native", "little", "big"])
@pytest.mark.parametrize("path", ["/pooling", "/v1/embeddings"])
def test_vllm_s_base64_is_decoded_to_the_score_by_vllm_s_own_rule(path, dtype, endianness):
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    scores = torch.tensor([-1.1, 2.126953125, 1 / 3, 0.0, -8.0, 1.00390625, 6.1e-5, -60000.0])
    form = {"encoding_format": "base64", "embed_dtype": dtype, "endianness": endianness}
    switch = {"use_activation": False}
    texts = [f"a #{score!r}" for score in scores.tolist()]
    data = post(path, {"model": "m", "input": texts} | switch | form)[1]["data"]
    for entry, score in zip(data, scores, strict=True):
        raw = np.frombuffer(base64.b64decode(entry.get("data", entry.get("embedding"))), np.uint8)
        swapped = endianness not in ("native", sys.byteorder)
        decoded = torch.from_numpy(raw[::-1].copy() if swapped else raw.copy()).view(kinds[dtype])
        assert decoded.tolist() == score.to(kinds[dtype]).flatten().tolist()
    listed = post(
        path, {"model": "m", "input": texts} | switch | form | {"encoding_format": "float"}
    )
    assert [entry.get("data", entry.get("embedding")) for entry in listed[1]["data"]] == [
        [score] for score in scores.tolist()
    ]


def test_a_score_that_a_small_type_cannot_hold_is_an_error_and_not_infinite():
    for dtype, score in (("float16", "1e6"), ("bfloat16", "3.4e38")):
        form = {"encoding_format": "base64", "embed_dtype": dtype}
        status, answer = post("/v1/embeddings", {"input": f"a #{score}"} | form)
        assert status == 422
        assert f"too large for {dtype}: ask for `embed_dtype` float32" in answer["message"]


def test_encodings_that_are_not_spoken_are_refused_by_name():
    for change in (
        {"encoding_format": "bytes"},
        {"encoding_format": "bytes_only"},
        {"embed_dtype": "fp8_e4m3"},
        {"endianness": "middle"},
    ):
        for path in ("/pooling", "/v1/embeddings"):
            status, answer = post(path, {"input": "a #1"} | change)
            assert status == 400
            assert f"`{next(iter(change))}`: Input should be" in str(answer)


CLASSIFY = {"input": "a #1"}
PAIRS = {"text_1": "q", "text_2": ["a #1"]}
RANKED = {"query": "q", "documents": ["a #1"]}
NATIVE = {"text": "a #1"}
TEI_RANKED = {"query": "q", "texts": ["a #1"]}


@pytest.mark.parametrize(
    ("path", "payload", "change", "message"),
    [
        ("/classify", CLASSIFY, {"chat_template_kwargs": {"a": 1}}, "renders by the chat template"),
        ("/classify", CLASSIFY, {"mm_processor_kwargs": {"a": 1}}, "text alone is scored"),
        ("/classify", CLASSIFY, {"padding": "max_length"}, "Input should be 'do_not_pad'"),
        ("/classify", CLASSIFY, {"normalize": True}, "`use_activation` false gives raw scores"),
        ("/classify", CLASSIFY, {"use_activatoin": False}, "not read by `/classify`"),
        ("/pooling", CLASSIFY, {"dimensions": 8}, "a score has one dimension"),
        ("/score", PAIRS, {"instruction": "Be kind."}, "put it into the query, or send it as a"),
        ("/score", PAIRS, {"chat_template_kwargs": {"a": 1}}, "renders by the chat template"),
        ("/score", {"items": ["a"]}, {"query": "q"}, "with `queries` and `documents`"),
        ("/rerank", RANKED, {"instruction": "Be kind."}, "put it into the query, or send it as a"),
        ("/rerank", RANKED, {"instruct": "Be kind."}, "put it into the query, or send it as a"),
        ("/rerank", RANKED, {"rank_fields": ["title"]}, "Input should be 'text'"),
        ("/rerank", RANKED, {"max_chunks_per_doc": 2}, "no document is split into chunks"),
        ("/rerank", RANKED, {"raw_scores": True}, "`use_activation` false gives raw scores"),
        ("/rerank", RANKED, {"relevant_spans": {"count": 1}}, "a score and no spans"),
        ("/classify", NATIVE, {"image_data": "x"}, "text alone is scored"),
        ("/classify", NATIVE, {"lora_path": "x"}, "serve the adapted one as a model of its own"),
        ("/classify", NATIVE, {"token_indices_to_pool": [1]}, "pools where it was trained to"),
        ("/encode", NATIVE, {"dimensions": 2}, "Input should be 1"),
        ("/v1/embeddings", CLASSIFY, {"dimensions": 8}, "Input should be 1"),
        ("/v1/embeddings", CLASSIFY, {"normalize": True}, "a score of length 1 says nothing"),
        ("/v1/embeddings", CLASSIFY, {"use_activation": True}, "scores are raw here"),
        ("/v1/embeddings", {"model": "m"}, {"messages": CHAT}, "are scored at `/classify`"),
        ("/sglang/v1/rerank", RANKED, {"instruct": "Be kind."}, "put it into the query"),
        ("/predict", {"inputs": "a #1"}, {"prompt_name": "query"}, "not read by `/predict`"),
        (
            "/predict",
            {"inputs": "a #1"},
            {"parameters": {"function_to_apply": "softmax"}},
            "Input should be 'sigmoid' or 'none'",
        ),
        ("/rerank", TEI_RANKED, {"normalize": True}, "not read by `/rerank`"),
        ("/get_reward", {"query": ["a #1"]}, {"images": ["x"]}, "not read by `/get_reward`"),
        ("/slime", {"prompt": "q", "response": "a #1"}, {"scale": 2}, "not read by `/slime`"),
        ("/v1/score/evaluation", {"messages": ["a #1"]}, {"scale": 2}, "not read by"),
    ],
)
def test_a_key_that_may_change_the_number_is_refused_by_name_with_what_to_do(
    path, payload, change, message
):
    status, answer = post(path, payload | change)
    assert status == (422 if endpoint_at(path, payload).dialect == "tei" else 400)
    assert f"`{next(iter(change))}" in str(answer)
    assert message in str(answer)
    nothing = dict.fromkeys(change)
    if set(payload) - {"model", "items"}:
        assert post(path, payload | nothing)[0] == 200


RENDERED_AS_USUAL = {
    "add_generation_prompt": False,
    "continue_final_message": False,
    "add_special_tokens": False,
    "chat_template": None,
    "chat_template_kwargs": None,
    "media_io_kwargs": None,
    "request_id": "1f",
    "priority": 0,
}
ORDINARY = [
    ("/classify", CLASSIFY | {"user": "u", "request_id": "r", "priority": -1, "cache_salt": "s"}),
    ("/classify", CLASSIFY | {"add_special_tokens": True, "chat_template_kwargs": {}}),
    ("/classify", {"messages": CHAT, "continue_final_message": False, "media_io_kwargs": None}),
    ("/pooling", CLASSIFY | {"truncate_prompt_tokens": -1, "truncation_side": "left"}),
    ("/score", PAIRS | {"max_tokens_per_query": 0, "max_tokens_per_doc": 0, "instruction": None}),
    # litellm's `hosted_vllm`, Cohere's clients and vLLM's benchmark
    ("/rerank", RANKED | {"model": "m", "top_n": None, "return_documents": True}),
    ("/v1/rerank", RANKED | {"rank_fields": ["text"], "max_chunks_per_doc": None}),
    ("/v2/rerank", RANKED | {"model": "m", "max_tokens_per_doc": 4096, "priority": 0}),
    ("/rerank", RANKED | {"model": "m", "truncate_prompt_tokens": -1, "top_n": -1}),
    ("/rerank", RANKED | {"documents": [{"id": 7, "title": "t", "text": "a #1"}]}),
    # infinity's client
    ("/rerank", RANKED | {"return_documents": False, "raw_scores": False}),
    # SGLang's own clients
    (
        "/classify",
        NATIVE | {"rid": "1", "sampling_params": {"temperature": 0}, "log_metrics": True},
    ),
    ("/encode", NATIVE | {"image_data": None, "is_cross_encoder_request": False, "priority": 1}),
    # OpenAI's, langchain's and litellm's
    ("/v1/embeddings", CLASSIFY | {"encoding_format": None, "dimensions": None, "user": "u"}),
    ("/v1/embeddings", CLASSIFY | {"encoding_format": "base64", "dimensions": 1}),
    ("/v1/embeddings", CLASSIFY | {"mm_processor_kwargs": {}, "padding": "do_not_pad"}),
    # vLLM's requests with every field at its default
    *(
        (path, payload | RENDERED_AS_USUAL)
        for path, payload in (
            ("/classify", CLASSIFY),
            ("/pooling", CLASSIFY),
            ("/score", PAIRS),
            ("/rerank", RANKED),
            ("/v1/embeddings", CLASSIFY),
        )
    ),
    # huggingface_hub's, rerankers', haystack's, litellm's and continue.dev's
    ("/", {"inputs": "a #1", "parameters": {}, "options": {"wait_for_model": True}}),
    ("/", {"inputs": "a #1", "parameters": {"top_k": 1, "function_to_apply": None}}),
    ("/rerank", TEI_RANKED | {"model": "bge", "top_n": 1, "return_text": True}),
    ("/rerank", TEI_RANKED | {"raw_scores": False, "truncation_direction": "Right"}),
    ("/rerank", TEI_RANKED | {"truncate": True, "truncation_direction": "Left"}),
    ("/v1/score/evaluation", {"model": "model", "messages": ["a #1"], "max_length": None}),
]


@pytest.mark.parametrize(("path", "payload"), ORDINARY)
def test_what_clients_send_without_asking_for_anything_is_no_obstacle(path, payload):
    status, answer = post(path, payload)
    assert status == 200, answer


@pytest.mark.parametrize(
    ("path", "payload", "key"),
    [
        ("/classify", {"input": ["a #1", "x" * 30 + " #2"]}, "truncate_prompt_tokens"),
        ("/pooling", {"input": ["a #1", "x" * 30 + " #2"]}, "truncate_prompt_tokens"),
        ("/score", {"text_1": "q", "text_2": ["a #1", "x" * 30 + " #2"]}, "max_tokens_per_doc"),
        ("/score", {"text_1": "q", "text_2": ["a #1", "x" * 30 + " #2"]}, "max_tokens_per_query"),
        ("/rerank", {"query": "q", "documents": ["a #1", "x" * 30 + " #2"]}, "max_tokens_per_doc"),
        ("/v1/embeddings", {"input": ["a #1", "x" * 30 + " #2"]}, "truncate_prompt_tokens"),
        ("/v1/score/evaluation", {"messages": ["a #1", "x" * 30 + " #2"]}, "max_length"),
    ],
)
def test_a_client_s_limit_is_kept_where_it_cuts_nothing_and_refused_where_it_would(
    path, payload, key
):
    whole = post(path, payload)
    assert whole[0] == 200
    assert post(path, payload | {key: 33}) == whole
    status, answer = post(path, payload | {key: 32})
    assert status == 400
    assert f"`{key}`: 32 may cut text 1, which was scored with 33 tokens" in str(answer)


def test_documents_may_be_objects_or_one_string():
    mixed = ["a #1", {"text": "b #9"}, {"content": [{"type": "text", "text": "c #3"}]}]
    results = post("/rerank", {"query": {"text": "q"}, "documents": mixed})[1]["results"]
    assert [(r["index"], r["document"]["text"]) for r in results] == [
        (1, "b #9"),
        (2, "c #3"),
        (0, "a #1"),
    ]
    assert request_of("/rerank", {"query": {"text": "q"}, "documents": mixed}).items[0].prompt == (
        {"role": "user", "content": "q"},
    )
    (alone,) = post("/rerank", {"query": "q", "documents": "a #1"})[1]["results"]
    assert alone["document"] == {"text": "a #1"}
    (bare,) = post("/rerank", RANKED | {"return_documents": False})[1]["results"]
    assert bare.keys() == {"index", "relevance_score"}
    pairs = {"queries": [{"text": "q"}, "r"], "documents": mixed[1:], "use_activation": False}
    assert [entry["score"] for entry in post("/score", pairs)[1]["data"]] == [9, 3]
    for wrong in ({"title": "x"}, {"content": [{"type": "image_url", "image_url": "x"}]}, 3):
        status, answer = post("/rerank", {"query": "q", "documents": [wrong]})
        assert status == 400
        assert "`documents." in answer["error"]["message"]


def test_vllm_s_reward_example_is_told_what_to_add_to_its_messages():
    question = {"role": "user", "content": [{"type": "text", "text": "vLLM is great!"}]}
    status, answer = post("/pooling", {"model": "m", "messages": [question]})
    assert status == 400
    assert "add it as a turn of the role 'assistant'" in answer["error"]["message"]
    reply = {"role": "assistant", "content": "So it is. #2"}
    payload = {"model": "m", "messages": [question, reply], "use_activation": False}
    assert post("/pooling", payload)[1]["data"][0]["data"] == [2]


def test_a_name_is_handed_on_and_keys_without_a_value_are_none():
    named = {"role": "tool", "content": "5", "name": "add", "tool_calls": None, "thinking": ""}
    turns = [USER | {"name": None, "tool_calls": []}, CHAT[1] | {"tool_calls": None}, named]
    reply = {"role": "assistant", "content": [{"type": "text", "text": "x #1", "image": None}]}
    expected = (USER, CHAT[1], {"role": "tool", "content": "5", "name": "add"})
    assert request_of("/classify", {"messages": [*turns, reply]}).items == (
        Chat(expected, ("x #1",)),
    )
    assert request_of("/slime", {"prompt": turns, "response": "x #1"}).items[0].prompt == expected


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


def test_sglang_s_ranks_are_a_bare_list_of_raw_scores():
    payload = {"query": "q", "documents": ["a #1", "b #9", "c #1"], "top_n": 2}
    ranks = post("/sglang/v1/rerank", payload)[1]
    assert [(r["score"], r["document"], r["index"]) for r in ranks] == [
        (9, "b #9", 1),
        (1, "a #1", 0),
    ]
    assert ranks[0]["meta_info"]["prompt_tokens"] == 4
    bare = post("/sglang/v1/rerank", payload | {"return_documents": False})[1]
    assert all("document" not in rank for rank in bare)
    assert post("/sglang/v1/rerank", payload | {"top_n": 0})[0] == 400


def test_sglang_s_encode_and_its_base_url_answer_as_classify_does():
    answers = [post(path, {"text": ["a #7.81"]}) for path in ("/classify", "/encode")]
    answers += [post(f"/sglang{path}", {"text": ["a #7.81"]}) for path in ("/classify", "/encode")]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][1][0]["embedding"] == [7.81]
    both = [post(f"{base}/v1/embeddings", {"input": "a #1"}) for base in ("", "/sglang")]
    assert both[0] == both[1]


# TEI


def test_tei_tells_a_text_from_a_pair_from_a_batch():
    raw = {"raw_scores": True, "truncate": False, "truncation_direction": "right"}
    single = [{"score": 1.5, "label": "LABEL_0"}]
    assert post("/predict", {"inputs": TEXT} | raw) == (200, single)
    pair = {"inputs": ["Why?", "So #1.5"]} | raw
    assert post("/predict", pair) == (200, single)
    assert request_of("/predict", pair).items == (Chat((USER,), ("So #1.5",)),)
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


def test_tei_s_bare_path_is_told_by_its_keys():
    raw = {"raw_scores": True}
    for payload, path in (
        ({"inputs": TEXT}, "/predict"),
        ({"query": "q", "texts": ["a #1"]}, "/rerank"),
    ):
        assert post("/", payload | raw) == post(path, payload | raw)
        assert post("/", payload | raw)[0] == 200
    assert post("/", {})[0] == 422


def test_huggingface_s_function_decides_over_the_sigmoid():
    for function, score in (("none", 1.5), ("sigmoid", squashed(1.5)), (None, squashed(1.5))):
        payload = {"inputs": TEXT, "parameters": {"function_to_apply": function, "top_k": 3}}
        assert post("/", payload)[1][0]["score"] == pytest.approx(score)


def test_tei_refuses_a_cut_text_where_no_text_may_be_cut():
    cut = {"inputs": [["a #1"], ["[cut] #2"]], "raw_scores": True}
    assert [p[0]["score"] for p in post("/predict", cut | {"truncate": True})[1]] == [1, 2]
    assert [p[0]["score"] for p in post("/predict", cut)[1]] == [1, 2]
    status, answer = post("/predict", cut | {"truncate": False})
    assert status == 413
    assert "the model's limits cut 3 tokens of text 1" in answer["error"]
    assert post("/rerank", {"query": "q", "texts": ["a #1"], "truncate": False})[0] == 200
    assert post("/rerank", {"query": "q", "texts": ["[cut] #1"], "truncate": False})[0] == 413


# LLaMA-Factory


def test_llama_factory_reads_scores_and_names_no_model_by_model():
    payload = {"model": "model", "messages": ["a #1.5", "b #-2"]}
    status, answer = post("/v1/score/evaluation", payload)
    assert status == 200
    assert answer["object"] == "score.evaluation"
    assert answer["id"].startswith("scoreval-")
    assert answer["scores"] == [1.5, -2]
    assert post("/", payload)[1]["scores"] == [1.5, -2]
    assert request_of("/v1/score/evaluation", payload).models == ()
    assert request_of("/v1/score/evaluation", payload | {"model": "a"}).models == ("a",)
    status, answer = post("/v1/score/evaluation", {"messages": "a #1"})
    assert status == 400
    assert "`messages`: Input should be a valid list" in answer["detail"]


# slime


def test_slime_s_answer_is_the_number_itself():
    payload = {"prompt": "<|user|>Why?<|end|>", "response": "So #0.7", "label": None}
    assert post("/slime", payload) == (200, 0.7)
    details = post("/slime/details", payload)[1]
    assert details["score"] == 0.7  # --reward-key score
    assert details["objectives"] == {"helpfulness": 0.35, "brevity": -0.7}
    chat = {"prompt": [USER], "response": "So #0.7", "label": "gold"}
    assert post("/slime", chat) == (200, 0.7)
    assert request_of("/slime", chat).items == (Chat((USER,), ("So #0.7",), "gold"),)


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
        received, answer = post(path, payload)
        assert received == status
        assert "scores failed" in str(answer)
        assert "/v1/rewards" in str(answer)


def test_every_dialect_says_which_text_was_cut():
    cut, whole = "[cut] #1", "a #2"
    data = {"input": [whole, cut]}
    for path, payload, read in (
        ("/classify", data, lambda a: a["data"]),
        ("/pooling", data, lambda a: a["data"]),
        ("/score", {"text_1": "q", "text_2": [whole, cut]}, lambda a: a["data"]),
        ("/rerank", {"query": "q", "documents": [whole, cut]}, lambda a: a["results"]),
        ("/classify", {"text": [whole, cut]}, lambda a: [entry["meta_info"] for entry in a]),
        ("/v1/embeddings", data, lambda a: a["data"]),
        (
            "/sglang/v1/rerank",
            {"query": "q", "documents": [whole, cut]},
            lambda a: [entry["meta_info"] for entry in a],
        ),
        ("/predict", {"inputs": [[whole], [cut]]}, lambda a: [labels[0] for labels in a]),
        ("/rerank", {"query": "q", "texts": [whole, cut]}, lambda a: a),
        (
            "/v1/rewards",
            {"items": [{"prompt": [USER], "responses": [whole, cut]}]},
            lambda a: a["results"][0]["items"][0],
        ),
        (
            "/v1/compare",
            {"pairs": [{"prompt": [USER], "a": whole, "b": text} for text in (whole, cut)]},
            lambda a: a["results"],
        ),
    ):
        status, answer = post(path, payload)
        assert status == 200
        assert [entry.get("truncated") for entry in read(answer)] == [None, True]
    for path, payload in (
        ("/get_reward", {"query": [whole, cut]}),
        ("/v1/score/evaluation", {"messages": [whole, cut]}),
    ):
        assert post(path, payload)[1]["truncated"] == [False, True]
        key = next(iter(payload))
        assert "truncated" not in post(path, {key: [whole]})[1]
    sample = {"prompt": "q", "response": cut}
    assert post("/slime/details", sample)[1]["truncated"] is True
    assert post("/slime", sample) == (200, 1)


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
        assert endpoint.payload.model_json_schema()["type"] == "object"


def test_the_sigmoid_is_the_formula_and_saturates_without_overflow():
    for score in (-30.0, -2.0, 0.0, 0.5, 30.0):
        assert sigmoid(score) == pytest.approx(1 / (1 + math.exp(-score)), rel=1e-14)
    assert sigmoid(-1e30) == 0
    assert sigmoid(1e30) == 1


def test_roles_are_those_of_the_data():
    assert get_args(Role) == ROLES


def test_a_client_loads_neither_torch_nor_ray_nor_arrow():
    code = "import sys, panoply.wire.client, panoply.wire.routes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "pyarrow", "transformers"} & set(done.stdout.split())

"""Payloads exactly as clients that are too heavy for a test send them, and what they read back.

The bodies were taken from the clients' published code: OpenRLHF 0.5 to 0.11, slime, verl 0.9.1,
vLLM 0.33's examples, SGLang, TEI and its clients (langchain, llama-index, haystack), LLaMA-Factory.
"""

import asyncio
import base64
import math
import struct

import aiohttp
import pytest
import requests

from tests.clients.dialogs import DIALOGS, DISTINCT, MODELS, opening, whole

pytestmark = pytest.mark.ray

END = "<|end|>"
SLOW = 180
"""Seconds for a request of some 70 conversations, one of 20,000 tokens among them."""


def close(numbers):
    return pytest.approx(numbers, rel=1e-4, abs=1e-4)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def post(url, body):
    answer = requests.post(url, json=body, timeout=SLOW)
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(served):
    """Whole conversations in the model's own template."""
    return [whole(served.tokenizer, prompt, reply) for prompt, reply in DIALOGS]


def token_ids(served):
    return [served.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts(served)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("end", ["", END, END + "\n"])
def test_openrlhf_sends_batches_of_decoded_text(served, model, end):
    prompts = [opening(served.tokenizer, prompt) for prompt, _ in DIALOGS]
    queries = [text + reply + end for text, (_, reply) in zip(prompts, DIALOGS, strict=True)]
    labels = [None] * len(prompts)
    for body in (
        {"query": queries},  # 0.5
        {"query": queries, "prompts": prompts},  # 0.6
        {"query": queries, "prompts": prompts, "labels": labels},  # 0.9, 0.11
    ):
        answer = post(f"{served.at(model)}/get_reward", body)
        assert answer["rewards"] == close(served.scores[model])
        assert answer["scores"] == answer["rewards"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("as_messages", [True, False])
def test_slime_sends_one_sample_at_a_time_and_many_at_once(served, model, as_messages):
    async def ask(session, prompt, reply):
        text = prompt if as_messages else opening(served.tokenizer, prompt)
        body = {"prompt": text, "response": reply + END, "label": None}
        async with session.post(f"{served.at(model)}/slime", json=body) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def ask_all():
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(ask(session, *dialog) for dialog in DIALOGS))

    assert asyncio.run(ask_all()) == close(served.scores[model])


@pytest.mark.parametrize("model", MODELS)
def test_verl_asks_a_classifier_and_an_embedding_for_one_text(served, model):
    for text, score in list(zip(texts(served), served.scores[model], strict=True))[::6]:
        body = {"model": model, "input": text, "use_activation": False}
        answer = post(f"{served.url}/classify", body)
        assert answer["data"][-1]["probs"][-1] == close(score)
        answer = post(f"{served.url}/v1/embeddings", {"model": model, "input": text})
        assert answer["data"][-1]["embedding"][-1] == close(score)


@pytest.mark.parametrize("model", MODELS)
def test_vllm_classifies_and_pools_texts_and_token_ids(served, model):
    for conversations in (texts(served), token_ids(served)):
        body = {"model": model, "input": conversations, "use_activation": False}
        data = post(f"{served.url}/classify", body)["data"]
        assert [row["probs"][0] for row in data] == close(served.scores[model])
        data = post(f"{served.url}/pooling", body)["data"]
        assert [row["data"][0] for row in data] == close(served.scores[model])
    body |= {"encoding_format": "base64", "endianness": "big"}
    data = post(f"{served.url}/pooling", body)["data"]
    numbers = [struct.unpack(">f", base64.b64decode(row["data"]))[0] for row in data]
    assert numbers == close(served.scores[model])


@pytest.mark.parametrize("model", MODELS)
def test_vllm_classifies_a_conversation_in_messages(served, model):
    for place, (prompt, reply) in list(enumerate(DIALOGS))[::7]:
        turns = [*prompt, {"role": "assistant", "content": reply}]
        answer = post(f"{served.url}/classify", {"model": model, "messages": turns})
        assert answer["data"][0]["probs"] == close([sigmoid(served.scores[model][place])])


@pytest.mark.parametrize("model", MODELS)
def test_sglang_classifies_texts_and_token_ids(served, model):
    for body in ({"text": texts(served)}, {"input_ids": token_ids(served)}):
        answer = post(f"{served.url}/classify", {"model": model, **body})
        assert [row["embedding"][0] for row in answer] == close(served.scores[model])


@pytest.mark.parametrize("model", MODELS)
def test_tei_predicts_a_batch_of_texts(served, model):
    body = {"inputs": [[text] for text in texts(served)], "raw_scores": True, "truncate": True}
    answer = post(f"{served.at(model)}/predict", body)
    assert [labels[0]["score"] for labels in answer] == close(served.scores[model])


@pytest.mark.parametrize(
    "extra",
    [
        {"raw_scores": False, "return_text": False, "truncate": True},  # langchain, haystack
        {"return_text": False},  # llama-index
    ],
)
def test_clients_of_tei_rerank_documents(served, extra):
    query = DISTINCT[-1][0][0]["content"]
    replies = [reply for _, reply in DISTINCT]
    answer = post(f"{served.at('scalar')}/rerank", {"query": query, "texts": replies, **extra})
    by_place = {rank["index"]: rank["score"] for rank in answer}
    items = [{"prompt": DISTINCT[-1][0], "responses": replies}]
    ours = post(f"{served.url}/v1/rewards", {"models": ["scalar"], "items": items})
    raw = [score["score"] for score in ours["results"][0]["items"][0]]
    assert [by_place[i] for i in range(len(replies))] == close([sigmoid(x) for x in raw])


@pytest.mark.parametrize("model", MODELS)
def test_llama_factory_asks_for_the_scores_of_texts(served, model):
    body = {"model": "model", "messages": texts(served)}
    answer = post(f"{served.at(model)}/v1/score/evaluation", body)
    assert answer["scores"] == close(served.scores[model])


def test_one_request_with_64_prompts_is_answered_by_every_model(served):
    items = [{"prompt": prompt, "responses": [reply]} for prompt, reply in DIALOGS]
    answer = post(f"{served.url}/v1/rewards", {"models": [*MODELS, "length"], "items": items})
    for result in answer["results"]:
        scores = [item[0]["score"] for item in result["items"]]
        expected = served.scores.get(result["model"], [len(reply) for _, reply in DIALOGS])
        assert scores == close(expected)


def test_an_answer_says_which_texts_were_cut(served):
    items = [{"prompt": prompt, "responses": [reply]} for prompt, reply in DIALOGS]
    cut = [sum(len(t["content"]) for t in p) + len(r) > 900 for p, r in DIALOGS]
    body = {"models": ["gated"], "items": items}
    answer = requests.post(f"{served.url}/v1/rewards", json=body, timeout=SLOW)
    marks = [item[0].get("truncated", False) for item in answer.json()["results"][0]["items"]]
    assert [mark for mark, is_long in zip(marks, cut, strict=True) if is_long] == [True] * 2
    assert answer.headers["X-Truncated-Texts"] == str(sum(marks))

"""Client libraries as their users call them: what they return are the in-process scores."""

import json
import math
import os
import subprocess
import sys

import pytest

from tests.clients.dialogs import DIALOGS, DISTINCT, MODELS, whole

pytestmark = pytest.mark.ray

QUERY = "How do I fix a tap?"
DOCUMENTS = [reply for _, reply in DISTINCT if reply.strip()]
"""Replies of all kinds; most libraries refuse an empty document themselves."""


@pytest.fixture(scope="module")
def ranked(served):
    """Raw in-process scores of the documents as replies to the query, by model."""
    from panoply.hub.artefact.load import load_reward_model

    prompt = [{"role": "user", "content": QUERY}]
    return {
        name: load_reward_model(folder).score(prompt, DOCUMENTS).tolist()
        for name, folder in served.folders.items()
    }


def texts(served):
    return [whole(served.tokenizer, prompt, reply) for prompt, reply in DIALOGS]


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def close(numbers):
    return pytest.approx(numbers, rel=1e-4, abs=1e-4)


def in_order(results, num):
    """Scores by the place of their document, from (place, score)."""
    scores = dict(results)
    assert sorted(scores) == list(range(num))
    assert [place for place, _ in results] == sorted(scores, key=lambda i: -scores[i])
    return [scores[i] for i in range(num)]


@pytest.mark.parametrize("model", MODELS)
def test_openai_embeddings_hold_the_raw_score(served, model):
    import openai

    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    made = client.embeddings.create(model=model, input=texts(served))  # base64, as it asks
    assert [row.embedding[0] for row in made.data] == close(served.scores[model])
    made = client.embeddings.create(model=model, input=texts(served)[3], encoding_format="float")
    assert made.data[0].embedding[0] == close(served.scores[model][3])


def test_openai_lists_and_retrieves_the_models(served):
    import openai

    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert {model.id for model in client.models.list()} == {*MODELS, "length"}
    assert client.models.retrieve("gated").id == "gated"
    with pytest.raises(openai.NotFoundError, match="gated"):
        client.models.retrieve("none")


@pytest.mark.parametrize("model", MODELS)
def test_cohere_reranks_by_the_score(served, ranked, model):
    import cohere

    for client in (
        cohere.ClientV2("none", base_url=served.url),
        cohere.Client("none", base_url=served.url),
    ):
        answer = client.rerank(model=model, query=QUERY, documents=DOCUMENTS)
        scores = in_order([(r.index, r.relevance_score) for r in answer.results], len(DOCUMENTS))
        assert scores == close([sigmoid(score) for score in ranked[model]])
        best = client.rerank(model=model, query=QUERY, documents=DOCUMENTS, top_n=3).results
        assert [r.index for r in best] == [r.index for r in answer.results[:3]]


@pytest.mark.parametrize("provider", ["cohere", "jina", "text-embeddings-inference"])
def test_rerankers_ranks_by_the_score(served, ranked, provider):
    from rerankers.models.api_rankers import APIRanker

    url = f"{served.at('gated')}/rerank"
    ranker = APIRanker("gated", "none", provider, verbose=0, url=url)
    answer = ranker.rank(QUERY, DOCUMENTS, doc_ids=list(range(len(DOCUMENTS))))
    scores = in_order([(r.document.doc_id, r.score) for r in answer.results], len(DOCUMENTS))
    assert scores == close([sigmoid(score) for score in ranked["gated"]])


HUB_SCRIPT = """
import json, sys
from huggingface_hub import InferenceClient
client = InferenceClient(model=sys.argv[1])
texts = json.load(sys.stdin)
# The library returns the first label of what a list of labels or of lists of them holds.
print(json.dumps([client.text_classification(text)["score"] for text in texts]))
"""


@pytest.mark.parametrize("model", MODELS)
def test_huggingface_hub_classifies_a_text(served, model):
    some = slice(0, len(DIALOGS), 9)
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, f"{served.at(model)}/predict"],
        input=json.dumps(texts(served)[some]),
        # The tests' own processes are kept from the hub, and this library then asks no server.
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == close([sigmoid(x) for x in served.scores[model][some]])


@pytest.mark.parametrize("model", MODELS)
def test_litellm_reranks_and_embeds(served, ranked, model):
    import litellm

    answer = litellm.rerank(
        model=f"hosted_vllm/{model}", query=QUERY, documents=DOCUMENTS, api_base=served.url
    )
    results = [(r["index"], r["relevance_score"]) for r in answer.results]
    assert in_order(results, len(DOCUMENTS)) == close([sigmoid(x) for x in ranked[model]])
    made = litellm.embedding(
        model=f"openai/{model}",
        input=texts(served)[:8],
        api_base=f"{served.url}/v1",
        api_key="none",
        encoding_format="float",
    )
    assert [row["embedding"][0] for row in made.data] == close(served.scores[model][:8])

"""All endpoints of all dialects, to be mounted in a few lines.

    endpoint = endpoint_at(path)
    try:
        payload = decode(body, limits)
        endpoint = endpoint_at(path, payload)
        typed = endpoint.parse(payload)
        request = limits.check(typed.request())
        status, answer = 200, typed.render(await score(request), request)
    except RequestError as error:  # with a header Retry-After, where it has `retry_after`
        status, answer = endpoint.refuse(error)

A path behind `/models/{name}` names the model in place of the payload, which names none or what the
client calls it (verl sends the path of its files): `replace(request, models=(name,))`.
"""

from __future__ import annotations

from pydantic import JsonValue

from panoply.wire import compare, llamafactory, openrlhf, rewards, sglang, slime, tei, vllm
from panoply.wire.dialect import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("panoply", ("/v1/rewards",), rewards.RewardsPayload, openrlhf.refuse),
    Endpoint("panoply", ("/v1/compare",), compare.ComparePayload, openrlhf.refuse),
    Endpoint("openrlhf", ("/get_reward",), openrlhf.GetReward, openrlhf.refuse),
    Endpoint("slime", ("/slime",), slime.SlimeSample, openrlhf.refuse),
    Endpoint("slime", ("/slime/details",), slime.DetailedSlimeSample, openrlhf.refuse),
    Endpoint(
        "vllm",
        ("/classify", "/v1/classify"),
        vllm.VllmClassify,
        vllm.refuse,
        frozenset({"input", "messages"}),
    ),
    Endpoint("vllm", ("/pooling", "/v1/pooling"), vllm.VllmPooling, vllm.refuse),
    Endpoint("vllm", ("/score", "/v1/score"), vllm.VllmScore, vllm.refuse),
    Endpoint(
        "vllm",
        ("/rerank", "/v1/rerank", "/v2/rerank"),
        vllm.VllmRerank,
        vllm.refuse,
        frozenset({"documents"}),
    ),
    Endpoint(
        "sglang",
        ("/classify", "/encode", "/sglang/classify", "/sglang/encode"),
        sglang.SglangClassify,
        sglang.refuse,
        frozenset({"text", "input_ids"}),
    ),
    Endpoint(
        "sglang",
        ("/v1/embeddings", "/sglang/v1/embeddings"),
        sglang.SglangEmbeddings,
        sglang.refuse_openai,
    ),
    Endpoint("sglang", ("/sglang/v1/rerank",), sglang.SglangRerank, sglang.refuse_openai),
    Endpoint("tei", ("/predict", "/"), tei.TeiPredict, tei.refuse),
    Endpoint("tei", ("/rerank", "/"), tei.TeiRerank, tei.refuse, frozenset({"texts"})),
    Endpoint(
        "llamafactory",
        ("/v1/score/evaluation", "/"),
        llamafactory.Evaluation,
        llamafactory.refuse,
        frozenset({"messages"}),
    ),
)
"""All endpoints. Where several share a path, the first takes a payload with none of their keys."""


def endpoint_at(path: str, payload: JsonValue = None) -> Endpoint:
    """Returns the endpoint that a payload at a path is for.

    Raises:
        KeyError: no endpoint has this path.
    """
    candidates = [endpoint for endpoint in ENDPOINTS if path in endpoint.paths]
    if not candidates:
        raise KeyError(path)
    keys = set(payload) if isinstance(payload, dict) else set[str]()
    return next((endpoint for endpoint in candidates if endpoint.keys & keys), candidates[0])

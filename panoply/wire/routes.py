"""Every endpoint of every dialect, to be mounted in a few lines.

    endpoint = endpoint_at(path)
    try:
        payload = decode(body, limits)
        endpoint = endpoint_at(path, payload)
        call = endpoint.parse(payload)
        request = limits.check(call.request())
        status, answer = 200, call.render(await score(request), request)
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
    Endpoint("panoply", ("/v1/rewards",), frozenset(), rewards.RewardsPayload, openrlhf.refuse),
    Endpoint("panoply", ("/v1/compare",), frozenset(), compare.Compare, openrlhf.refuse),
    Endpoint("openrlhf", ("/get_reward",), frozenset(), openrlhf.GetReward, openrlhf.refuse),
    Endpoint("slime", ("/slime",), frozenset(), slime.Sample, openrlhf.refuse),
    Endpoint("slime", ("/slime/details",), frozenset(), slime.DetailedSample, openrlhf.refuse),
    Endpoint(
        "vllm",
        ("/classify", "/v1/classify"),
        frozenset({"input", "messages"}),
        vllm.Classify,
        vllm.refuse,
    ),
    Endpoint("vllm", ("/pooling", "/v1/pooling"), frozenset(), vllm.Pooling, vllm.refuse),
    Endpoint("vllm", ("/score", "/v1/score"), frozenset(), vllm.TextPairs, vllm.refuse),
    Endpoint(
        "vllm",
        ("/rerank", "/v1/rerank", "/v2/rerank"),
        frozenset({"documents"}),
        vllm.Rerank,
        vllm.refuse,
    ),
    Endpoint(
        "sglang",
        ("/classify", "/encode", "/sglang/classify", "/sglang/encode"),
        frozenset({"text", "input_ids"}),
        sglang.Classify,
        sglang.refuse,
    ),
    Endpoint(
        "sglang",
        ("/v1/embeddings", "/sglang/v1/embeddings"),
        frozenset(),
        sglang.Embeddings,
        sglang.refuse_openai,
    ),
    Endpoint("sglang", ("/sglang/v1/rerank",), frozenset(), sglang.Rerank, sglang.refuse_openai),
    Endpoint("tei", ("/predict", "/"), frozenset(), tei.Predict, tei.refuse),
    Endpoint("tei", ("/rerank", "/"), frozenset({"texts"}), tei.Rerank, tei.refuse),
    Endpoint(
        "llamafactory",
        ("/v1/score/evaluation", "/"),
        frozenset({"messages"}),
        llamafactory.Evaluation,
        llamafactory.refuse,
    ),
)
"""Where several share a path, the first takes what none of them knows by its keys."""


def endpoint_at(path: str, payload: JsonValue = None) -> Endpoint:
    """Returns the endpoint that a payload at a path is for.

    Raises:
        KeyError: no endpoint has this path.
    """
    found = [endpoint for endpoint in ENDPOINTS if path in endpoint.paths]
    if not found:
        raise KeyError(path)
    keys = payload.keys() if isinstance(payload, dict) else ()
    return next((endpoint for endpoint in found if endpoint.keys & set(keys)), found[0])

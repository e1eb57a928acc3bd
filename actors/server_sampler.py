"""Sampler of a policy that a server holds: vLLM, alone or in Ray Serve LLM.

    POST URL/v1/completions        one sample: the prompt as tokens, a seed of its own
    POST URL/v1/load_lora_adapter  vLLM: takes a round's adapters from the run's folder
    model "BASE:ADAPTER"           Ray Serve LLM: takes them from a bucket, by name

Adapters are named by their bytes, so a name never means two policies, and loading twice is once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import httpx2
import ray
from pyarrow.fs import FileSystem
from pydantic import BaseModel, Field, JsonValue

from actors.sampler import Response, Samples
from panoply.config import Rendering
from panoply.config.policy import PolicyServerConfig, SamplingConfig
from panoply.data.tasks import Task
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.policy.lora import FILE
from panoply.hub.policy.policy import load_prompt_renderer
from panoply.model.sampling import stream
from panoply.secret import NO_KEYS, Keys, authorization
from panoply.wire.bounded import UnreadableAnswer, ask
from panoply.wire.request import Payload
from panoply.wire.retry import RetryingRequest

ADAPTER_CONFIG = "adapter_config.json"
ALREADY = "already been loaded"
"""Words of vLLM's answer, with status 400, where it has an adapter of that name."""


class ServerSampler:
    """Samples from a policy served by vLLM; the same interface as `Sampler`.

    A sample's seed is a function of the run's seed, the round, the prompt and its number, but the
    server's batches differ between runs, and so do last bits: a sample may differ when it is drawn
    again. A run that is continued reads its samples from its own files.

    Args:
        model: 'embedded', a Hugging Face folder, or a hub name, whose tokenizer is the policy's.
        config: sampling of responses; `batch_size` are requested at the same time.
        rendering: limit of the prompt.
        server: address of the policy.
        keys: the server's API key, where the environment of this process lacks it.
    """

    def __init__(
        self,
        model: str,
        config: SamplingConfig,
        rendering: Rendering | None,
        server: PolicyServerConfig,
        keys: Keys = NO_KEYS,
    ) -> None:
        silence_libraries()
        keys.export()
        self.config, self.server = config, server
        self.renderer, self.stops = load_prompt_renderer(model, rendering)
        self.http = httpx2.Client(
            headers=_headers(server), limits=httpx2.Limits(max_connections=config.batch_size)
        )
        self.loaded = ("", server.model)
        """The latest adapters, and their name at the server."""

    @ray.method
    def sample(
        self, tasks: Sequence[Task], num_samples: int, seed: int, round: int, adapter: str = ""
    ) -> Iterator[Samples]:
        """Yields the responses to each prompt; arguments are those of `Sampler.sample`.

        Raises:
            ValueError: the server cannot take the adapters.
            RewardServerError: it refuses a request.
            TimeoutError: it gives no answer in time.
        """
        name = self._name_of(adapter)
        responses: dict[str, dict[int, Response]] = {task.prompt_id: {} for task in tasks}
        pending: dict[Future[Response], tuple[str, int]] = {}
        threads = ThreadPoolExecutor(self.config.batch_size)
        try:
            for task in tasks:
                id, tokens = task.prompt_id, self.renderer.opening(task.prompt)
                for number in range(num_samples):
                    request = self._request(name, tokens, stream(seed, round, id, number))
                    pending[threads.submit(self._respond, request)] = id, number
            for future in as_completed(pending):
                id, number = pending[future]
                by_number = responses[id]
                by_number[number] = future.result()
                if len(by_number) == num_samples:
                    yield Samples(id, tuple(by_number[i] for i in range(num_samples)))
        finally:
            threads.shutdown(cancel_futures=True)

    def _request(self, name: str, tokens: Sequence[int], stream: int) -> Payload:
        """Returns a request in which every setting of a model's generation config is set."""
        return {
            "model": name,
            "prompt": list(tokens),
            "n": 1,
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": stream >> 1,  # 63 bits, as the server takes
            "stop_token_ids": sorted(self.stops),
            "logprobs": 1,
        }

    def _respond(self, request: Payload) -> Response:
        url = f"{self.server.address}/v1/completions"
        return RetryingRequest(url, lambda _: request, read_response, self.server.timeout).post(
            self.http
        )

    def _name_of(self, adapter: str) -> str:
        """Returns the name of adapters at the server, after loading them there."""
        if not adapter:
            return self.server.model
        if adapter != self.loaded[0]:
            self.loaded = (adapter, self._load(Path(adapter).absolute()))
        return self.loaded[1]

    def _load(self, folder: Path) -> str:
        with (folder / FILE).open("rb") as file:
            name = f"panoply-{hashlib.file_digest(file, 'blake2b').hexdigest()[:16]}"
        if self.server.adapters:
            publish(folder, f"{self.server.adapters.rstrip('/')}/{name}")
            return f"{self.server.model}:{name}"
        body = {"lora_name": name, "lora_path": str(folder)}
        url = f"{self.server.address}/v1/load_lora_adapter"
        try:
            answer = ask(self.http, "POST", url, self.server.timeout, json=body)
        except (httpx2.RequestError, UnreadableAnswer) as error:
            raise ValueError(f"{url} cannot be asked to load adapters: {error!r}") from error
        if answer.status >= 400 and ALREADY not in answer.text:
            raise ValueError(
                f"{url} did not take the adapters in {str(folder)!r}: HTTP {answer.status}: "
                f"{answer.text[:300]}. vLLM has to see that folder, and needs --enable-lora, "
                "--max-lora-rank of the policy's rank or more, and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; Ray Serve LLM needs `server.adapters`"
            )
        return name


class _LogProbs(BaseModel):
    token_logprobs: list[float]


class _Choice(BaseModel):
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: _LogProbs | None = None


class _Usage(BaseModel):
    completion_tokens: int


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=1)
    usage: _Usage


def read_response(answer: JsonValue) -> Response:
    """Returns the sample of a completion; its log-probability is NaN where the server gives none.

    Raises:
        ValueError: it is no completion, or ended neither by the policy nor by the limit.
    """
    completion = _Completion.model_validate(answer)
    choice = completion.choices[0]
    log_prob = sum(choice.logprobs.token_logprobs) if choice.logprobs else float("nan")
    ended = choice.finish_reason == "stop"
    return Response(choice.text, completion.usage.completion_tokens, log_prob, ended)


def publish(folder: Path, where: str) -> None:
    """Copies adapters to a folder or bucket; the config comes last, as a sign of being whole."""
    system, path = FileSystem.from_uri(where)
    system.create_dir(path, recursive=True)
    for name in (FILE, ADAPTER_CONFIG):
        with system.open_output_stream(f"{path}/{name}") as out:
            out.write((folder / name).read_bytes())


def check_server(server: PolicyServerConfig) -> None:
    """Checks that a server, where one is named, has the policy.

    Raises:
        ValueError: it cannot be reached, or has no policy of that name, or its key is not set.
    """
    if not server.url:
        return
    url, headers = f"{server.address}/v1/models", _headers(server)
    try:
        with httpx2.Client(headers=headers) as http:
            answer = ask(http, "GET", url, min(server.timeout, 30))
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}")
        listed: Any = json.loads(answer.body)
        names = [str(model["id"]) for model in listed["data"]]
    except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"`server.url` names {url}, which lists no models: {error!r}") from error
    if server.model not in names:
        raise ValueError(f"`server.url` names the model {server.model!r}; {url} has {names}")


def _headers(server: PolicyServerConfig) -> dict[str, str]:
    """Returns the headers of every request to a server.

    Raises:
        ValueError: the variable of its key is not set.
    """
    if not server.key_variable:
        return {}
    keys = Keys.read([server.key_variable])
    return {"Authorization": authorization(keys.values[server.key_variable])}

"""An app that speaks as vLLM and Ray Serve LLM do, on a real policy: for tests of its clients."""

import threading
from pathlib import Path
from types import SimpleNamespace

from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict

from panoply.config.policy import SamplingConfig
from panoply.hub.policy.policy import load_policy

BASE = "base"


class Strict(BaseModel):
    """A request, all of whose fields are known."""

    model_config = ConfigDict(extra="forbid")


class Completion(Strict):
    """Fields by their names in vLLM; what it would take from the model's config has to be given."""

    model: str
    prompt: list[int]
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop_token_ids: list[int]
    logprobs: int


class Load(Strict):
    """Adapters to be loaded."""

    lora_name: str
    lora_path: str


class Policies:
    """A policy and its adapters, as a server holds them.

    Args:
        folder: of the policy.
        bucket: where adapters BASE:NAME lie by their names; None: they are loaded by a call.
    """

    def __init__(self, folder, bucket):
        self.folder, self.bucket = str(folder), bucket
        self.loaded, self.known, self.lock = {}, {}, threading.Lock()

    def adapter(self, name):
        """The folder of a name's adapters; empty for the start, None where there are none."""
        base, _, own = name.partition(":")
        if self.bucket and own and base == BASE:
            found = Path(self.bucket) / own
            return str(found) if (found / "adapter_config.json").exists() else None
        return "" if name == BASE else self.loaded.get(name)

    def get(self, name):
        """The policy of a name."""
        adapter = self.adapter(name)
        if adapter is None:
            raise HTTPException(404, f"The model `{name}` does not exist.")
        if name not in self.known:
            self.known[name] = load_policy(self.folder, adapter, dtype="float32")
        return self.known[name]

    def load(self, request):
        """Takes adapters by their folder."""
        if self.bucket:
            raise HTTPException(404, "Not Found")
        if request.lora_name in self.loaded:
            told = f"The lora adapter '{request.lora_name}' has already been loaded."
            raise HTTPException(400, told)
        if not (Path(request.lora_path) / "adapter_config.json").exists():
            raise HTTPException(404, f"No adapter found for {request.lora_path}")
        self.loaded[request.lora_name] = request.lora_path

    def complete(self, request):
        """Draws a sample."""
        with self.lock:
            policy = self.get(request.model)
            assert set(request.stop_token_ids) == policy.stops
            given = request.max_tokens, request.temperature, request.top_p
            config = SamplingConfig(max_tokens=given[0], temperature=given[1], top_p=given[2])
            ((_, (drawn,)),) = policy.sample([request.prompt], [[request.seed]], config)
        count = len(drawn.tokens)
        choice = {
            "index": 0,
            "text": policy.text(drawn),
            "finish_reason": "stop" if drawn.ended else "length",
            "logprobs": {"token_logprobs": [drawn.log_prob / count] * count},
        }
        usage = {"prompt_tokens": len(request.prompt), "completion_tokens": count}
        return {"object": "text_completion", "choices": [choice], "usage": usage}


def policy_app(folder, bucket=None, *, num_busy=0):
    """Returns the app; the first completions are turned away where it is busy."""
    app, policies = FastAPI(), Policies(folder, bucket)
    seen = app.state.seen = SimpleNamespace(asked=[], loads=0)

    @app.get("/v1/models")
    def models():
        return {"data": [{"id": BASE}, *({"id": name} for name in policies.loaded)]}

    @app.post("/v1/load_lora_adapter")
    def load(request: Load):
        seen.loads += 1
        policies.load(request)
        return PlainTextResponse(f"Success: LoRA adapter '{request.lora_name}' added successfully.")

    @app.post("/v1/completions")
    def complete(request: Completion):
        seen.asked.append(request)
        if len(seen.asked) <= num_busy:
            raise HTTPException(503, "busy")
        return policies.complete(request)

    return app

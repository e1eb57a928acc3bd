"""A reward server of the plain kind: `python -m benchmarks.plain_server FOLDER PORT`.

FastAPI before transformers, as OpenRLHF's `serve_rm` does it: a request is tokenized as it stands,
its texts are one padded batch, and the next request waits.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
import uvicorn
from fastapi import FastAPI, Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def make_app(folder: str) -> FastAPI:
    """Returns the server of a scalar model."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = cast(Any, AutoModelForSequenceClassification.from_pretrained(folder)).eval()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, list[float]]:
        body = await request.json()
        inputs = tokenizer(
            body["query"], add_special_tokens=False, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            scores = model(**inputs).logits[:, 0].float().tolist()
        return {"rewards": scores, "scores": scores}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")

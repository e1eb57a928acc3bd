"""A reward server of the plain kind: `python -m benchmarks.plain_server FOLDER PORT ROWS`.

FastAPI before transformers, as OpenRLHF's `serve_rm` does it: a request is tokenized as it stands,
and the next request waits. Its texts are sorted by length and padded in batches of ROWS: 64 is one
padded batch, as there; smaller ones compute less padding.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
import uvicorn
from fastapi import FastAPI, Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def make_app(folder: str, num_rows: int) -> FastAPI:
    """Returns the server of a scalar model, which pads batches of `num_rows` texts."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = cast(Any, AutoModelForSequenceClassification.from_pretrained(folder)).eval()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, list[float]]:
        texts: list[str] = (await request.json())["query"]
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores = [0.0] * len(texts)
        for start in range(0, len(texts), num_rows):
            rows = by_length[start : start + num_rows]
            for i, value in zip(rows, score([texts[i] for i in rows]), strict=True):
                scores[i] = value
        return {"rewards": scores, "scores": scores}

    @torch.inference_mode()
    def score(texts: list[str]) -> list[float]:
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        return model(**inputs).logits[:, 0].float().tolist()

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1], int(sys.argv[3])), port=int(sys.argv[2]), log_level="warning")

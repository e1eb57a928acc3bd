"""A user's script: TRL's asynchronous GRPO on the rewards of a server, in a process of its own.

    python -m tests.clients.async_grpo URL POLICY OUT

Three parts of TRL need a GPU or vLLM, and are replaced by others of the same contract: the kernel
of its attention over token trees, the transfer of weights by NCCL, and the server that samples.
Prints what the trainer logged, and each sample with its reward, as JSON.
"""

import json
import sys
import threading
from itertools import pairwise

import torch
from datasets import Dataset
from fastapi import FastAPI
from transformers import AttentionInterface, AutoTokenizer
from trl.experimental.async_grpo import (
    AsyncGRPOConfig,
    AsyncGRPOTrainer,
    async_grpo_trainer,
    async_rollout_worker,
)
from trl.experimental.async_grpo.packing import TREE_ATTENTION

from panoply.config.policy import SamplingConfig
from panoply.hub.policy.policy import load_policy
from panoply.wire.client import AsyncClient
from tests.builders.app_server import serving
from tests.clients.dialogs import DISTINCT

REPLY = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {"content": {"close_pattern": r"<\|end\|>", "content": "text"}},
}
"""How TRL reads a message out of the tiny policy's tokens: it knows common templates alone."""


def policy_server(folder):
    """What TRL asks of a vLLM server, answered by the policy itself."""
    app, policy, lock = FastAPI(), load_policy(str(folder), dtype="float32"), threading.Lock()

    @app.get("/health")
    def health():
        return {}

    @app.get("/v1/models")
    def models():
        return {"data": [{"id": str(folder), "max_model_len": 512}]}

    @app.post("/v1/completions")
    def complete(payload: dict):
        config = SamplingConfig(max_tokens=payload["max_tokens"], temperature=1.0)
        with lock:
            ((_, (drawn,)),) = policy.sample(
                [payload["prompt"]], [[payload["seed"] % 2**31]], config
            )
        count = len(drawn.tokens)
        log_probs = {"token_logprobs": [drawn.log_prob / count] * count}
        return {"choices": [{"token_ids": list(drawn.tokens), "logprobs": log_probs}]}

    return app


class NoTransfer:
    """Leaves the server's weights as they are: TRL sends them by NCCL, which needs two GPUs."""

    def init_weight_transfer(self):
        """Opens nothing."""

    def pause(self):
        """Pauses nothing."""

    def send_weights(self, iterator):
        """Reads the weights, as the transfer does."""
        list(iterator)

    def resume(self):
        """Resumes nothing."""

    def destroy(self):
        """Closes nothing."""


def attend_to_paths(module, query, key, value, attention_mask, *, scaling=None, **trees):
    """Computes TRL's attention over token trees, for which it has a CUDA kernel alone."""
    query, key, value = (x.transpose(1, 2)[0] for x in (query, key, value))
    key, value = (x.index_select(0, trees["tree_kv_index"]) for x in (key, value))
    spans = [pairwise(trees[f"tree_cu_seqlens_{name}"].tolist()) for name in "qk"]
    outputs = []
    for (q0, q1), (k0, k1) in zip(*spans, strict=True):
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        parts = (x.transpose(0, 1)[None] for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        out = torch.nn.functional.scaled_dot_product_attention(
            *parts, attn_mask=mask, scale=scaling, enable_gqa=True
        )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)[None], None


def main(url, policy, out):
    # TRL only asks whether vLLM is installed; what it asks vLLM for comes over HTTP.
    async_rollout_worker.is_vllm_available = lambda: True
    # TRL reads the name of a CUDA device, for a figure of its log alone.
    async_grpo_trainer.get_peak_flops_per_device = lambda *_: None
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.response_template = REPLY
    with serving(policy_server(policy)) as sampler:
        settings = AsyncGRPOConfig(
            output_dir=out,
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            learning_rate=1e-3,
            vllm_server_base_url=sampler,
            dtype="float32",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
        )
        trainer = AsyncGRPOTrainer(
            model=policy,
            reward_funcs=[AsyncClient(url).trl_reward_func("scalar")],
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt, _ in DISTINCT[-8:]]),
            processing_class=tokenizer,
            weight_transfer=NoTransfer(),
        )
        AttentionInterface.register(TREE_ATTENTION, attend_to_paths)
        samples = record(trainer.rollout_worker.rollout_buffer)
        trainer.train()
    scored = [(s.prompt, s.completion[0]["content"], s.metrics["rewards/scalar"]) for s in samples]
    logged = trainer.state.log_history
    report = {"steps": trainer.state.global_step, "log": logged, "samples": scored}
    sys.stdout.write(json.dumps(report) + "\n")


def record(queue):
    """Returns a list of what will be taken from a queue."""
    taken, get = [], queue.get

    def take(*args, **kwargs):
        taken.append(get(*args, **kwargs))
        return taken[-1]

    queue.get = take
    return taken


if __name__ == "__main__":
    main(*sys.argv[1:])

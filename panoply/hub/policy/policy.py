"""A policy: a language model that answers, with or without adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from panoply.config import DType, Rendering
from panoply.config.policy import SamplingConfig
from panoply.hub.backbone.pretrained import check_vocabulary, choose_dtype, resolve
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.loading import (
    load_adapted,
    load_generation_config,
    load_model,
    load_tokenizer,
)
from panoply.hub.policy.prefix_decoding import Decoding, Sampled, decode_after_prefixes
from panoply.model.device import best_device
from panoply.model.prepacked import prepack

CHECKED = SamplingConfig(max_tokens=4)


class Policy:
    """A causal language model with its tokenizer."""

    def __init__(self, name: str, model: Any, renderer: Renderer) -> None:
        self.name, self.renderer = name, renderer
        self.model = model.eval().requires_grad_(False)
        self.stops = stop_tokens(model.generation_config, renderer)
        window = getattr(model.config, "sliding_window", None)
        self.longest = int(window or model.config.max_position_embeddings)
        """Most tokens of a prompt and its response."""
        check_decoding(self)

    def text(self, sampled: Sampled) -> str:
        """Returns the text of a sample."""
        tokens = sampled.tokens[:-1] if sampled.ended else sampled.tokens
        return self.renderer.tokenizer.decode(tokens, skip_special_tokens=True)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        streams: Sequence[Sequence[int]],
        config: SamplingConfig,
    ) -> Iterator[tuple[int, list[Sampled]]]:
        """Yields each prompt's number with its samples, as soon as the last of them is over.

        The prompts run side by side. A sample is a function of its prompt and its stream: in
        float32 it comes out the same alone, in any batch and on any worker, unless two tokens tie
        within rounding (odds of about 1e-5 a token). In bfloat16 such ties are common, and only
        the same call on the same kind of device is sure to give the same samples.

        Args:
            prompts: tokens of each prompt.
            streams: streams of the samples of each prompt, equally many for all.
            config: temperature, nucleus, limit.

        Raises:
            ValueError: a prompt leaves no room for its responses.
        """
        longest = max(map(len, prompts)) + config.max_tokens
        if longest > self.longest:
            raise ValueError(
                f"prompts and responses of {longest} tokens do not fit {self.name!r}, whose "
                f"attention spans {self.longest}: lower `rendering.max_prompt_tokens` or "
                "`sampling.max_tokens`"
            )
        # Not around the loop: a generator would leave its caller in inference mode.
        inference = torch.inference_mode
        with inference():
            run = Decoding(self.model, prompts, streams)
        while True:
            with inference():
                run.choose(config, self.stops)
                finished = run.shrink()
            yield from ((number, run.samples[number]) for number in finished)
            if not run.grid:
                return
            with inference():
                run.advance()


def load_policy(
    name: str,
    adapter: str = "",
    *,
    rendering: Rendering | None = None,
    dtype: DType = "auto",
) -> Policy:
    """Loads a policy to sample from; on the CPU its linear layers are prepacked.

    Args:
        name: 'embedded', a Hugging Face folder, or a hub name.
        adapter: folder of LoRA adapters, as `panoply.hub.policy.lora` and peft write them; empty:
            none. In float32 they are merged; bfloat16 would round them away.
        rendering: limit of the prompt.
        dtype: 'auto' takes bfloat16 where it is fast.

    Raises:
        FileNotFoundError: see `resolve`; or there is no adapter.
        ValueError: tokenizer or model cannot be sampled from.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(resolve(name))
    device = best_device()
    kind = choose_dtype(dtype, device)
    renderer = Renderer(load_tokenizer(folder), rendering or Rendering())
    model: Any = load_model(AutoModelForCausalLM, folder, dtype=kind, unused=None)
    model.to(device)
    check_vocabulary(renderer, model)
    if adapter:
        adapted: Any = load_adapted(model, Path(adapter))
        model = adapted.merge_and_unload() if kind == torch.float32 else adapted.get_base_model()
    prepack(model)
    return Policy(name, model, renderer)


def load_prompt_renderer(
    name: str, rendering: Rendering | None = None
) -> tuple[Renderer, frozenset[int]]:
    """Loads the renderer of a policy that a server runs, and the tokens that end a response.

    Raises:
        FileNotFoundError: see `resolve`.
        ValueError: the tokenizer cannot be used.
    """
    folder = Path(resolve(name))
    renderer = Renderer(load_tokenizer(folder), rendering or Rendering())
    return renderer, stop_tokens(load_generation_config(folder), renderer)


def stop_tokens(generation: Any, renderer: Renderer) -> frozenset[int]:
    """Returns the tokens that end a response: the model's, the tokenizer's, and the template's.

    Args:
        generation: the model's generation config, or None.
        renderer: renderer of the model.
    """
    eos = getattr(generation, "eos_token_id", None)
    tokens = eos if isinstance(eos, list) else [eos, renderer.tokenizer.eos_token_id]
    return frozenset({token for token in tokens if token is not None} | set(renderer.closing[:1]))


@torch.no_grad()
def check_decoding(policy: Policy) -> None:
    """Checks that samples get the probabilities that a plain forward gives them.

    Raises:
        ValueError: they do not: the model has attention or positions of another kind.
    """
    model, size = policy.model, int(policy.model.config.vocab_size)
    draw = torch.randint(size, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts, drifts = [draw[:8], draw[7:]], list[float]()
    try:
        decode_after_prefixes(model)
        for number, samples in policy.sample(prompts, [[1, 2], [3, 4]], CHECKED):
            for sampled in samples:
                ids = torch.tensor([prompts[number] + sampled.tokens], device=model.device)
                logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
                plain = logps.gather(1, ids[0, 1:, None])[len(prompts[number]) - 1 :].sum()
                drifts.append(abs(float(plain) - sampled.log_prob))
    except (TypeError, AttributeError, RuntimeError, LookupError) as error:
        raise ValueError(f"{policy.name!r} cannot be sampled from: {error}") from error
    worst = max(drifts)
    if not worst <= (1e-3 if model.dtype == torch.float32 else 0.5):
        raise ValueError(
            f"{policy.name!r} decodes after a shared prompt with other probabilities than alone "
            f"(log-probabilities differ by {worst:.2g}): take a decoder with plain attention"
        )

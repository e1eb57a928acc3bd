"""What the first day on a GPU runs on: models of random weights, trees of random tokens, clocks.

Nothing is downloaded: a model is its configuration, and no figure depends on weights.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.tree_baselines import made_up
from panoply.hub.backbone.attention import attend_by_trees
from panoply.model.decoder import Decoder, Kernel
from panoply.model.flex import choose_kernel
from panoply.model.tree import Branch, TokenTree

Size = Literal["tiny", "0.6B", "8B"]
HEADS = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
SIZES: dict[Size, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 40_000,
    },
    "0.6B": HEADS
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "8B": HEADS
    | {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}
"""Shapes of Qwen3, which has grouped queries and norms before its attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Sizes of what is run."""

    tiny: bool

    @property
    def device(self) -> torch.device:
        """A GPU, unless all is tiny."""
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Precision that is fast there."""
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def kernel(self) -> Kernel:
        """Kernel that a model takes there."""
        return choose_kernel(self.device)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Models that are measured, the smallest first."""
        return ("tiny",) if self.tiny else ("0.6B", "8B")

    @property
    def budget(self) -> int:
        """Tokens of a row."""
        return 512 if self.tiny else 16_384

    @property
    def repeats(self) -> int:
        """Times each run is measured, after one that warms it."""
        return 1 if self.tiny else 2

    def pairs(self, count: int) -> list[TokenTree]:
        """Returns pairs with prompts and responses of 60 to 400 tokens; tiny: some, of 6 to 40."""
        low, high, count = (6, 40, 3) if self.tiny else (60, 400, count)
        rng = np.random.default_rng(0)
        trees: list[TokenTree] = []
        for prompt, *texts in rng.integers(low, high, (count, 3)).tolist():
            drawn = [tuple(rng.integers(5, 40_000, n).tolist()) for n in (prompt, *texts)]
            branches = tuple(Branch(text, 0, len(text)) for text in drawn[1:])
            trees.append(TokenTree(drawn[0], branches, gate=prompt - 1))
        return trees

    def samples(self) -> list[TokenTree]:
        """Returns prompts of 512 tokens with 16 responses of 128; tiny: one, an eighth as long."""
        count, prompt, size = (1, 64, 16) if self.tiny else (8, 512, 128)
        return [made_up(prompt, 16, size, seed) for seed in range(count)]

    def model(self, size: Size, dtype: torch.dtype, num_layers: int = 0) -> Any:
        """Returns a decoder stack with random weights; 0 layers: all."""
        from transformers import AutoConfig, AutoModel

        torch.manual_seed(0)
        shape = SIZES[size] | ({"num_hidden_layers": num_layers} if num_layers else {})
        with self.device:
            return AutoModel.from_config(AutoConfig.for_model("qwen3", **shape), dtype=dtype).eval()

    def decoder(
        self, size: Size, dtype: torch.dtype, num_layers: int = 0, *, trainable: bool = False
    ) -> Decoder:
        """Returns a model that goes by trees.

        Raises:
            RuntimeError: its attention by trees is not exact.
            panoply.model.flex.KernelError: the kernel does not compile.
        """
        model = self.model(size, dtype, num_layers)
        decoder = Decoder(model, [model.config.num_hidden_layers], trainable=trainable)
        if not attend_by_trees(decoder):
            raise RuntimeError(f"attention by trees is not exact on {self.device} in {dtype}")
        return decoder

    def head(self, size: Size) -> torch.Tensor:
        """Returns the weights `[D]` of a linear head, float32."""
        draw = torch.Generator().manual_seed(1)
        return torch.randn(SIZES[size]["hidden_size"], generator=draw).to(self.device)

    def wait(self) -> None:
        """Waits until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, runs: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Times runs in turns, A B A B, each once before to compile and to fill caches."""
        for run in runs.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.repeats):
            for name, run in runs.items():
                self.wait()
                start = time.perf_counter()
                run()
                self.wait()
                times[name].append(time.perf_counter() - start)
        return times

    def release(self) -> None:
        """Gives the memory of models that nobody holds any more back to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def gibibytes(self, run: Callable[[], Any]) -> float | None:
        """Returns the peak memory of a run, with what it began with; None on a CPU."""
        if self.device.type != "cuda":
            return None
        self.release()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**30


def times_faster(theirs: Sequence[float], ours: Sequence[float], **more: Any) -> dict[str, Any]:
    """Returns a figure: how many times our seconds theirs are, by the medians."""
    seconds = {"seconds": median(ours), "their_seconds": median(theirs)}
    return {"value": median(theirs) / median(ours), "unit": "x", **seconds, **more}


def within(value: float, bound: float, **more: Any) -> dict[str, Any]:
    """Returns a figure that has to be at most its bound; NaN is not."""
    return {"value": value, "unit": "", "bound": bound, "holds": bool(value <= bound), **more}


def num_compilations() -> int:
    """Returns how many graphs torch has compiled in this process."""
    from torch._dynamo.utils import counters

    counted: Any = counters
    return int(counted["stats"]["unique_graphs"])

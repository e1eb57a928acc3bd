"""A trained policy as a folder that `AutoModelForCausalLM` loads, adapters merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from panoply.files import whole_folder
from panoply.hub.artefact.classifier import check_vacant
from panoply.hub.backbone.pretrained import resolve
from panoply.hub.door.loading import load_adapted, load_model, load_tokenizer
from panoply.hub.example_conversations import example_trees, sequences
from panoply.seal import seal

TOLERANCE = 1e-3
"""Most that a log-probability of a merged policy may differ from the adapted one's."""


@torch.inference_mode()
def export_policy(name: str, adapter: Path, out: Path) -> float:
    """Merges adapters into their model, in float32, and saves it with its tokenizer.

    The folder is built beside `out`, loaded again and compared; `out` appears when it is right.

    Args:
        name: name of the model that the adapters were trained on.
        adapter: folder of the adapters.
        out: folder of the merged model.

    Returns:
        The largest difference between a log-probability of the saved and the adapted policy.

    Raises:
        FileNotFoundError: see `panoply.hub.backbone.pretrained.resolve`; or there are no adapters.
        ValueError: `out` holds something, or the adapters are not of this model.
        RuntimeError: the saved model gives other log-probabilities.
    """
    from transformers import AutoModelForCausalLM

    check_vacant(out)
    folder = Path(resolve(name))
    tokenizer: Any = load_tokenizer(folder)
    model = load_model(AutoModelForCausalLM, folder, dtype=torch.float32, unused=None).eval()
    adapted: Any = load_adapted(model, adapter)
    texts = sequences(example_trees(tokenizer))
    before = [_token_logps(adapted, ids) for ids in texts]
    with whole_folder(out) as built:
        adapted.merge_and_unload().save_pretrained(built)
        tokenizer.save_pretrained(built)
        seal(built)
        loaded: Any = load_model(AutoModelForCausalLM, built, dtype=torch.float32).eval()
        after = [_token_logps(loaded, ids) for ids in texts]
        drift = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))
        if not drift <= TOLERANCE:
            raise RuntimeError(
                f"log-probabilities of the saved policy differ by {drift:.2e} (allowed "
                f"{TOLERANCE:g}): nothing was saved; report this"
            )
    return drift


def _token_logps(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Returns the log-probability of each token but the first."""
    tokens = torch.tensor([ids])
    logps = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
    return logps.gather(1, tokens[0, 1:, None])[:, 0]

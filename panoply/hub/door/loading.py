"""Configurations, tokenizers, models and adapters of a folder, by transformers and peft."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from panoply.extras import install_command
from panoply.hub.door.checkpoint import (
    Checkpoint,
    Shape,
    check_finite,
    check_no_pointer,
    few,
    read_fields,
)
from panoply.hub.door.templates import settle_template

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer needs one; `tokenizer_config.json` alone holds no vocabulary."""
SURPLUS = 1.5
"""Numbers that a model may have for each that its files hold, before it is refused."""
PACKED = 16.0
"""The same of quantized weights: two bits each in 32-bit integers."""


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Keeps transformers' reports and progress bars out of the output while the context is open."""
    from transformers.utils import logging

    before, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shows_bars:
            logging.enable_progress_bar()


@contextmanager
def _reading(what: str, advice: str) -> Generator[None]:
    """Turns whatever a library raises on a folder into one sentence, but for a lack of memory.

    Args:
        what: of which folder is read.
        advice: of what to do, which ends the sentence.
    """
    try:
        with quiet_libraries():
            yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything on a folder from outside
        reason = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"it knows no {reason}"
        raise ValueError(f"{what} cannot be read ({reason}): {advice}") from error


def load_config(folder: Path, *, code: bool = False) -> Any:
    """Returns the configuration of a model.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is no JSON, or of a model type that transformers does not know.
    """
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no config.json: fetch it, or name its folder")
    fields = read_fields(file)
    if fields.get("transformers_weights"):
        raise ValueError(
            f"{str(file)!r} names other weights in transformers_weights: remove the field, and "
            "call the file model.safetensors"
        )
    advice = (
        f"its model type is {fields.get('model_type')!r}; update transformers, or take a model "
        "that it knows"
    )
    with _reading(f"the configuration {str(file)!r}", advice):
        return AutoConfig.from_pretrained(folder, trust_remote_code=code)


def load_generation_config(folder: Path) -> Any:
    """Returns how a language model generates, by its file or else by its configuration."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(load_config(folder))
    with _reading(f"generation_config.json in {str(folder)!r}", "fetch it again, or remove it"):
        return GenerationConfig.from_pretrained(folder)


def load_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of a model, with one chat template or none.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file of it cannot be read, or its template writes different turns alike.
    """
    from transformers import AutoTokenizer

    files = [file for kind in ("*.json", "*.model", "*.jinja") for file in folder.glob(kind)]
    for file in files:
        check_no_pointer(file)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(
            f"{str(folder)!r} has no tokenizer ({' or '.join(TOKENIZER_FILES[:2])}): fetch it too, "
            "or save the tokenizer of training there"
        )
    advice = "fetch tokenizer.json and tokenizer_config.json again"
    with _reading(f"the tokenizer in {str(folder)!r}", advice):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    settle_template(tokenizer, folder)
    return tokenizer


def load_model(
    loader: Any,
    folder: Path,
    *,
    dtype: torch.dtype,
    config: Any = None,
    unused: Collection[str] | None = (),
    drawn: Collection[str] = (),
    code: bool = False,
) -> Any:
    """Returns a model with every weight from its folder, none at random and none dropped.

    Args:
        loader: an auto class of transformers.
        folder: of the model.
        dtype: of its parameters.
        config: of the model, where it is not the folder's own.
        unused: tensors of the folder that the model need not take; None: any, as a backbone
            leaves heads out.
        drawn: tensors that the folder need not hold, and the caller fills.
        code: run the folder's own code.

    Raises:
        FileNotFoundError: the weights are missing, or only there as a pickle.
        ValueError: a file cannot be read or names one outside, the model does not fit its
            configuration, or a number is not finite.
    """
    fields = read_fields(folder / "config.json")
    config = config or load_config(folder, code=code)
    checkpoint = Checkpoint.open(folder)
    is_packed = _is_quantized(fields, folder)
    if not code:
        check_sizes(loader, config, checkpoint.shapes, folder, is_packed=is_packed)
    with _reading(f"the model in {str(folder)!r}", _advice(fields)):
        model, info = loader.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below
            output_loading_info=True,
            trust_remote_code=code,
        )
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    if random := sorted(mismatched | set(info["missing_keys"]) - set(drawn)):
        raise ValueError(
            f"{str(folder)!r} lacks weights that would be random: {few(random)}, or holds them in "
            "another shape than its config.json asks for. Fetch it again"
        )
    dropped = set[str]() if unused is None else set(info["unexpected_keys"]) - set(unused)
    if dropped:
        raise ValueError(
            f"{str(folder)!r} holds weights that would go unused: {few(sorted(dropped))}. Mend its "
            "config.json (number of layers?), or remove them"
        )
    check_finite(
        {name: tensor for name, tensor in model.named_parameters() if name not in drawn}, folder
    )
    return model


def load_adapted(model: Any, folder: Path) -> Any:
    """Returns a model with the adapters of a folder on it.

    Raises:
        FileNotFoundError: the folder has no adapter, or only as a pickle.
        ValueError: it is of another model.
    """
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no adapter_config.json: name the folder of an adapter"
        )
    read_fields(folder / "adapter_config.json")
    stored = Checkpoint.open(folder, "adapter_model.safetensors")
    advice = "name the model that it was trained on, or train it again"
    with _reading(f"the adapter in {str(folder)!r}", advice):
        from peft import PeftModel, utils

        adapted = cast(Any, PeftModel.from_pretrained(model, str(folder)))
        tensors_of = cast(Any, utils).get_peft_model_state_dict
        expected: set[str] = set(tensors_of(adapted, save_embedding_layers=False))
    # peft passes over what has no place in a model, and draws what an adapter lacks.
    differing = expected.symmetric_difference(stored.shapes)
    if misfits := sorted(name for name in differing if "lora_" in name):
        raise ValueError(
            f"the adapter in {str(folder)!r} is of another model than that in its "
            f"base_model_name_or_path: {few(misfits)} are not in both; {advice}"
        )
    check_finite({n: tensor for n, tensor in adapted.named_parameters() if "lora" in n}, folder)
    return adapted


def load_adapter_config(folder: Path) -> Any:
    """Returns the settings of the adapter in a folder, as peft has them.

    Raises:
        ValueError: they cannot be read.
    """
    read_fields(folder / "adapter_config.json")
    with _reading(f"the adapter in {str(folder)!r}", "train it again"):
        from peft import PeftConfig

        return PeftConfig.from_pretrained(str(folder))


def check_sizes(
    loader: Any, config: Any, shapes: Mapping[str, Shape], folder: Path, *, is_packed: bool = False
) -> None:
    """Compares what a configuration asks for with what is stored, before memory is asked for.

    Args:
        loader: an auto class of transformers.
        config: of the model.
        shapes: of the stored tensors, by the model's names.
        folder: for messages.
        is_packed: whether the weights are quantized, several numbers in one: shapes are others.

    Raises:
        ValueError: a tensor has another shape, or the model is far larger than its files.
    """
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 0) or 0)
    if layers > len(shapes):
        raise ValueError(
            f"config.json in {str(folder)!r} asks for {layers:,} layers, and its weights are "
            f"{len(shapes):,} tensors: fetch both again"
        )
    with (
        _reading(f"the configuration in {str(folder)!r}", "fetch config.json again"),
        torch.device("meta"),
    ):
        model = loader.from_config(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    for name, shape in expected.items():
        # A backbone alone has its tensors without the name that it has inside of a model.
        stored = shapes.get(name, shapes.get(f"{model.base_model_prefix}.{name}", shape))
        if stored != shape and not is_packed:
            advice = "fetch both again"
            if "embed" in name and stored[1:] == shape[1:]:
                advice = f'write "vocab_size": {stored[0]} there, or fetch both again'
            raise ValueError(
                f"tensor {name!r} in {str(folder)!r} has shape {list(stored)}, and its config.json "
                f"asks for {list(shape)}: {advice}"
            )
    size = sum(torch.Size(shape).numel() for shape in expected.values())
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    if size > (PACKED if is_packed else SURPLUS) * held:
        raise ValueError(
            f"config.json in {str(folder)!r} asks for {size:,} numbers, and its weights are "
            f"{held:,}: fetch both again"
        )


def _is_quantized(fields: Mapping[str, Any], folder: Path) -> bool:
    """Returns whether a model's weights are quantized.

    Raises:
        ValueError: by a method that transformers does not know, and would pass over.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings: Any = fields.get("quantization_config")
    if settings is None:
        return False
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    # bitsandbytes named no method at first.
    is_old = isinstance(settings, dict) and "load_in_4bit" in settings
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and not is_old:
        raise ValueError(f"the model in {str(folder)!r} cannot be read: {_advice(fields)}")
    return True


def _advice(fields: Mapping[str, Any]) -> str:
    """Returns what to do about a model that transformers does not load."""
    quantization = fields.get("quantization_config")
    if not isinstance(quantization, dict):
        return "fetch it again, or name another"
    method = cast(dict[str, Any], quantization).get("quant_method")
    return (
        f"its weights are quantized by {method!r}: install what that asks for beside "
        f"`{install_command('hf')}` in a clone, or name the checkpoint that is not quantized"
    )

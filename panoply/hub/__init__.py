"""The only package that loads transformers: backbones in, reward models out."""

from panoply.extras import check_installed

LIBRARIES = ("transformers", "safetensors", "peft", "huggingface_hub", "pydantic")

check_installed("panoply.hub", LIBRARIES, "hf", "wire")

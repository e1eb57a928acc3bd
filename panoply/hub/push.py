"""Upload of a model folder and its card to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("*.json", "*.safetensors", "*.jinja", "*.md", "*.txt", "*.model")
"""What a model folder is made of: nothing else in it is uploaded."""


def push_to_hub(folder: Path, name: str, *, private: bool) -> str:
    """Uploads a model with its card, and returns its address.

    Args:
        folder: the model.
        name: 'owner/name'; made where there is none.
        private: whether a new repository is shown to its owner alone.

    Raises:
        ValueError: `name` is no hub name.
        FileNotFoundError: the folder holds no model.
        OSError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not HUB_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no hub name: give 'owner/name'")
    for needed in ("config.json", "README.md"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} has no {needed}: name a run's model, OUT/model"
            )
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload the reward model and its card",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise OSError(
            f"the hub refused {name!r} (status {status}): log in with `hf auth login`, as somebody "
            "who may write there"
        ) from error
    return f"{api.endpoint}/{name}"

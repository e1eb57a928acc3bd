"""Panoply: reward models, trained, gated, served and chosen among on a Ray cluster.

from panoply import load_reward_model

model = load_reward_model("runs/embedded/model")
model.score([{"role": "user", "content": "Why?"}], ["Because.", "No idea."])
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from panoply.extras import DISTRIBUTION

if TYPE_CHECKING:
    from panoply.hub.artefact.load import load_reward_model

__all__ = ["__version__", "load_reward_model"]

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # a checkout that is on the path and not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Imports what loads models only when it is asked for: it takes seconds."""
    if name == "load_reward_model":
        from panoply.hub.artefact.load import load_reward_model

        return load_reward_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

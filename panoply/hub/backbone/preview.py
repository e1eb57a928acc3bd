"""Conversations as a model's chat template writes them, without its weights."""

from __future__ import annotations

from collections.abc import Callable

from panoply.config import Rendering
from panoply.data.schema import Prompt
from panoply.hub.backbone.pretrained import load_renderer, silence_libraries


def template_writer(model: str) -> Callable[[Prompt, str], str]:
    """Returns a function that writes a prompt and a response, or why the template refuses them.

    Raises:
        FileNotFoundError: there is no such model.
    """
    silence_libraries()
    renderer = load_renderer(model, Rendering())

    def write(prompt: Prompt, response: str) -> str:
        reply = [{"role": "assistant", "content": response}] if response else []
        try:
            return renderer.text([*prompt, *reply], opens=not reply)
        except Exception as error:  # whatever a template raises means that it refuses the turns
            return f"(the chat template refuses this conversation: {error})"

    return write

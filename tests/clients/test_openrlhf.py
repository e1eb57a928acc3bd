"""OpenRLHF's trainers: payloads as versions 0.5 to 0.11 send them."""

import pytest
import requests

from tests.clients.conftest import MODELS
from tests.clients.dialogs import DIALOGS, opening


def texts(served, end):
    """Prompt and prompt + reply, as a policy's tokens are decoded."""
    prompts = [opening(served.tokenizer, prompt) for prompt, _ in DIALOGS]
    return prompts, [text + reply + end for text, (_, reply) in zip(prompts, DIALOGS, strict=True)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("end", ["", "<|end|>", "<|end|>\n"])
def test_a_batch_of_rendered_texts_is_scored_as_its_messages_are(served, model, end):
    prompts, queries = texts(served, end)
    for extra in ({"prompts": prompts, "labels": [None] * len(prompts)}, {}):
        answer = requests.post(
            f"{served.at(model)}/get_reward", json={"query": queries, **extra}, timeout=120
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["rewards"] == pytest.approx(served.scores[model], rel=1e-4, abs=1e-4)

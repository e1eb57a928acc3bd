"""Artefacts of each format, and a log, load and mean the same: formats outlive their code.

Those of format 1 and the log were written at 222d7a2; `format2` holds the first sealed ones, and
`format3` the first members that were trained apart.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from panoply.hub.artefact.load import load_reward_model
from panoply.laser.log import Log, replay
from panoply.laser.rounds import initial_state
from tests.builders.models import scores_by_transformers
from tests.builders.selector_runs import ARMS, CONFIG

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "scores.json").read_text())


@pytest.mark.parametrize(
    "name",
    [
        *("gated", "scalar", "ensemble", "classifier"),
        *("format2/gated", "format2/ensemble", "format3/adapters"),
    ],
)
def test_a_recorded_artefact_loads_and_scores_as_it_did(name):
    model = load_reward_model(GOLDEN / name)
    recorded = RECORDED["scores"][Path(name).name]
    # Processors differ in the last bits of products, which counts where a score is near 0.
    near_zero = 2e-5 * np.std(recorded)
    for prompt, expected in zip(RECORDED["prompts"], recorded, strict=True):
        scores = model.score(prompt, RECORDED["responses"])
        assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=near_zero)


@pytest.mark.parametrize("name", ["scalar", "classifier"])
def test_a_recorded_model_of_one_head_scores_as_it_did_through_transformers(name):
    for prompt, expected in zip(RECORDED["prompts"], RECORDED["scores"][name], strict=True):
        chats = [
            [*prompt, {"role": "assistant", "content": reply}] for reply in RECORDED["responses"]
        ]
        scores = scores_by_transformers(GOLDEN / name, [chats])
        assert np.ravel(scores).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_recorded_log_replays_to_the_state_that_it_ended_in():
    record = Log(str(GOLDEN / "laser_log"), ARMS).read()
    assert record.rewards.num_rows == 48
    replayed = replay(record, initial_state(CONFIG, len(ARMS), 5))
    with np.load(GOLDEN / "laser_state.npz") as recorded:
        for array, name in zip(replayed, recorded.files, strict=True):
            np.testing.assert_allclose(array, recorded[name], rtol=1e-9, atol=1e-12)

"""The model before its training, as a scorer beside the trained one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.reward_trainer import RewardTrainer
from actors.untrained import FILE, SCORERS, UNTRAINED, read_untrained
from panoply.config.preference import DPO, Full, HeadOnly, LastLayers, Lora, LossConfig
from panoply.hub.policy.trainable import load_untrained
from panoply.preference.distributed import Group
from tests.builders.models import save_small
from tests.builders.preference_runs import make_task, other, small_config, write_pairs

ROWS = np.array([3, 7, 11, 12])


@pytest.fixture(scope="module")
def task(tmp_path_factory, tiny_policy_folder):
    folder = tmp_path_factory.mktemp("untrained")
    config = small_config(tiny_policy_folder, write_pairs(folder))
    return replace(make_task(config, folder), untrained=ROWS)


@pytest.fixture(scope="module")
def trainer(task):
    """A trainer, which measures the model before it trains."""
    return RewardTrainer(task, Group())


@pytest.fixture(scope="module")
def stored(task, trainer):
    """What was measured, as other runs find it."""
    (file,) = (Path(task.store) / "untrained").glob("*.npz")
    return file


def margins_of(task):
    return read_untrained(Path(task.folder), ROWS, len(task.names))


def test_its_margins_are_those_of_plain_forwards_of_each_response(
    task, trainer, tiny_policy_folder
):
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_folder).eval()
    head, margins = trainer.net.head, margins_of(task)
    assert set(margins) == set(SCORERS)
    for row in ROWS:
        tree = trainer.tokens.tree(int(row))
        scores, sums, means = [], [], []
        for branch in tree.branches:
            ids = torch.tensor([tree.shared + branch.tokens])
            with torch.no_grad():
                out = model(ids, output_hidden_states=True)
                scores.append(float(head(out.hidden_states[-1][0, -1])))
            logps = out.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            start = len(tree.shared) + branch.start - 1
            response = logps[start : len(tree.shared) + branch.stop]  # with the token that ends it
            sums.append(float(response.sum()))
            means.append(float(response.mean()))
        for name, values in zip(SCORERS, (scores, sums, means), strict=True):
            assert margins[name][row] == pytest.approx(values[0] - values[1], abs=1e-3), name
    for margin_P in margins.values():
        assert set(np.flatnonzero(~np.isnan(margin_P))) == set(ROWS)


@pytest.mark.parametrize(
    "trained", [HeadOnly(), LastLayers(num_last=1), Full(), Lora(rank=2)], ids=lambda x: x.kind
)
def test_it_is_the_same_whatever_is_trained_and_training_is_the_same_without_it(
    task, trainer, trained
):
    backbone = replace(task.config.backbone, trained=trained)
    changed = other(task, trained.kind, backbone=backbone)
    losses = [RewardTrainer(changed, Group()).step(0)["loss"]]
    margins = margins_of(changed)
    for name, margin_P in margins_of(task).items():
        np.testing.assert_array_equal(margins[name], margin_P)
    without = replace(other(changed, f"{trained.kind}-alone"), untrained=np.arange(0))
    losses.append(RewardTrainer(without, Group()).step(0)["loss"])
    assert losses[0] == losses[1]
    assert margins_of(without) == {}


def test_it_is_computed_once_for_the_same_weights_and_pairs(task, stored):
    marked = {name: np.full(len(ROWS), 7.0) for name in SCORERS}
    before = stored.read_bytes()
    np.savez(stored, **marked)
    loss = LossConfig(policy=DPO(alpha=1.0))
    RewardTrainer(other(task, "again", loss=loss), Group())
    assert (margins_of(other(task, "again"))[UNTRAINED][ROWS] == 7).all()
    RewardTrainer(other(task, "seed", seed=5), Group())  # another head
    assert (margins_of(other(task, "seed"))[UNTRAINED][ROWS] != 7).all()
    stored.write_bytes(before)
    # What is written stays, whatever becomes of the store.
    RewardTrainer(other(task, "again"), Group())
    assert (margins_of(other(task, "again"))[UNTRAINED][ROWS] == 7).all()


def test_a_damaged_file_is_named(task, stored, tmp_path):
    store = tmp_path / "untrained"
    store.mkdir()
    for place in (tmp_path / FILE, store / stored.name):
        content = stored.read_bytes()
        place.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"untrained.npz' is damaged.*reports without"):
        read_untrained(tmp_path, ROWS, len(task.names))
    again = replace(other(task, "torn"), store=str(tmp_path))
    with pytest.raises(ValueError, match=rf"{stored.name}' is damaged.*run the same command again"):
        RewardTrainer(again, Group())


def test_log_probabilities_are_missing_where_the_model_has_none(
    task, tiny_policy_folder, tiny_tokenizer, tmp_path
):
    def speaks(folder, **changes):
        backbone = replace(task.config.backbone, model=str(folder), **changes)
        return load_untrained(backbone, num_heads=1, seed=0).lm_head is not None

    assert speaks(tiny_policy_folder)
    assert not speaks(tiny_policy_folder, depth=0.5)
    # A reward model is saved as a classifier, which shares its family's names with language models.
    save_small(tmp_path / "classifier", tiny_tokenizer)
    assert not speaks(tmp_path / "classifier")
    # Gemma 2 caps its logits: its head on its states is not its distribution.
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    capped = AutoConfig.for_model("gemma2", vocab_size=270, initializer_range=1.0, **shape)
    capped.final_logit_softcapping = 1.0
    AutoModelForCausalLM.from_config(capped).save_pretrained(tmp_path / "capped")
    tiny_tokenizer.save_pretrained(tmp_path / "capped")
    assert not speaks(tmp_path / "capped")

"""Heads are trained on stored arrays: the gate finds which objective counts where."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from workflows.cluster.scorers import train_heads

from actors.fitters import HeadTask, load_head
from panoply.armorm.mixtures import fit_simplex
from panoply.config.armorm import GateConfig
from panoply.model.gate import make_gate

SIZE, OBJECTIVES = 12, 3
CONFIG = GateConfig(
    hidden_size=16,
    dropout=0.0,
    input_dropout=0.0,
    temperature=1.0,
    lr=1e-2,
    num_steps=400,
    eval_every=20,
)


def planted_arrays(folder, num_pairs=1200, seed=0, labels="true"):
    """Two kinds of prompts; in each, another objective decides which response is chosen."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=num_pairs)
    gate = rng.normal(size=(num_pairs, SIZE))
    gate[:, 0] += 4 * kind
    difference = rng.normal(size=(num_pairs, OBJECTIVES))
    margin = 4 * difference[np.arange(num_pairs), kind]
    wins = rng.random(num_pairs) < (1 / (1 + np.exp(-margin)) if labels == "true" else 0.5)
    difference[~wins] *= -1
    features = rng.normal(size=(2, num_pairs, SIZE))
    features[0, :, 1] += 0.5  # what an MLP on responses can find
    arrays = {"gate": gate, "difference": difference, "chosen": features[0]}
    for name, values in (arrays | {"rejected": features[1]}).items():
        np.save(folder / f"{name}.npy", values.astype(np.float32))
    return kind, difference


def task(num_pairs, name="gate", kind="gate", seed=0):
    train, select = np.split(np.arange(num_pairs), [num_pairs * 3 // 4])
    return HeadTask(name, kind, train, select, CONFIG, seed)


def trained(folder, tasks, run):
    train_heads(tasks, folder, 0, run)
    gate = make_gate(SIZE, OBJECTIVES, CONFIG)
    return load_head(folder / "gate.safetensors", gate)


@pytest.fixture(autouse=True)
def _on_the_cluster(cluster):
    """Ray Train's local mode wants a Ray that is there."""


def test_the_gate_learns_which_objective_decides_for_which_prompt(tmp_path):
    kind, difference = planted_arrays(tmp_path)
    gate = trained(tmp_path, [task(1200)], tmp_path / "run")
    with torch.no_grad():
        weights = gate.weights(torch.from_numpy(np.load(tmp_path / "gate.npy"))).numpy()
    test = np.arange(900, 1200)
    for k in (0, 1):
        assert weights[test][kind[test] == k].mean(0).argmax() == k
        assert weights[test][kind[test] == k].mean(0)[k] > 0.8
    fixed = difference[test] @ weights[:900].mean(0)
    gated = (weights * difference)[test].sum(1)
    assert (gated > 0).mean() > (fixed > 0).mean() + 0.05


def test_where_prompts_tell_nothing_the_gate_stays_at_the_best_fixed_weights(tmp_path):
    _, difference = planted_arrays(tmp_path)
    noise = np.random.default_rng(1).normal(size=(1200, SIZE)).astype(np.float32)
    np.save(tmp_path / "gate.npy", noise)
    gate = trained(tmp_path, [task(1200)], tmp_path / "run")
    with torch.no_grad():
        weights = gate.weights(torch.from_numpy(np.load(tmp_path / "gate.npy"))).numpy()
    fixed = fit_simplex(difference[:900]).weights
    assert np.abs(weights - fixed).max() < 0.1


def test_labels_without_a_pattern_teach_the_gate_nothing(tmp_path):
    planted_arrays(tmp_path, labels="coin")
    gate = trained(tmp_path, [task(1200)], tmp_path / "run")
    features = torch.from_numpy(np.load(tmp_path / "gate.npy"))
    difference = torch.from_numpy(np.load(tmp_path / "difference.npy"))
    with torch.no_grad():
        margin = (gate(features) * difference).sum(1)[900:]
    assert torch.nn.functional.softplus(-margin).mean() < np.log(2) + 0.05


def test_the_same_seed_gives_the_same_heads_and_another_seed_others(tmp_path):
    planted_arrays(tmp_path, num_pairs=400)
    tasks = [task(400), task(400, "again"), task(400, "other", seed=1), task(400, "mlp", "mlp")]
    trained(tmp_path, tasks, tmp_path / "run")
    one, again, other = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("gate", "again", "other")
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["top.weight"], other["top.weight"])
    assert load_file(tmp_path / "mlp.safetensors")["layers.0.weight"].shape == (16, SIZE)


def test_a_head_that_is_saved_is_not_trained_again(tmp_path):
    planted_arrays(tmp_path, num_pairs=400)
    trained(tmp_path, [task(400)], tmp_path / "run")
    before = (tmp_path / "gate.safetensors").stat().st_mtime_ns
    trained(tmp_path, [task(400)], tmp_path / "run")
    assert (tmp_path / "gate.safetensors").stat().st_mtime_ns == before

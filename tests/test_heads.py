"""Heads learn from arrays of pairs: the gate finds which objective counts where."""

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file

from panoply.armorm.head_training import GateExamples, HeadTask, ResponseExamples, train_head
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


def planted_examples(num_pairs=1200, seed=0, labels="true"):
    """Two kinds of prompts; in each, another objective decides which response is chosen."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=num_pairs)
    gate = rng.normal(size=(num_pairs, SIZE))
    gate[:, 0] += 4 * kind
    difference = rng.normal(size=(num_pairs, OBJECTIVES))
    margin = 4 * difference[np.arange(num_pairs), kind]
    wins = rng.random(num_pairs) < (1 / (1 + np.exp(-margin)) if labels == "true" else 0.5)
    difference[~wins] *= -1
    return kind, GateExamples(gate.astype(np.float32), difference.astype(np.float32))


def rows_of(num_pairs):
    return np.split(np.arange(num_pairs), [num_pairs * 3 // 4])


def trained(examples, seed=0, **workers):
    train, select = rows_of(len(examples.difference_PO))
    gate = make_gate(SIZE, OBJECTIVES, CONFIG)
    gate.load_state_dict(train_head(examples, train, select, CONFIG, seed, **workers))
    return gate.eval().requires_grad_(False)


def test_the_gate_learns_which_objective_decides_for_which_prompt():
    kind, examples = planted_examples()
    weights = trained(examples).weights(torch.from_numpy(examples.gate_PD)).numpy()
    test = np.arange(900, 1200)
    for k in (0, 1):
        assert weights[test][kind[test] == k].mean(0).argmax() == k
        assert weights[test][kind[test] == k].mean(0)[k] > 0.8
    fixed = examples.difference_PO[test] @ weights[:900].mean(0)
    gated = (weights * examples.difference_PO)[test].sum(1)
    assert (gated > 0).mean() > (fixed > 0).mean() + 0.05


def test_where_prompts_tell_nothing_the_gate_stays_at_the_best_fixed_weights():
    _, examples = planted_examples()
    noise = np.random.default_rng(1).normal(size=(1200, SIZE)).astype(np.float32)
    gate = trained(GateExamples(noise, examples.difference_PO))
    fixed = fit_simplex(examples.difference_PO[:900]).weights
    assert np.abs(gate.weights(torch.from_numpy(noise)).numpy() - fixed).max() < 0.1


def test_labels_without_a_pattern_teach_the_gate_nothing():
    _, examples = planted_examples(labels="coin")
    g = trained(examples)(torch.from_numpy(examples.gate_PD)).numpy()
    margin = (g * examples.difference_PO).sum(1)[900:]
    assert np.logaddexp(0, -margin).mean() < np.log(2) + 0.05


def test_the_same_seed_gives_the_same_heads_and_another_seed_others():
    _, examples = planted_examples(num_pairs=400)
    first, again, other = trained(examples), trained(examples), trained(examples, seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.top.weight, other.top.weight)


def test_a_network_on_responses_finds_what_the_chosen_ones_have():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 400, SIZE)).astype(np.float32)
    chosen[:, 1] += 1.5
    examples = ResponseExamples(chosen, rejected)
    train, select = rows_of(400)
    state = train_head(examples, train, select, CONFIG, 0)
    assert state["layers.0.weight"].shape == (16, SIZE)
    head = examples.make_head(CONFIG, train)
    head.load_state_dict(state)
    with torch.no_grad():
        assert (examples.margin(head.eval(), examples.batch(select)) > 0).double().mean() > 0.8


def test_heads_trained_on_ray_are_those_of_one_process_and_are_not_trained_again(cluster, tmp_path):
    from actors.fitters import fit_heads
    from workflows.cluster.local_pool import LocalPool
    from workflows.cluster.train import run_train

    _, examples = planted_examples(num_pairs=400)
    np.save(tmp_path / "gate.npy", examples.gate_PD)
    np.save(tmp_path / "difference.npy", examples.difference_PO)
    task = HeadTask("gate", GateExamples, ("gate", "difference"), *rows_of(400), CONFIG, 0)
    heads = {"folder": str(tmp_path), "tasks": [task], "pool": None}
    run_train(fit_heads, heads, 0, tmp_path / "run", "heads")
    saved = tmp_path / "gate.safetensors"
    for name, value in trained(examples).state_dict().items():
        assert torch.allclose(load_file(saved)[name], value, atol=1e-6)
    before = saved.stat().st_mtime_ns
    run_train(fit_heads, heads, 0, tmp_path / "run", "heads")
    assert saved.stat().st_mtime_ns == before
    # Side by side, in processes of their own, they have the same bits.
    with LocalPool(2) as pool:
        tasks = [replace(task, name=name) for name in ("one", "two")]
        heads |= {"tasks": tasks, "pool": pool}
        run_train(fit_heads, heads, 0, tmp_path / "run", "heads")
    for name in ("one", "two"):
        state = load_file(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(state[key], value) for key, value in load_file(saved).items())

"""The gate weighs objectives by prompt, and the loss is the log likelihood of the pairs."""

import math

import torch

from panoply.model.gate import Dropout, Gate, ScalarHead
from panoply.preference.losses import bradley_terry


def make(num_objectives=4, dropout=0.0):
    torch.manual_seed(0)
    return Gate(6, num_objectives, hidden_size=16, num_hidden=2, dropout=dropout, temperature=1.0)


def test_weights_sum_to_the_scale_for_each_prompt_and_vary_with_it():
    gate = make()
    with torch.no_grad():
        gate.scale.fill_(2.5)
        g = gate(torch.randn(8, 6))
    assert torch.allclose(g.sum(-1), torch.full((8,), 2.5))
    assert (g > 0).all()
    assert g.std(0).max() > 1e-2


def test_the_weights_of_a_prompt_do_not_depend_on_the_prompts_beside_it():
    # A softmax over the batch (the fault of ArmoRM's released script) would couple them, and
    # would give the only prompt of a batch the weight 1 for every objective.
    gate, ours, other = make(), torch.randn(1, 6), torch.randn(1, 6)
    alone = gate.weights(ours)[0]
    together, apart = gate.weights(torch.cat([ours, other])), gate.weights(other)[0]
    assert torch.allclose(together[0], alone, atol=1e-6)
    assert torch.allclose(together[1], apart, atol=1e-6)
    assert (alone - apart).abs().max() > 1e-2
    assert alone.max() < 0.99


def test_a_higher_temperature_brings_the_weights_closer_to_uniform():
    gate, x = make(), torch.randn(8, 6)
    sharp = gate.weights(x)
    gate.temperature = 100.0
    assert torch.allclose(gate.weights(x), torch.full((8, 4), 0.25), atol=1e-2)
    assert (sharp - 0.25).abs().max() > 5e-2


def test_the_gradient_reaches_every_layer():
    gate = make()
    bradley_terry((gate(torch.randn(8, 6)) * torch.randn(8, 4)).sum(-1)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())


def test_a_standardized_module_does_not_mind_the_scale_of_its_features():
    x = torch.randn(200, 6)
    for module in (make(), ScalarHead(6, hidden_size=8), ScalarHead(6)):
        module.standardize(x)
        before = module(x[:5])
        module.standardize(x * 1000 + 30)
        assert torch.allclose(module(x[:5] * 1000 + 30), before, atol=1e-4)
        assert before.shape[0] == 5


def test_a_feature_that_never_varied_in_training_cannot_blow_up_a_score():
    x = torch.randn(50, 6)
    x[:, 2] = 0.7
    head = ScalarHead(6)
    head.standardize(x)
    other = x[:1].clone()
    other[:, 2] = 0.8
    assert (head(other) - head(x[:1])).abs() < 1
    head.standardize(x[:1])
    assert torch.isfinite(head(x)).all()


def test_a_gate_started_from_fixed_weights_gives_them_for_every_prompt_and_can_leave_them():
    torch.manual_seed(0)
    gate = make()
    fixed = torch.rand(gate.top.out_features)
    fixed[0] = 0
    fixed /= fixed.sum()
    gate.start_from(fixed, 3.0)
    features = torch.randn(5, 6)
    weights = gate.eval()(features)
    assert torch.allclose(weights, 3 * fixed.expand(5, -1), atol=0.02)
    assert torch.allclose(weights.sum(1), torch.full((5,), 3.0))
    assert (weights > 0).all()
    weights[:, 0].sum().backward()
    assert gate.top.weight.grad.abs().sum() > 0


def test_dropout_is_silent_in_evaluation():
    gate, x = make(dropout=0.5), torch.randn(8, 6)
    assert not torch.equal(gate.train()(x), gate(x))
    assert torch.equal(gate.eval()(x), gate(x))


def test_bradley_terry_is_the_negative_log_likelihood_of_each_pair():
    margins = [-3.0, 0.0, 0.7, 12.0]
    wanted = [-math.log(1 / (1 + math.exp(-m))) for m in margins]
    assert torch.allclose(bradley_terry(torch.tensor(margins)), torch.tensor(wanted))


def test_bradley_terry_is_exact_at_margins_whose_exponential_overflows():
    margin = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = bradley_terry(margin)
    loss.sum().backward()
    assert loss.tolist() == [1e4, 0.0]
    assert margin.grad.tolist() == [-1.0, 0.0]


def test_workers_drop_together_what_one_worker_drops_alone():
    x, whole = torch.randn(7, 50), Dropout(0.5)
    whole.batch_size = 7
    torch.manual_seed(3)
    expected = whole(x)
    assert 0.3 < (expected == 0).float().mean() < 0.7
    assert torch.equal(expected[expected != 0], 2 * x[expected != 0])
    for rank in range(3):
        part = Dropout(0.5)
        part.rows, part.batch_size = slice(rank, None, 3), 7
        torch.manual_seed(3)
        assert torch.equal(part(x[part.rows]), expected[part.rows])


def test_stacked_parts_of_a_batch_get_masks_of_their_own_and_inference_drops_nothing():
    x, drop = torch.ones(8, 400), Dropout(0.5)
    drop.rows, drop.batch_size = slice(0, None, 2), 8
    first, second = drop(x).chunk(2)
    assert not torch.equal(first, second)
    assert torch.equal(drop.eval()(x), x)

"""The gate weighs objectives by prompt."""

import math

import torch

from panoply.model.gate import Gate
from panoply.train.losses import bradley_terry


def make(num_objectives=4):
    torch.manual_seed(0)
    return Gate(6, num_objectives, hidden_size=16, num_hidden=2, dropout=0.0, temperature=1.0)


def test_weights_sum_to_the_scale_and_vary_with_the_prompt():
    gate = make()
    with torch.no_grad():
        gate.scale.fill_(2.5)
        g = gate(torch.randn(8, 6))
    assert torch.allclose(g.sum(-1), torch.full((8,), 2.5))
    assert g.std(0).max() > 1e-3


def test_weights_of_a_prompt_do_not_depend_on_the_others():
    gate, x = make(), torch.randn(8, 6)
    assert torch.allclose(gate.weights(x)[3], gate.weights(x[3:4])[0], atol=1e-6)


def test_the_gradient_reaches_every_layer():
    gate = make()
    bradley_terry((gate(torch.randn(8, 6)) * torch.randn(8, 4)).sum(-1)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())


def test_bradley_terry_is_the_negative_log_likelihood_and_never_overflows():
    margins = [-3.0, 0.0, 0.7]
    wanted = [-math.log(1 / (1 + math.exp(-m))) for m in margins]
    assert torch.allclose(bradley_terry(torch.tensor(margins)), torch.tensor(wanted))
    assert torch.isfinite(bradley_terry(torch.tensor([-1e4, 1e4]))).all()

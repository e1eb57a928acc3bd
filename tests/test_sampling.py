"""Tokens are drawn from the policy's distribution, by numbers that only their names decide."""

import math

import pytest
import torch

from panoply.config.policy import SamplingConfig
from panoply.model.sampling import choose_tokens, exponentials, nucleus, stream

CPU = torch.device("cpu")


def names(count, prompt="a"):
    return [stream(0, 0, prompt, i) for i in range(count)]


def shares(logits, count, temperature=1.0, top_p=1.0):
    rows = torch.tensor(logits).repeat(count, 1)
    tokens, _ = choose_tokens(rows, names(count), 0, temperature, top_p)
    return (torch.bincount(tokens, minlength=len(logits)) / count).tolist()


def test_noise_is_exponential_and_no_two_rows_or_steps_share_it():
    drawn = torch.stack([exponentials(names(4), step, 20000, CPU) for step in range(5)])
    flat = drawn.reshape(20, -1).double()
    assert flat.mean().item() == pytest.approx(1, abs=0.01)
    assert flat.var().item() == pytest.approx(1, abs=0.03)
    assert (flat < math.log(2)).double().mean().item() == pytest.approx(0.5, abs=0.005)
    assert torch.isfinite(flat).all()
    assert (flat > 0).all()
    correlations = torch.corrcoef(flat).fill_diagonal_(0)
    assert correlations.abs().max().item() < 5 / math.sqrt(20000)


def test_noise_of_a_row_is_the_same_alone_and_among_others():
    among = exponentials(names(7), 3, 1000, CPU)
    assert torch.equal(among[5:6], exponentials(names(7)[5:6], 3, 1000, CPU))


def test_every_part_of_a_name_counts():
    others = {stream(0, 0, "a", 0), stream(1, 0, "a", 0), stream(0, 1, "a", 0)}
    assert len(others | {stream(0, 0, "b", 0), stream(0, 0, "a", 1)}) == 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_with_the_probabilities_of_the_tempered_policy(temperature):
    logits = [0.0, -1.0, 1.5, -0.3, -6.0]
    found = shares(logits, 20000, temperature)
    wanted = (torch.tensor(logits) / temperature).softmax(-1).tolist()
    assert found == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(20000))


def test_a_nucleus_is_the_smallest_set_with_the_mass():
    probabilities = [0.05, 0.5, 0.15, 0.3]
    logits = torch.tensor([probabilities]).log()
    for top_p, kept in ((0.4, [1]), (0.7, [1, 3]), (0.9, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        least = nucleus(logits, top_p)
        assert (logits >= least).nonzero()[:, 1].tolist() == kept
    found = shares(logits[0].tolist(), 20000, top_p=0.7)
    assert found == pytest.approx([0, 0.625, 0, 0.375], abs=0.015)


def test_a_nucleus_wider_than_the_head_is_sought_in_the_whole_vocabulary():
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0)) * 0.1
    least = nucleus(logits, 0.9)
    assert [(row >= bound).sum().item() for row, bound in zip(logits, least, strict=True)] == [
        int((row.softmax(-1).sort(descending=True).values.cumsum(0) < 0.9).sum()) + 1
        for row in logits
    ]


def test_temperature_zero_is_greedy_and_log_probabilities_are_the_policys_own():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    tokens, log_prob = choose_tokens(logits, names(6), 0, 0.0, 1.0)
    assert torch.equal(tokens, logits.argmax(-1))
    tokens, log_prob = choose_tokens(logits, names(6), 0, 0.7, 0.9)
    assert torch.allclose(log_prob, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temperature": -1.0}, "`sampling.temperature` must be >= 0, got -1.0"),
        ({"top_p": 0.0}, r"`sampling.top_p` must be in \(0, 1\], got 0.0"),
        ({"max_tokens": 0}, "`sampling.max_tokens` must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_what_is_allowed(change, told):
    with pytest.raises(ValueError, match=told):
        SamplingConfig(**change)

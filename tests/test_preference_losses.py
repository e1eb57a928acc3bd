"""Every preference loss is its formula, and behaves as a preference loss must."""

import numpy as np
import pytest
import torch

from panoply.config.preference import DPO, SFT, LossConfig
from panoply.preference.losses import (
    bradley_terry,
    centering,
    dpo,
    sft,
    smoothed,
    soft_label,
    updated_labels,
)
from panoply.preference.pair_loss import PairLabels, pair_loss
from panoply.preference.step import PairOutputs
from tests.builders.reference import dpo_loss, log_sigmoid, sigmoid, soft_label_loss

MARGINS = [-7.0, -0.4, 0.0, 0.3, 2.0, 9.0]


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def outputs(num_pairs=6, num_heads=1, seed=0):
    rng = np.random.default_rng(seed)
    scores = [torch.from_numpy(rng.normal(size=(num_pairs, num_heads))) for _ in range(2)]
    logps = torch.stack([torch.from_numpy(rng.normal(-20, 4, num_pairs)) for _ in range(2)], 1)
    counts = torch.from_numpy(rng.integers(3, 30, num_pairs))
    return PairOutputs(*scores, logps, counts, np.arange(num_pairs))


def labels(num_pairs=6, **changes):
    given = {
        "label_P": torch.ones(num_pairs, dtype=torch.float64),
        "margin_P": torch.zeros(num_pairs, dtype=torch.float64),
        "weight_P": torch.ones(num_pairs, dtype=torch.float64),
        "reference_P": torch.linspace(-2, 2, num_pairs, dtype=torch.float64),
    }
    return PairLabels(**(given | changes))


def test_bradley_terry_is_its_formula_and_finite_at_any_margin():
    found = bradley_terry(doubles(MARGINS)).tolist()
    assert found == pytest.approx([-log_sigmoid(m) for m in MARGINS])
    assert bradley_terry(torch.tensor([-1e6, 1e6])).tolist() == [1e6, 0.0]


@pytest.mark.parametrize("label", [0.0, 0.25, 0.9, 1.0])
def test_a_soft_label_is_its_formula(label):
    found = soft_label(doubles(MARGINS), doubles([label] * 6)).tolist()
    assert found == pytest.approx([soft_label_loss(m, label) for m in MARGINS])


def test_swapping_a_pair_is_the_opposite_label():
    margin, label = doubles(MARGINS), doubles([0.8] * 6)
    assert torch.allclose(soft_label(-margin, 1 - label), soft_label(margin, label))
    assert torch.allclose(soft_label(margin, torch.ones(6)), bradley_terry(margin))


def test_a_soft_label_is_fitted_by_its_log_odds():
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        (grad,) = torch.autograd.grad(soft_label(margin, doubles([0.7])).sum(), margin)
        margin = (margin - 2 * grad).detach().requires_grad_(True)
    assert sigmoid(margin.item()) == pytest.approx(0.7, abs=1e-6)


def test_smoothing_moves_labels_toward_the_other_response_and_toward_belief():
    assert smoothed(doubles([1.0, 0.0, 0.5]), 0.1).tolist() == pytest.approx([0.9, 0.1, 0.5])
    moved = updated_labels(doubles([1.0, 1.0]), doubles([3.0, -3.0]), 0.25).tolist()
    assert moved == pytest.approx([0.75 + 0.25 * sigmoid(3), 0.75 + 0.25 * sigmoid(-3)])


def test_repeated_data_smoothing_goes_to_belief():
    label = doubles([1.0])
    for _ in range(60):
        label = updated_labels(label, doubles([-1.0]), 0.3)
    assert float(label) == pytest.approx(sigmoid(-1.0), abs=1e-8)


def test_dpo_sft_and_centering_are_their_formulas():
    policy, reference = [(-9.0, -11.0), (-4.0, -3.0)], [(-10.0, -10.0), (-5.0, -1.0)]
    ours = dpo(
        doubles([a - b for a, b in policy]), doubles([a - b for a, b in reference]), 0.1
    ).tolist()
    theirs = [dpo_loss(p, r, 0.1) for p, r in zip(policy, reference, strict=True)]
    assert ours == pytest.approx(theirs)
    assert sft(doubles([-12.0]), torch.tensor([4])).tolist() == [3.0]
    assert centering(doubles([2.0]), doubles([-0.5])).tolist() == [2.25]


def test_the_hybrid_loss_is_the_sum_of_its_parts():
    pairs, known = outputs(), labels()
    reward = pair_loss(pairs, known, LossConfig())
    for alpha in (0.2, 1.0):
        hybrid = pair_loss(pairs, known, LossConfig(policy=DPO(alpha=alpha)))
        ratio_P = pairs.logps_P2[:, 0] - pairs.logps_P2[:, 1]
        assert torch.allclose(hybrid, reward + alpha * dpo(ratio_P, known.reference_P, 0.1))
    alone = pair_loss(pairs, known, LossConfig(policy=DPO(alpha=1.0), reward=0.0))
    assert torch.allclose(alone, dpo(ratio_P, known.reference_P, 0.1))
    both = pair_loss(pairs, known, LossConfig(policy=SFT(alpha=0.5)))
    assert torch.allclose(both, reward - 0.5 * pairs.logps_P2[:, 0] / pairs.chosen_tokens_P)


def test_margins_weights_labels_and_centering_enter_as_said():
    pairs = outputs()
    known = labels(
        margin_P=torch.full((6,), 0.5, dtype=torch.float64),
        weight_P=torch.arange(6, dtype=torch.float64),
        label_P=torch.full((6,), 0.8, dtype=torch.float64),
    )
    config = LossConfig(use_margin=True, label_smoothing=0.1, centering=0.01)
    found = pair_loss(pairs, known, config).tolist()
    margins = (pairs.margin_PK[:, 0] - 0.5).tolist()
    sums = (pairs.chosen_PK + pairs.rejected_PK)[:, 0].tolist()
    label = 0.9 * 0.8 + 0.1 * 0.2
    assert found == pytest.approx(
        [
            w * (soft_label_loss(m, label) + 0.01 * s * s)
            for w, m, s in zip(range(6), margins, sums, strict=True)
        ]
    )


def test_every_head_of_an_ensemble_pays_for_itself():
    pairs = outputs(num_heads=3)
    total = pair_loss(pairs, labels(), LossConfig())
    alone = [
        pair_loss(
            pairs._replace(
                chosen_PK=pairs.chosen_PK[:, [k]], rejected_PK=pairs.rejected_PK[:, [k]]
            ),
            labels(),
            LossConfig(),
        )
        for k in range(3)
    ]
    assert torch.allclose(total, sum(alone))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            LossConfig,
            {"label_smoothing": 0.5},
            r"`loss.label_smoothing` must be in \[0, 0.5\), got 0.5",
        ),
        (LossConfig, {"reward": 0.0}, "`loss.reward` must be positive, or 0 with"),
        (DPO, {"alpha": 0.0}, "`loss.policy.alpha` must be positive, got 0.0"),
        (SFT, {"alpha": -1.0}, "`loss.policy.alpha` must be positive, got -1.0"),
        (DPO, {"beta": 0.0}, "`loss.policy.beta` must be positive, got 0.0"),
        (DPO, {"reference": "none"}, "`loss.policy.reference` must be one of .*'copy'.*'none'"),
    ],
)
def test_a_loss_that_cannot_be_is_refused_with_what_is_allowed(part, change, message):
    with pytest.raises(ValueError, match=message):
        part(**change)

"""A preference model fitted in one process, from features or from a decoder."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel

from panoply.config.preference import Balanced, Mixed, More, ScheduleConfig
from panoply.hub.backbone.attention import attend_by_trees
from panoply.model.decoder import Decoder
from panoply.model.tree import Branch, TokenTree
from panoply.preference import fit, fit_decoder

TRUTH = np.array([1.0, -0.5, 0.25, 0.0])


def pairs(num=600, seed=0, sharpness=np.inf):
    """Features of pairs whose labels are drawn by Bradley-Terry from a linear reward."""
    rng = np.random.default_rng(seed)
    both = rng.normal(size=(num, 2, 4))
    rewards = both @ TRUTH
    order = np.argsort(-rewards, axis=1)
    flipped = rng.random(num) > 1 / (1 + np.exp(-sharpness * np.ptp(rewards, axis=1)))
    order[flipped] = order[flipped][:, ::-1]
    sides = np.take_along_axis(both, order[:, :, None], axis=1)
    return sides[:, 0], sides[:, 1]


def accuracy(model, chosen, rejected):
    return float((model.score(chosen) > model.score(rejected)).mean())


def test_a_fit_orders_held_out_pairs():
    model = fit(*pairs())
    assert accuracy(model, *pairs(seed=1)) > 0.95
    assert model.history[-1]["loss"] < model.history[0]["loss"]


def test_a_long_fit_is_logistic_regression_on_differences():
    chosen, rejected = pairs(sharpness=1.5)
    held_out = np.arange(600) >= 500
    schedule = ScheduleConfig(pairs_per_step=500, num_epochs=200, head_lr=5e-2)
    model = fit(chosen, rejected, None, held_out, schedule=schedule)
    apart = (chosen - rejected)[:500]
    # Both orders of each pair: a regression without a constant.
    regression = LogisticRegression(C=1e9, fit_intercept=False)
    regression.fit(np.r_[apart, -apart], np.r_[np.ones(500), np.zeros(500)])
    weights = model.net.head.weight.detach().numpy()[0]
    assert weights == pytest.approx(regression.coef_[0], rel=0.02, abs=0.02)


def test_the_temperature_makes_margins_log_odds():
    chosen, rejected = pairs(num=4000, sharpness=1.5)
    model = fit(chosen, rejected, schedule=ScheduleConfig(num_epochs=5, head_lr=3e-2))
    new_chosen, new_rejected = pairs(num=4000, seed=1, sharpness=1.5)
    odds = (model.score(new_chosen) - model.score(new_rejected)) / model.temperature
    believed = 1 / (1 + np.exp(-np.abs(odds)))
    assert believed.mean() == pytest.approx((odds > 0).mean(), abs=0.03)


def test_more_weighs_the_sources_in_every_step_and_baselines_do_not():
    chosen, rejected = pairs()
    sources = ["b", "a", "a"] * 200
    weighted = fit(chosen, rejected, sources, weighting=More(momentum=1.0, normalizer="none"))
    weights = np.array([step["source_weights"] for step in weighted.history])
    assert weighted.sources == ("a", "b")
    assert np.allclose(weights.sum(1), 1)
    assert weights.std(0).min() > 0.01
    for weighting in (Mixed(), Balanced()):
        plain = fit(chosen, rejected, sources, weighting=weighting)
        assert plain.history[-1]["source_weights"] == [0.5, 0.5]
        assert accuracy(plain, *pairs(seed=1)) > 0.95


def test_a_decoder_is_trained_with_its_head(tiny_model_folder):
    model = AutoModel.from_pretrained(tiny_model_folder).train()
    decoder = Decoder(model, [model.config.num_hidden_layers], trainable=True)
    assert attend_by_trees(decoder)
    before = [parameter.detach().clone() for parameter in decoder.model.parameters()]
    rng = np.random.default_rng(0)

    def tree():
        words = rng.integers(10, 60, 6)
        branches = [Branch((int(words[i]), 7 + i), 0, 2) for i in (0, 1)]
        return TokenTree(tuple(words[2:].tolist()), tuple(branches), gate=0)

    schedule = ScheduleConfig(num_epochs=4, lr=3e-3)
    fitted = fit_decoder(decoder, [tree() for _ in range(80)], schedule=schedule)
    right = [np.diff(fitted.score_tree(tree()))[0] < 0 for _ in range(20)]
    assert np.mean(right) > 0.9
    after = list(decoder.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_cannot_be_fitted_is_refused_with_what_to_do():
    chosen, rejected = pairs(num=40)
    with pytest.raises(ValueError, match=r"`chosen_PD` and `rejected_PD`.*\(40, 4\).*\(40, 3\)"):
        fit(chosen, rejected[:, :3])
    with pytest.raises(ValueError, match="features must be finite"):
        fit(chosen * np.nan, rejected)
    with pytest.raises(ValueError, match="0 pairs are left to train on"):
        fit(chosen, rejected, None, np.ones(40, bool))
    with pytest.raises(ValueError, match=r"`source_P` .* 40 pairs, got the shape \(3,\)"):
        fit(chosen, rejected, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"`schedule\.patience`"):
        fit(chosen, rejected, schedule=ScheduleConfig(patience=2))
    with pytest.raises(ValueError, match=r"`schedule.pairs_per_step` is 40, which 3 sources"):
        fit(chosen, rejected, ["a", "b", "c", "a"] * 10, weighting=More())


def test_a_fit_needs_neither_ray_nor_transformers():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('ray', 'mlflow', 'transformers', 'tyro', 'rich'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import numpy as np\n"
        "from panoply.preference import fit\n"
        "rng = np.random.default_rng(0)\n"
        "a, b = rng.normal(0.5, 1, (200, 8)), rng.normal(-0.5, 1, (200, 8))\n"
        "model = fit(a, b, ['x'] * 100 + ['y'] * 100)\n"
        "assert (model.score(a) > model.score(b)).mean() > 0.9\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

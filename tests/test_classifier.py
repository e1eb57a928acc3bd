"""Classifier selection on planted arms of which each knows its own domain."""

import numpy as np
import pytest

from panoply.bandit.classifier import fit_classifier

NAN = np.nan


def planted(num, seed=0, num_features=20):
    """Contexts of four domains, how well each of four arms did, and the domains."""
    rng = np.random.default_rng(seed)
    domain = rng.integers(4, size=num)
    places = np.random.default_rng(9).standard_normal((4, num_features))
    contexts = places[domain] + 0.5 * rng.standard_normal((num, num_features))
    contexts /= np.linalg.norm(contexts, axis=1, keepdims=True)
    own = np.arange(4) == domain[:, None]
    verified = np.clip(np.where(own, 0.8, 0.5) + 0.2 * rng.standard_normal((num, 4)), 0, 1)
    verified[rng.random((num, 4)) < 0.1] = NAN
    return contexts, verified, domain


def test_a_classifier_learns_which_arm_suits_a_prompt():
    contexts, verified, _ = planted(200)
    new, _, domain = planted(400, seed=1)
    picked = fit_classifier(contexts, verified)(new)
    assert (picked == domain).mean() > 0.9
    shuffled = np.random.default_rng(0).permutation(200)
    assert (fit_classifier(contexts, verified[shuffled])(new) == domain).mean() < 0.5


def test_an_arm_that_is_best_nowhere_is_never_chosen():
    contexts, verified, _ = planted(200)
    verified[:, 2] = np.nanmin(verified, axis=1)
    assert set(fit_classifier(contexts, verified)(planted(400, seed=1)[0])) == {0, 1, 3}
    one = np.tile([0.2, NAN, 0.9, 0.5], (5, 1))
    assert fit_classifier(contexts[:5], one)(contexts).tolist() == [2] * 200


def test_arms_that_tie_share_a_prompt_and_where_all_tie_nothing_is_said():
    # Half of a domain's prompts are shared by arms 0 and 1, the other half are arm 1's.
    here, there = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    contexts = np.concatenate([np.repeat(here, 20, axis=0), np.repeat(there, 20, axis=0)])
    verified = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]] * 10 + [[0.0, 0.0, 1.0]] * 20)
    assert fit_classifier(contexts, verified)([[1.0, 0.0], [0.0, 1.0]]).tolist() == [1, 2]
    # Arm 0 alone is worth more than a share in many prompts.
    verified[:20] = [[1.0, 1.0, 0.0]] * 15 + [[1.0, 0.0, 0.0]] * 5
    assert fit_classifier(contexts, verified)(here).tolist() == [0]
    silent = np.array([[0.5, 0.5, NAN], [NAN, NAN, NAN], [NAN, 0.3, NAN]])
    with pytest.raises(ValueError, match="none of 3 calibration prompts tells two arms apart"):
        fit_classifier(contexts[:3], silent)
    more = np.concatenate([verified, silent]), np.concatenate([contexts, np.ones((3, 2))])
    assert fit_classifier(more[1], more[0])(here).tolist() == [0]
    with pytest.raises(ValueError, match=r"must be \[N, D\], \[N, K\]"):
        fit_classifier(contexts[:2], verified)

"""MORE's weights: the least norm in the hull of the sources' gradients, and what leads to it."""

import numpy as np
import pytest

from panoply.config.preference import More
from panoply.preference.batch_sampler import BatchSampler
from panoply.preference.min_norm import closest, exact, frank_wolfe, min_norm
from panoply.preference.more import MoreState, more_step, normalized
from tests.builders.reference import squared_norm


def random_gradients(seed, size, dim=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, dim)) + rng.normal(size=dim)


def solved(gradients):
    return exact(gradients @ gradients.T)


def test_two_gradients_have_the_closed_form():
    for seed in range(50):
        g = random_gradients(seed, 2)
        t = closest(g[0] @ g[0], g[1] @ g[1], g[0] @ g[1])
        apart = g[1] - g[0]
        assert t == pytest.approx(np.clip(apart @ g[1] / (apart @ apart), 0, 1))
        assert solved(g) == pytest.approx([t, 1 - t], abs=1e-9)
        assert frank_wolfe(g @ g.T) == pytest.approx([t, 1 - t], abs=1e-9)


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_no_point_of_the_simplex_has_a_smaller_norm_than_the_exact_one(size):
    rng = np.random.default_rng(size)
    for seed in range(10):
        g = random_gradients(seed, size)
        found = solved(g)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1)
        least = squared_norm(found.tolist(), g.tolist())
        others = [*np.eye(size), *rng.dirichlet(np.full(size, 0.5), 200)]
        assert all(least <= squared_norm(w.tolist(), g.tolist()) + 1e-9 for w in others)
        # What is optimal: no gradient with weight points further along the point than another.
        slope = g @ (found @ g)
        assert slope.min() >= least - 1e-7 * max(1, least)


@pytest.mark.parametrize("size", [3, 5, 12])
def test_frank_wolfe_comes_to_the_exact_norm(size):
    for seed in range(10):
        g = random_gradients(seed, size, dim=20)
        gram = g @ g.T
        found, best = frank_wolfe(gram), exact(gram) if size <= 8 else None
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1)
        if best is not None:
            scale = np.trace(gram) / size
            assert found @ gram @ found <= best @ gram @ best + 1e-4 * scale


def test_equal_opposite_and_absent_gradients_have_sensible_weights():
    g = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert solved(g).sum() == pytest.approx(1)
    assert min_norm(np.zeros((3, 3))) == pytest.approx([1 / 3] * 3)
    assert solved(np.array([[2.0, 0.0], [-1.0, 0.0]])) == pytest.approx([1 / 3, 2 / 3])
    assert solved(np.array([[3.0, 0.0], [0.0, 0.0]])) == pytest.approx([0, 1])


def test_weights_move_with_their_sources():
    g, order = random_gradients(3, 5), [4, 2, 0, 1, 3]
    assert solved(g[order]) == pytest.approx(solved(g)[order], abs=1e-8)


def test_normalizers_are_their_formulas():
    g, losses = random_gradients(1, 3), np.array([0.7, 0.5, 0.2])
    norms = np.linalg.norm(g, axis=1)
    for how, factor in (
        ("none", np.ones(3)),
        ("l2", 1 / norms),
        ("loss", (losses + 1).sum() / (losses + 1)),
        ("loss+", 1 / (norms * losses)),
    ):
        assert normalized(g, losses, how) == pytest.approx(g * factor[:, None])


def test_a_large_gradient_loses_its_weight_unless_it_is_normalized():
    g = np.array([[10.0, 0.1], [0.0, 1.0]])
    plain = more_step(MoreState.begin(2), g, np.ones(2), More(normalizer="none"))
    fair = more_step(MoreState.begin(2), g, np.ones(2), More(normalizer="l2"))
    assert plain.source_weights_K[0] < 0.02
    assert fair.source_weights_K == pytest.approx([0.5, 0.5], abs=0.01)


def test_momentum_is_a_running_mean_that_starts_at_the_first_gradient():
    config = More(momentum=0.3)
    first, second = random_gradients(0, 2), random_gradients(1, 2)
    state = more_step(MoreState.begin(2), first, np.ones(2), config)
    assert state.momentum_KD == pytest.approx(first)
    state = more_step(state, second, np.ones(2), config)
    assert state.momentum_KD == pytest.approx(0.7 * first + 0.3 * second)


def test_interpolation_goes_from_uniform_to_the_least_norm():
    g = random_gradients(2, 3)
    full = more_step(MoreState.begin(3), g, np.ones(3), More(interpolation=1.0)).source_weights_K
    half = more_step(MoreState.begin(3), g, np.ones(3), More(interpolation=0.5)).source_weights_K
    none = more_step(MoreState.begin(3), g, np.ones(3), More(interpolation=0.0)).source_weights_K
    assert none == pytest.approx([1 / 3] * 3)
    assert half == pytest.approx(0.5 / 3 + 0.5 * full)


def test_one_source_has_all_the_weight():
    state = more_step(MoreState.begin(1), random_gradients(0, 1), np.ones(1), More())
    assert state.source_weights_K == pytest.approx([1])


def test_balanced_steps_have_as_many_pairs_of_each_source_however_few_it_has():
    source_P = np.array([0] * 50 + [1] + [2] * 9)
    sampler = BatchSampler(source_P, 12, seed=3, balanced=True)
    assert sampler.steps_per_epoch == 5
    for step in range(20):
        assert np.bincount(source_P[sampler.batch_indices(step)]).tolist() == [4, 4, 4]
    # A source is gone through as a whole before it begins anew.
    small = [i for step in range(9) for i in sampler.batch_indices(step) if source_P[i] == 2]
    assert all(sorted(small[9 * t : 9 * t + 9]) == list(range(51, 60)) for t in range(4))
    assert sampler.epochs_per_source(9) == pytest.approx([36 / 50, 36, 4])
    assert sampler.batch_indices(4) == BatchSampler(
        source_P, 12, seed=3, balanced=True
    ).batch_indices(4)
    assert sampler.batch_indices(4) != BatchSampler(
        source_P, 12, seed=4, balanced=True
    ).batch_indices(4)


def test_sources_that_cannot_share_a_step_are_refused_with_a_size_that_fits():
    with pytest.raises(ValueError, match=r"is 10, which 3 sources cannot share.*for example 12"):
        BatchSampler(np.array([0, 1, 2]), 10, seed=0, balanced=True)

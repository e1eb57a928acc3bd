"""Rules of merging against the same formulas in plain Python, number by number."""

import math
import random

import pytest
import torch

from panoply.hub.merge.rules import dare, merge_tensors, slerp, ties, weights_of

SHAPE = (3, 4)
SIZE = 12


@pytest.fixture
def world():
    """Three models of one base, as lists of numbers, and as tensors."""
    rng = random.Random(0)
    base = [rng.gauss(0, 1) for _ in range(SIZE)]
    models = [[x + rng.gauss(0, 0.2) for x in base] for _ in range(3)]
    return models, base


def tensor(numbers, dtype=torch.float32):
    return torch.tensor(numbers, dtype=dtype).reshape(SHAPE)


def merged(rule, models, weights, base=None, **settings):
    """The rule's result as a list of numbers."""
    origin = None if base is None else tensor(base)
    values = merge_tensors(rule, [tensor(m) for m in models], weights, base=origin, **settings)
    return values.flatten().tolist()


def near(numbers):
    return pytest.approx(numbers, abs=1e-6)


def test_linear_is_the_weighted_sum(world):
    models, _ = world
    weights = (0.5, 0.3, 0.2)
    expected = [sum(w * m[i] for w, m in zip(weights, models, strict=True)) for i in range(SIZE)]
    assert merged("linear", models, weights) == near(expected)


def test_slerp_keeps_to_the_arc_and_becomes_a_line_where_models_are_nearly_parallel(world):
    models, _ = world
    a, b = models[0], [random.Random(1).gauss(0, 1) * (-1) ** i for i in range(SIZE)]
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    angle = math.acos(dot / math.hypot(*a) / math.hypot(*b))
    t = 0.3
    expected = [
        math.sin((1 - t) * angle) / math.sin(angle) * x + math.sin(t * angle) / math.sin(angle) * y
        for x, y in zip(a, b, strict=True)
    ]
    assert merged("slerp", [a, b], (1 - t, t)) == near(expected)
    # On the arc between two of one length the length stays, as it does on no line.
    unit = [tensor(v) / tensor(v).norm() for v in (a, b)]
    assert float(slerp(*unit, t).norm()) == pytest.approx(1, abs=1e-6)
    almost = [x * 1.0001 for x in a]
    expected = [0.7 * x + 0.3 * y for x, y in zip(a, almost, strict=True)]
    assert merged("slerp", [a, almost], (0.7, 0.3)) == near(expected)
    assert merged("slerp", [[0.0] * SIZE, b], (0.7, 0.3)) == near([0.3 * y for y in b])


def test_task_arithmetic_adds_what_the_others_changed(world):
    models, base = world
    r, s, u = models
    expected = [r[i] + 0.4 * (s[i] - base[i]) + 0.1 * (u[i] - base[i]) for i in range(len(base))]
    assert merged("task", models, (1.0, 0.4, 0.1), base) == near(expected)
    # Weights that sum to 1 make the mean of the models out of the base and their changes.
    mean = [b + 0.6 * (x - b) + 0.4 * (y - b) for x, y, b in zip(r, s, base, strict=True)]
    assert merged("linear", [r, s], (0.6, 0.4)) == near(mean)


@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
def test_ties_trims_elects_a_sign_and_takes_the_mean_of_those_that_agree(world, density):
    models, base = world
    weights = (0.5, 0.3, 0.2)
    changes = []
    for model in models:
        change = [x - b for x, b in zip(model, base, strict=True)]
        largest = sorted(change, key=abs, reverse=True)[: math.ceil(density * SIZE)]
        changes.append([x if x in largest else 0.0 for x in change])
    expected = []
    for i, origin in enumerate(base):
        sign = math.copysign(1, sum(w * c[i] for w, c in zip(weights, changes, strict=True)))
        agree = [(w, c[i]) for w, c in zip(weights, changes, strict=True) if sign * c[i] > 0]
        total = sum(w for w, _ in agree)
        expected.append(origin + (sum(w * c for w, c in agree) / total if total else 0.0))
    assert merged("ties", models, weights, base, density=density) == near(expected)


def test_ties_leaves_a_number_that_nobody_changed_at_the_base():
    base = torch.ones(4)
    moved = base + torch.tensor([0.0, 0.5, -0.5, 0.0])
    other = base + torch.tensor([0.0, -0.2, -0.1, 0.0])
    assert ties([moved, other], (0.5, 0.5), base, 1.0).tolist() == near([1.0, 1.5, 0.7, 1.0])


def test_dare_keeps_changes_at_random_and_their_mean_stays():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20_000, generator=generator)
    models = [base + 1.0, base - 2.0]
    change = dare(models, (0.75, 0.25), base, 0.2, generator) - base
    # Each of the two is there or not, five times as large.
    kinds = {round(float(x), 3) for x in change}
    assert kinds == {0.0, 3.75, -2.5, 1.25}
    kept = float((change == 0).float().mean())
    assert kept == pytest.approx(0.8**2, abs=0.02)
    assert float(change.mean()) == pytest.approx(0.75 - 0.5, abs=0.05)
    again = [
        merge_tensors("dare", models, (0.75, 0.25), base=base, density=0.2, seed=seed)
        for seed in (3, 3, 4)
    ]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


@pytest.mark.parametrize("rule", ["linear", "slerp", "task", "ties", "dare"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_share_of_the_others_the_first_model_stays_bit_by_bit(world, rule, dtype):
    models, base = world
    first, second = (tensor(model, dtype) for model in models[:2])
    weights = weights_of(rule, 0.0, 2)
    result = merge_tensors(rule, [first, second], weights, base=tensor(base), density=0.5)
    assert result.dtype == dtype
    assert torch.equal(result, first)


def test_weights_leave_the_first_what_the_others_do_not_have():
    assert weights_of("linear", 0.3, 2) == pytest.approx([0.7, 0.3])
    assert weights_of("ties", 0.6, 4) == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert weights_of("linear", 2 / 3, 3) == pytest.approx([1 / 3] * 3)
    assert weights_of("task", 0.5, 3) == [1.0, 0.25, 0.25]

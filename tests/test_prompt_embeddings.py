"""What a bandit sees of a prompt: a constant beside what sets the prompt apart."""

import numpy as np
import pytest

from panoply.bandit.bandits import LinUCB
from panoply.bandit.contexts import unit_contexts
from panoply.bandit.update import init, select_arms, uniforms, update
from panoply.data.tasks import synthetic_prompts
from tests.builders.laser_runs import laser_config


def test_a_context_is_a_constant_and_the_centered_state_of_unit_length_together():
    states = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]])
    found = unit_contexts(states, np.array([0.0, 0.0]))
    assert found[0] == pytest.approx(np.array([1.0, 0.6, 0.8]) / np.sqrt(2))
    assert found[1] == pytest.approx(np.array([1.0, 0.0, 0.0]) / np.sqrt(2))
    assert np.linalg.norm(found[2]) == pytest.approx(1.0)


def test_a_linear_bandit_learns_from_it_that_an_arm_is_better_on_all_prompts():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((400, 32))
    contexts = unit_contexts(states, states.mean(0))
    policy = LinUCB(alpha=0.3)
    state = init(policy, 2, contexts.shape[1])
    arms: list[int] = []
    for i in range(len(contexts)):
        choice = select_arms(policy, state, contexts[i : i + 1], uniforms(0, i, [str(i)]))
        arm = int(choice.arms_B[0])
        state = update(state, choice, [float(rng.random() < (0.3, 0.7)[arm])])
        arms.append(arm)
    assert np.mean(arms[200:]) > 0.8


def test_prompts_have_the_same_bits_embedded_in_the_driver_and_by_a_task(
    cluster, tiny_policy_folder, tmp_path
):
    from workflows.cluster.prompt_contexts import prompt_contexts

    config, tasks = laser_config(tiny_policy_folder, tmp_path), synthetic_prompts(12, 0)
    contexts: list[dict[str, np.ndarray]] = []
    for is_alone in (True, False):
        folder = tmp_path / str(is_alone)
        folder.mkdir()
        contexts.append(prompt_contexts(config, tasks, folder, is_alone=is_alone))
    here, by_task = contexts
    assert len(here) == 12
    for name, context_H in here.items():
        np.testing.assert_array_equal(context_H, by_task[name])

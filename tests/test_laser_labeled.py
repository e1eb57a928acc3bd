"""A run that labels some prompts first: strategies that learn from them."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from laser_runs import laser_config

from panoply.choose.bandit import project
from panoply.choose.classifier import fit_classifier
from panoply.choose.config import PolicyConfig as Bandit
from panoply.choose.config import SelectorConfig
from panoply.choose.laser_config import PromptsConfig
from panoply.choose.log import Log
from panoply.choose.make import initial_state
from panoply.choose.rewards import verified
from panoply.choose.router import fit_router
from panoply.choose.scored import read_scored
from workflows.laser import run_laser, tasks_of
from workflows.progress import Watch

ARMS = ("long", "short")
STRATEGIES = ("laser", "bayesian_router", "thompson", "classifier")


@pytest.fixture(scope="module")
def taught(cluster, tiny_policy_folder, tmp_path_factory):
    """A finished run, its configuration and its metrics."""
    root = tmp_path_factory.mktemp("labeled")
    # Right is what the random model says at times, for reasons of neither arm.
    (root / "right.py").write_text(
        "def right(response):\n    return float(len(response) % 3 > 0)\n"
    )
    prompts = PromptsConfig(num_made=24, num_held_out=4, verifier=f"function:{root}/right.py:right")
    config = laser_config(
        tiny_policy_folder,
        root / "run",
        prompts=prompts,
        num_labeled=8,
        num_rounds=3,
        strategies=STRATEGIES,
        selector=SelectorConfig(policy=Bandit(name="linucb", max_features=8)),
    )
    return root / "run", config, run_laser(config, Watch())


def context_of(out):
    """The context of each prompt of a run."""
    parts = json.loads((out / "data.json").read_text())
    names = [name for part in ("train", "labeled", "held_out") for name in parts[part]]
    rows = np.load(out / "contexts.npz")["contexts"]
    return dict(zip(names, rows, strict=True))


def test_labeled_prompts_are_scored_by_all_arms_and_not_trained_on(taught):
    out, config, metrics = taught
    train, labeled, held_out = ({t.prompt_id for t in part} for part in tasks_of(config))
    assert (len(train), len(labeled), len(held_out)) == (12, 8, 4)
    assert len(train | labeled | held_out) == 24
    found = read_scored(out / "labeled.parquet", ARMS)
    assert {one.prompt_id for one in found} == labeled
    assert all(np.isfinite(one.score_Kn).all() for one in found)
    for name in STRATEGIES:
        for file in out.glob(f"{name}/*/samples.parquet"):
            assert set(pq.read_table(file)["prompt_id"].to_pylist()) <= train
    cost = {name: found["num_scored"] for name, found in metrics["strategies"].items()}
    own, extra = 3 * 4 * 3, 8 * 3 * 2  # rounds x prompts x samples; labeled x samples x arms
    assert cost == {
        "laser": own,
        "bayesian_router": own + extra,
        "thompson": own,
        "classifier": own + extra,
    }


def test_a_router_starts_from_the_prior_of_the_labeled_prompts(taught):
    out, config, _ = taught
    found = read_scored(out / "labeled.parquet", ARMS)
    contexts = context_of(out)
    own = np.stack([contexts[one.prompt_id] for one in found])
    state = initial_state(config.selector_of("bayesian_router"), 2, own.shape[1])
    rows = [[verified(row, one.verdict_n) for row in one.score_Kn] for one in found]
    prior = fit_router(project(state, own), rows)
    assert np.allclose(json.loads((out / "prior.json").read_text()), prior, atol=1e-6)
    assert np.allclose(np.linalg.norm(prior, axis=1), 1)
    logs = [Log(str(out / name / "log"), ARMS).read() for name in ("bayesian_router", "thompson")]
    first = [
        [row["probabilities"] for row in log.decisions.to_pylist() if row["round"] == 0]
        for log in logs
    ]
    assert np.allclose(first[1], 0.5)  # nothing is known
    assert np.abs(np.array(first[0]) - 0.5).max() > 0.05


def test_a_classifier_picks_the_arm_of_each_prompt_for_the_whole_run(taught):
    out, _, _ = taught
    found = read_scored(out / "labeled.parquet", ARMS)
    contexts = context_of(out)
    own = np.stack([contexts[one.prompt_id] for one in found])
    rows = [[verified(row, one.verdict_n) for row in one.score_Kn] for one in found]
    routes = json.loads((out / "routes.json").read_text())
    picked = fit_classifier(own, rows)(np.stack([contexts[name] for name in routes]))
    assert list(routes.values()) == [ARMS[k] for k in picked]
    for round, row in enumerate(json.loads((out / "history.json").read_text())["classifier"]):
        samples = read_scored(out / "classifier" / f"{round:03d}" / "samples.parquet", ARMS)
        for one in samples:
            scored = np.isfinite(one.score_Kn).all(1)
            assert scored.tolist() == [arm == routes[one.prompt_id] for arm in ARMS]
        count = Counter(routes[one.prompt_id] for one in samples)
        assert [row[f"share/{arm}"] for arm in ARMS] == [count[arm] / 4 for arm in ARMS]


def test_what_was_learned_is_read_again(taught):
    out, config, metrics = taught
    routes = json.loads((out / "routes.json").read_text())
    before = {name: (out / name).stat().st_mtime_ns for name in ("prior.json", "routes.json")}
    assert run_laser(config, Watch())["strategies"] == metrics["strategies"]
    assert json.loads((out / "routes.json").read_text()) == routes
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before

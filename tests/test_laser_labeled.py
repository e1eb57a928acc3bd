"""Calibration prompts: strategies that learn from them, and gold pairs."""

import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from panoply.bandit.bandits import LinUCB
from panoply.bandit.classifier import fit_classifier
from panoply.bandit.router import fit_router
from panoply.bandit.update import project
from panoply.config import Rendering
from panoply.config.bandit import AlarmConfig, SelectorConfig, SignalConfig
from panoply.config.laser import ArmsConfig, PromptsConfig
from panoply.hub.backbone.renderer import Renderer
from panoply.laser.log import Log
from panoply.laser.rollout import read_rollouts
from panoply.laser.rounds import initial_state
from panoply.report.progress import RunLogger
from tests.builders.laser_runs import laser_config
from tests.builders.models import save_tiny_policy
from tests.builders.tokenizers import NO_SYSTEM, byte_tokenizer
from workflows.cluster.gold_pairs import judged_gold_pairs, read_gold_pairs
from workflows.laser import run_laser, split_prompts

ARMS = ("long", "short")
STRATEGIES = ("laser", "bayesian_router", "classifier")


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
        num_calibration_prompts=8,
        num_rounds=3,
        strategies=STRATEGIES,
        selector=SelectorConfig(
            bandit=LinUCB(max_features=8), signal=SignalConfig(name="gold_margin")
        ),
    )
    return root / "run", config, run_laser(config, RunLogger())


def test_a_prompt_that_the_policys_template_refuses_is_named_before_anything_starts(tmp_path):
    policy = save_tiny_policy(tmp_path / "policy", byte_tokenizer(NO_SYSTEM))
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q2"}]
    rows = [{"prompt": "q0"}, {"prompt": "q1"}, {"prompt": turns}]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = PromptsConfig(file=str(file), num_held_out=1)
    config = laser_config(policy, tmp_path / "run", prompts=prompts)
    with pytest.raises(ValueError, match=r"p\.jsonl, row 3: the chat template refuses .*system"):
        split_prompts(config)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert sum(map(len, split_prompts(config))) == 2


def context_of(out):
    """The context of each prompt of a run."""
    parts = json.loads((out / "data.json").read_text())
    names = [name for part in ("train", "calibration", "held_out") for name in parts[part]]
    rows = np.load(out / "contexts.npz")["contexts"]
    return dict(zip(names, rows, strict=True))


def test_calibration_prompts_are_scored_by_all_arms_and_not_trained_on(taught):
    out, config, metrics = taught
    train, labeled, held_out = ({t.prompt_id for t in part} for part in split_prompts(config))
    assert (len(train), len(labeled), len(held_out)) == (12, 8, 4)
    assert len(train | labeled | held_out) == 24
    found = read_rollouts(out / "calibration.parquet", ARMS)
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
        "classifier": own + extra,
    }


def test_a_router_starts_from_the_prior_of_the_calibration_prompts(taught):
    out, config, _ = taught
    found = read_rollouts(out / "calibration.parquet", ARMS)
    contexts = context_of(out)
    own = np.stack([contexts[one.prompt_id] for one in found])
    state = initial_state(config.selector_of("bayesian_router"), 2, own.shape[1])
    rows = [one.arm_aucs() for one in found]
    prior = fit_router(project(state, own), rows)
    assert np.allclose(json.loads((out / "prior.json").read_text()), prior, atol=1e-6)
    assert np.allclose(np.linalg.norm(prior, axis=1), 1)
    decisions = Log(str(out / "bayesian_router" / "log"), ARMS).read().decisions
    first = [row["probabilities"] for row in decisions.to_pylist() if row["round"] == 0]
    # Without a prior nothing would be known, and both would be as likely.
    assert np.abs(np.array(first) - 0.5).max() > 0.05


def test_a_classifier_picks_the_arm_of_each_prompt_for_the_whole_run(taught):
    out, _, _ = taught
    found = read_rollouts(out / "calibration.parquet", ARMS)
    contexts = context_of(out)
    own = np.stack([contexts[one.prompt_id] for one in found])
    rows = [one.arm_aucs() for one in found]
    routes = json.loads((out / "routes.json").read_text())
    picked = fit_classifier(own, rows)(np.stack([contexts[name] for name in routes]))
    assert list(routes.values()) == [ARMS[k] for k in picked]
    for round, row in enumerate(json.loads((out / "history.json").read_text())["classifier"]):
        samples = read_rollouts(out / "classifier" / f"{round:03d}" / "samples.parquet", ARMS)
        for one in samples:
            scored = np.isfinite(one.score_Kn).all(1)
            assert scored.tolist() == [arm == routes[one.prompt_id] for arm in ARMS]
        count = Counter(routes[one.prompt_id] for one in samples)
        assert [row[f"share/{arm}"] for arm in ARMS] == [count[arm] / 4 for arm in ARMS]


def test_what_was_learned_is_read_again(taught):
    out, config, metrics = taught
    routes = json.loads((out / "routes.json").read_text())
    before = {name: (out / name).stat().st_mtime_ns for name in ("prior.json", "routes.json")}
    again = run_laser(config, RunLogger())
    # As text: an interval of few prompts is no number, which is equal to nothing.
    strategies = [json.dumps(run["strategies"], sort_keys=True) for run in (again, metrics)]
    assert strategies[0] == strategies[1]
    assert json.loads((out / "routes.json").read_text()) == routes
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def test_gold_pairs_are_right_and_wrong_samples_of_calibration_prompts_and_rewards_the_bandit(
    taught,
):
    out, config, _ = taught
    found = {one.prompt_id: one for one in read_rollouts(out / "calibration.parquet", ARMS)}
    rows = pq.read_table(out / "laser" / "000" / "gold_pairs.parquet").to_pylist()
    assert rows
    assert Counter(row["prompt_id"] for row in rows).most_common(1)[0][1] <= 2
    for probe in judged_gold_pairs(config, list(found.values())):
        verdicts = [float(len(text) % 3 > 0) for text in probe.responses]
        assert all(verdicts[i] > verdicts[j] for i, j in probe.pairs)
        assert probe.source == found[probe.prompt_id].source
    record = Log(str(out / "laser" / "log"), ARMS).read().rewards.to_pylist()
    source_of = {task.prompt_id: task.source for task in split_prompts(config)[0]}
    for row in record:
        probed = pq.read_table(
            out / "laser" / f"{row['round']:03d}" / "gold_pairs.parquet"
        ).to_pylist()
        own = [one for one in probed if one["source"] == source_of[row["decision_id"]]] or probed
        gain = np.mean([one["margin_after"] - one["margin"] for one in own])
        assert row["gold_margin_gain"] == pytest.approx(gain)
        assert row["reward"] == row["signal_gold_margin"]
    rewards = [row["reward"] for row in record if row["round"] > 1]
    assert None not in rewards
    assert len(set(rewards)) > 1
    silent = [replace(one, verdict_n=np.ones(3)) for one in found.values()]
    with pytest.raises(ValueError, match="none of 8 calibration prompts has a right and a wrong"):
        judged_gold_pairs(config, silent)


def test_scores_that_rise_while_a_policy_learns_nothing_are_called_hacking_in_a_run(
    cluster, tiny_policy_folder, tmp_path
):
    (tmp_path / "inflated.py").write_text(
        "from pathlib import Path\n"
        "def inflated(response):\n"
        f"    rounds = len(list(Path({str(tmp_path)!r}).glob('run/*/*/samples.parquet')))\n"
        "    return len(response) + 1000 * rounds\n"
    )
    pairs = [
        {"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no", "source": "mine"}
        for i in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    config = laser_config(
        tiny_policy_folder,
        tmp_path / "run",
        prompts=PromptsConfig(num_made=12, num_held_out=0),
        arms=ArmsConfig(models=(f"inflated=function:{tmp_path}/inflated.py:inflated",)),
        strategies=("fixed:inflated",),
        gold_pairs=str(tmp_path / "pairs.jsonl"),
        num_rounds=6,
        rounds_per_iteration=6,
        alarms=AlarmConfig(window=2, sigmas=2.0, hacking="stop"),
    )
    still = replace(config, policy=replace(config.policy, lr=1e-12))
    metrics = run_laser(still, RunLogger())
    found = metrics["strategies"]["fixed:inflated"]
    assert found["paused"].startswith("round 4: hacking: scores rose by")
    assert found["rounds"] == 4
    (alarm,) = metrics["choices"]["fixed:inflated"]["alarms"]
    assert (alarm["name"], alarm["round"]) == ("hacking", 3)
    record = Log(str(tmp_path / "run" / "fixed-inflated" / "log"), ("inflated",)).read()
    assert record.rewards["gold_margin_gain"].null_count == 0


def test_a_file_of_trusted_pairs_gives_up_prompts_that_are_used_elsewhere(tmp_path):
    config = laser_config("embedded", tmp_path / "run", gold_pairs=str(tmp_path / "pairs.jsonl"))
    train, _, held_out = split_prompts(config)
    used = [*train, *held_out]
    renderer, lines = Renderer(byte_tokenizer(NO_SYSTEM), Rendering()), io.StringIO()
    logger = RunLogger(Console(file=lines, width=200))
    prompts = [train[0].prompt, held_out[0].prompt, [{"role": "user", "content": "say 1"}]]
    rows = [{"prompt": p, "chosen": "yes", "rejected": "no", "source": "mine"} for p in prompts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (kept,) = read_gold_pairs(config, tmp_path / "run", used, renderer.refusal, logger)
    assert kept.prompt == prompts[2]
    assert (kept.responses, kept.pairs, kept.source) == (("yes", "no"), ((0, 1),), "mine")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    with pytest.raises(ValueError, match="the prompts of all its pairs are trained on or held out"):
        read_gold_pairs(config, tmp_path / "run", used, renderer.refusal, logger)

    others = [[{"role": "user", "content": f"say {i}"}] for i in range(4)]
    others.append([{"role": "system", "content": "Be brief."}, *others[0]])
    rows = [{"prompt": p, "chosen": "yes", "rejected": "no"} for p in others]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = read_gold_pairs(config, tmp_path / "run", used, renderer.refusal, logger)
    assert sorted(pair.prompt[0]["content"] for pair in pairs) == [f"say {i}" for i in range(4)]
    assert "gold pairs: 4 rows, by source pairs (4)" in lines.getvalue()
    assert "no system turns" in lines.getvalue()

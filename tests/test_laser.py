"""The whole loop on Ray: what it leaves, deaths of its driver, arms that fail and come back."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from mlflow import MlflowClient

from panoply.config.bandit import AlarmConfig, SelectorConfig
from panoply.config.laser import (
    ENSEMBLES,
    ArmsConfig,
    BestOfNConfig,
    PromptsConfig,
    SampledPolicyConfig,
)
from panoply.hub.policy.policy import load_policy
from panoply.laser.log import Log
from panoply.laser.monitor import series
from panoply.report.progress import RunLogger
from tests.builders.laser_runs import LONG, SHORT, laser_config
from tests.builders.ray_head import ROOT
from workflows.best_of_n import run_best_of_n
from workflows.laser import run_laser

ARMS = ("long", "short")
DRIVER = """
import pickle, sys
from workflows.laser import run_laser
from panoply.report.progress import RunLogger
run_laser(pickle.load(sys.stdin.buffer), RunLogger())
"""


@pytest.fixture(scope="module")
def calm(cluster, tiny_policy_folder, tmp_path_factory):
    """A run that nothing disturbs, its configuration and its metrics."""
    out = tmp_path_factory.mktemp("laser") / "calm"
    strategies = ("laser", "fixed:short", "mean", "oracle")
    config = laser_config(tiny_policy_folder, out, strategies=strategies)
    return out, config, run_laser(config, RunLogger())


def test_a_run_leaves_policies_choices_and_what_they_came_to(calm):
    out, config, metrics = calm
    assert json.loads((out / "metrics.json").read_text())["strategies"].keys() == {
        *config.strategies
    }
    for found in metrics["strategies"].values():
        assert found["rounds"] == 4
        assert set(found["held_out"]) == {"0", "2", "4"}
        assert set(found["best_of_n"]) == {"long", "short", "mean", "mean_raw", "agreement"}
    cost = {name: found["num_scored"] for name, found in metrics["strategies"].items()}
    assert cost == {"laser": 48, "fixed:short": 48, "mean": 96, "oracle": 96}  # 4 rounds of 4 x 3
    assert metrics["choices"]["fixed:short"]["shares"] == {"long": 0.0, "short": 1.0}
    off_policy = metrics["choices"]["laser"]["off_policy"]
    assert off_policy["num"] <= 16
    assert set(off_policy["arms"]) == set(ARMS)
    assert set(metrics["differences"]) == {f"laser - {name}" for name in config.strategies[1:]}
    record = Log(str(out / "laser" / "log"), ARMS).read()
    assert record.decisions.num_rows == record.rewards.num_rows == 16
    # A prompt whose samples tie has no pair, and so no loss.
    num_pairs = metrics["strategies"]["laser"]["num_pairs"]
    assert record.rewards["loss"].null_count == 16 - num_pairs < 8
    # What AdamW remembers is twice the adapters, and only the last round's can still be needed.
    *_, last = sorted((out / "laser").glob("*/adapter"))
    assert list((out / "laser").glob("*/optimizer")) == [last.with_name("optimizer")]
    load_policy(str(out / "model"))
    for name in ("held_out.png", "shares.png"):
        assert (out / name).exists()
    page = (out / "report.html").read_text()
    assert "Mean reward of laser, and of each arm" in page
    assert "Mean reward of fixed:short" not in page


def test_what_the_log_shows_by_round_is_in_history_tracker_and_page(calm):
    out, config, metrics = calm
    history = json.loads((out / "history.json").read_text())
    record = Log(str(out / "laser" / "log"), ARMS).read()
    curves = series(record)
    for name in ("uncertainty", "regret", "share/long", "kl"):
        assert [row[name] for row in history["laser"]] == pytest.approx(curves[name].tolist())
    assert "uncertainty" not in history["mean"][0]  # which has no log
    client = MlflowClient(f"sqlite:///{out.parent / 'mlflow.db'}")
    logged = client.get_metric_history((out / "mlflow_run").read_text(), "train/regret")
    assert [one.step for one in logged] == [0, 1, 2, 3]
    html = (out / "report.html").read_text()
    for name in ("What the policies came to", "Which arms were chosen", "Regret", "No arm failed"):
        assert name in html
    assert f">{metrics['strategies']['laser']['after']:.3f}<" in html
    for name in config.strategies[1:]:
        assert f">laser -<wbr> {name}<" in html


def test_strategies_share_prompts_and_first_samples_and_part_afterwards(calm):
    out, *_ = calm
    columns = ["prompt_id", "responses"]
    tables = {
        name: [pq.read_table(out / name / f"{r:03d}" / "samples.parquet") for r in range(4)]
        for name in ("laser", "fixed-short", "mean")
    }
    for r in range(4):
        ids = {name: found[r]["prompt_id"].to_pylist() for name, found in tables.items()}
        assert ids["laser"] == ids["fixed-short"] == ids["mean"]
    first, other = (tables[name][0].select(columns) for name in ("laser", "mean"))
    assert first.equals(other)
    last = (tables[name][3].select(columns) for name in ("fixed-short", "mean"))
    assert not next(last).equals(next(last))


def as_text(values):
    """Values in which an interval of few prompts, which is no number, is equal to itself."""
    return json.dumps(values, sort_keys=True)


def test_a_run_that_is_over_is_only_read(calm):
    out, config, metrics = calm
    before = {path: path.stat().st_mtime_ns for path in out.rglob("samples.parquet")}
    assert as_text(run_laser(config, RunLogger())["strategies"]) == as_text(metrics["strategies"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("samples.parquet")} == before
    with pytest.raises(ValueError, match=r"other settings \(seed: "):
        run_laser(replace(config, seed=1), RunLogger())


def killed_once(config, when):
    """Starts a driver on this cluster and kills it when something is there."""
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    words = [sys.executable, "-c", DRIVER]
    driver = subprocess.Popen(words, stdin=subprocess.PIPE, env=env, cwd=ROOT)
    driver.stdin.write(pickle.dumps(config))
    driver.stdin.close()
    ends = time.monotonic() + 120
    while not when.exists():
        assert driver.poll() is None, "the driver ended by itself"
        assert time.monotonic() < ends, when
        time.sleep(0.01)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


def test_a_driver_that_is_killed_ends_with_the_numbers_of_one_that_was_not(calm, tmp_path):
    out, config, metrics = calm
    config = replace(config, out=str(tmp_path / "killed"), strategies=("laser",))
    own = tmp_path / "killed" / "laser"
    for when in (own / "log" / "decisions-00000000.parquet", own / "001" / "samples.parquet"):
        killed_once(config, when)
        assert not (own / "003" / "done.json").exists()
    found = run_laser(config, RunLogger())
    assert as_text(found["strategies"]["laser"]) == as_text(metrics["strategies"]["laser"])
    ours, theirs = (Log(str(folder / "log"), ARMS).read() for folder in (own, out / "laser"))
    assert ours.decisions.equals(theirs.decisions)
    assert ours.rewards.equals(theirs.rewards)
    assert len(list(own.glob("*/optimizer"))) == 1


class Mend(RunLogger):
    """Removes what breaks an arm as soon as a round is over."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken

    def info(self, text):
        """Takes a line of the run."""
        if "round 0" in text:
            self.broken.unlink()


def test_an_arm_that_fails_is_suspended_and_comes_back(cluster, tiny_policy_folder, tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    (tmp_path / "arm.py").write_text(
        "from pathlib import Path\n"
        "def flaky(response):\n"
        f"    if Path({str(broken)!r}).exists():\n"
        "        raise RuntimeError('out of order')\n"
        "    return len(response)\n"
    )
    arms = ArmsConfig(models=(f"flaky=function:{tmp_path}/arm.py:flaky", f"short={SHORT}"))
    config = laser_config(
        tiny_policy_folder,
        tmp_path / "run",
        arms=arms,
        strategies=("random",),
        selector=SelectorConfig(suspend_rounds=1, seed=1),
    )
    metrics = run_laser(config, Mend(broken))
    record = Log(str(tmp_path / "run" / "random" / "log"), config.arms.names).read()
    by_round = [
        [row for row in record.decisions.to_pylist() if row["round"] == round] for round in range(4)
    ]
    assert {row["arm"] for row in by_round[0]} == {"flaky", "short"}
    assert {row["arm"] for row in by_round[1]} == {"short"}
    (away,) = by_round[1][0]["suspended"]
    assert away["arm"] == "flaky"
    assert "the function raised RuntimeError at" in away["reason"]
    assert "flaky" in {row["arm"] for row in by_round[2] + by_round[3]}
    failures = metrics["choices"]["random"]["failures"]
    assert {(one["round"], one["arm"]) for one in failures} == {(0, "flaky")}


def test_a_run_that_an_alarm_stopped_says_so_and_goes_on_when_its_alarms_allow_it(
    cluster, tiny_policy_folder, tmp_path
):
    out = tmp_path / "run"
    watch = AlarmConfig(window=2, max_kl=1e-9)
    config = laser_config(tiny_policy_folder, out, alarms=watch)
    found = run_laser(config, RunLogger())["strategies"]["laser"]
    assert found["rounds"] == 2
    assert found["paused"].startswith("round 2: kl: KL")
    html = (out / "report.html").read_text()
    assert "laser stopped early: round 2: kl" in html
    assert "the strategy stopped before round 2" in html
    found = run_laser(replace(config, alarms=replace(watch, kl="warn")), RunLogger())
    assert found["strategies"]["laser"]["rounds"] == 4
    assert found["strategies"]["laser"]["paused"] == ""
    assert "stopped" not in (out / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = (out / "mlflow_run").read_text()
    logged = client.get_metric_history(run_id, "train/loss")
    assert [one.step for one in logged] == [0, 1, 2, 3]
    told = client.get_run(run_id).data
    assert (told.params["alarms.kl"], told.tags["later.alarms.kl"]) == ("stop", "warn")


def test_best_of_n_counts_what_each_picks_and_asks_the_bandit_of_a_run(calm, tmp_path):
    out, run, _ = calm
    config = BestOfNConfig(
        out=str(tmp_path / "best"),
        prompts=PromptsConfig(num_made=24),
        arms=run.arms,
        num_samples=(1, 3),
        backbone=SampledPolicyConfig(
            model=run.backbone.model, dtype="float32", rendering=run.backbone.rendering
        ),
        sampling=run.sampling,
        laser=str(out),
    )
    metrics = run_best_of_n(config, RunLogger())
    assert metrics["num_prompts"] == 24 - 14  # the run trained on 14 of its 18
    found = metrics["best_of_n"]
    # Of one response all pick the same, and it is as good as the mean of all samples.
    samples = pq.read_table(tmp_path / "best" / "samples.parquet").to_pylist()
    chance = np.mean([np.mean(row["verdicts"]) for row in samples])
    assert all(by_n["1"]["value"] == pytest.approx(chance) for by_n in found.values())
    most = found["any right"]["3"]["value"]
    assert all(by_n["3"]["value"] <= most for by_n in found.values())
    assert sum(metrics["arms_routed"].values()) == 10
    choices = pq.read_table(tmp_path / "best" / "choices.parquet")
    html = (tmp_path / "best" / "report.html").read_text()
    assert "Right choices among 3 samples" in html
    assert "Over-optimization: from the best n to n = 3" in html
    optimization = metrics["optimization"]
    assert optimization["kl"] == {"1": 0, "3": pytest.approx(np.log(3) - 2 / 3)}
    assert optimization["strategies"].keys() == found.keys() - {"any right"}
    for name, entry in optimization["strategies"].items():
        by_n = [found[name][n]["value"] for n in ("1", "3")]
        # Two arms that order responses oppositely leave an ensemble that tells none apart.
        rise = entry["proxy"]["3"]
        assert (rise == 0) if name in ENSEMBLES else (rise > 0), name
        assert not entry["fit"]["holds"]  # of two sizes
        assert entry["turn"]["value"] == pytest.approx(by_n[1] - max(by_n))
        assert entry["peak"] in (1, 3)
    longest = {row["prompt_id"]: max(map(len, row["responses"])) for row in samples}
    for row in choices.to_pylist():
        assert row["n"] == 3
        if row["strategy"] == "long":
            assert len(row["response"]) == longest[row["prompt_id"]]
    assert LONG in config.arms.models[0]

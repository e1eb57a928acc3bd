"""The search over MORE's weighting: its space, its trials, and what a kill leaves."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from ray.tune.search.optuna import OptunaSearch

from actors.reward_trainer import RewardTrainer
from actors.training_loop import DONE
from actors.trial import eval_results, trial_task
from jobs._main import parse_recipe
from jobs.recipes import PREFERENCE, TUNE_MORE
from panoply.config import as_dict
from panoply.config.preference import (
    DPO,
    HeadOnly,
    LastLayers,
    LossConfig,
    More,
    PairTrainingConfig,
)
from panoply.config.tune import (
    LEAST_STEPS,
    SpaceConfig,
    TuneConfig,
    at_point,
    command_words,
    num_steps,
    paper_point,
)
from panoply.preference.distributed import Group
from panoply.report.figures import picture
from panoply.report.progress import RunLogger
from panoply.report.trials import Trial, best, search_curves, search_table, trials_table
from tests.builders.preference_runs import small_config, write_pairs
from workflows.tune_more import ResumedASHA, prepare, run_tune_more, sampler, space, suggest

EMBEDDED = TUNE_MORE["embedded"][1]
POINT = {
    "normalizer": "loss",
    "momentum": 0.5,
    "interpolation": 0.25,
    "pairs_per_source": 8,
    "head_lr": 2e-3,
}


def test_the_defaults_are_the_papers_and_lie_in_the_space():
    point = paper_point(EMBEDDED, num_sources=4, num_pairs=4000)
    assert point == POINT | {
        "normalizer": "l2",
        "momentum": 0.99,
        "interpolation": 1.0,
        "pairs_per_source": 16,
        "head_lr": 1e-3,
    }
    for name, where in space(EMBEDDED).items():
        assert where._contains(where.to_internal_repr(point[name]))
    assert set(space(EMBEDDED)) == set(point)


@pytest.mark.parametrize(
    ("num_pairs", "pairs"), [(4000, 16), (1280, 16), (1279, 8), (400, 4), (9, 4)]
)
def test_on_few_pairs_the_defaults_leave_enough_steps(num_pairs, pairs):
    point = paper_point(EMBEDDED, num_sources=4, num_pairs=num_pairs)
    assert point["pairs_per_source"] == pairs
    steps = num_steps(at_point(EMBEDDED, point, 4, num_pairs), num_pairs)
    assert steps >= LEAST_STEPS or pairs == min(EMBEDDED.space.pairs_per_source)


def test_the_backbones_rate_is_searched_only_where_a_backbone_is_trained():
    both = replace(EMBEDDED, backbone=replace(EMBEDDED.backbone, trained=LastLayers()))
    assert "lr" not in space(EMBEDDED)
    assert "lr" in space(both)
    assert paper_point(both, 2, 1000)["lr"] == both.schedule.lr


def test_a_point_becomes_a_run_with_evaluations_equally_far_apart_in_pairs():
    runs = [at_point(EMBEDDED, POINT | {"pairs_per_source": n}, 4, 1600) for n in (5, 25)]
    assert [run.schedule.pairs_per_step for run in runs] == [20, 100]
    assert [run.schedule.eval_every for run in runs] == [10, 2]
    weighting = More(normalizer="loss", momentum=0.5, interpolation=0.25)
    assert runs[0].weighting == weighting
    assert runs[0].schedule.head_lr == 2e-3
    assert runs[0].schedule.lr == EMBEDDED.schedule.lr
    assert at_point(EMBEDDED, POINT, 4, 40).schedule.eval_every == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 1}, "`num_trials` must be >= 2"),
        ({"grace": 9}, "`grace` must be at most `num_evaluations`, got 9"),
        ({"cpus": 0.0}, "`cpus` must be positive"),
        (
            {"loss": LossConfig(policy=DPO())},
            "`loss.policy` 'dpo' trains the backbone.*'head-only' freezes",
        ),
        ({"space": SpaceConfig(head_lr=(2e-3, 1e-2))}, r"around `schedule.head_lr`"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_with_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(EMBEDDED, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizers": ("loss",)}, "with 'l2'"),
        ({"normalizers": ("l2", "l3")}, "'l3'"),
        ({"momentum": (0.0, 1.0)}, "space.momentum"),
        ({"interpolation": (0.0, 0.9)}, "space.interpolation"),
        ({"pairs_per_source": ()}, "space.pairs_per_source"),
        ({"lr": (1e-3, 1e-4)}, "space.lr"),
    ],
)
def test_a_space_without_the_defaults_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SpaceConfig(**changes)


def test_random_search_draws_what_tpe_draws_before_it_knows_anything():
    drawn = {}
    for name in ("tpe", "random"):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=sampler(name, EMBEDDED))
        drawn[name] = []
        for i in range(6):
            trial = study.ask()
            suggest(trial, EMBEDDED, 3)
            assert set(trial.params) == set(space(EMBEDDED))
            drawn[name].append(trial.params)
            study.tell(trial, float(i))
    startup = EMBEDDED.num_trials // 3
    assert drawn["tpe"][:startup] == drawn["random"][:startup]
    assert drawn["tpe"][startup:] != drawn["random"][startup:]


def test_numbers_that_cannot_matter_are_not_searched():
    search = OptunaSearch(
        partial(suggest, config=EMBEDDED, num_sources=2),
        metric="select_loss",
        mode="min",
        points_to_evaluate=[dict(paper_point(EMBEDDED, 2, 4000))],
        sampler=sampler("random", EMBEDDED),
    )
    points = [search.suggest(str(i)) for i in range(24)]
    assert points[0] == paper_point(EMBEDDED, 2, 4000)
    assert all(set(point) == set(space(EMBEDDED)) for point in points)
    of_l2 = [point for point in points if point["normalizer"] == "l2"]
    others = [point for point in points if point["normalizer"] != "l2"]
    assert {(point["momentum"], point["interpolation"]) for point in of_l2} == {(0.99, 1.0)}
    assert len(of_l2) > 2
    assert len({(point["momentum"], point["interpolation"]) for point in others}) == len(others)


def test_the_printed_flags_turn_a_recipe_into_the_run_that_won():
    for recipe, given in (("embedded", {}), ("more", {"pairs": ("a.parquet", "b c.parquet")})):
        base = PREFERENCE[recipe][1]
        schedule = replace(base.schedule, keep_best=True, head_lr=0.1 + 0.2, patience=3)
        weighting = More(normalizer="loss+", momentum=1 / 3)
        wanted = replace(base, schedule=schedule, weighting=weighting, **given)
        words = command_words(as_dict(wanted), as_dict(base))
        assert parse_recipe("preference", PREFERENCE, [recipe, *words]) == wanted


def trial(number, state, loss, search="tpe"):
    return Trial(search, number, state, POINT, loss, 0.5, (0.7, loss or 0.7), None)


def test_only_whole_trials_win_however_low_a_stopped_one_was():
    trials = [trial(0, "finished", 0.69), trial(1, "stopped", 0.5), trial(2, "finished", 0.68)]
    assert best(trials, "tpe").number == 2
    lost = [replace(trial(0, "diverged", None, "random"), reason="step 3: loss nan")]
    with pytest.raises(RuntimeError, match=r"none of the 1 trials of search 'random'.*step 3"):
        best(trials + lost, "random")
    assert len(picture(search_curves(trials + lost, 0.69))) > 10_000


def more_config(model, folder, **changes) -> TuneConfig:
    pairs = write_pairs(folder, (60, 40))
    preference = small_config(
        model,
        pairs,
        backbone={"trained": HeadOnly()},
        weighting=More(),
        store=str(folder / "store"),
    )
    shared = {f.name: getattr(preference, f.name) for f in fields(PairTrainingConfig)}
    return TuneConfig(
        **shared
        | {
            "out": str(folder / "out"),
            "num_trials": 3,
            "max_concurrent": 1,
            "num_evaluations": 4,
            "grace": 1,
            "reduction": 2.0,
            "space": SpaceConfig(pairs_per_source=(2, 4)),
        }
        | changes
    )


def test_a_single_source_is_refused_before_anything_starts(tmp_path, tiny_model_folder):
    config = more_config(tiny_model_folder, tmp_path)
    one = replace(config, pairs=config.pairs[:1])
    with pytest.raises(ValueError, match=r"these pairs have \('source0',\)"):
        run_tune_more(one, PREFERENCE["more"][1], RunLogger())


def test_an_evaluation_reports_the_loss_that_would_be_kept(tmp_path, tiny_model_folder):
    config = more_config(tiny_model_folder, tmp_path)
    base, _ = prepare(config, tmp_path, RunLogger())
    task = trial_task(paper_point(config, 2, len(base.pairs.train)), base, config)
    steps = num_steps(task.config, len(base.pairs.train))
    history = [{"step": i, "loss": 0.0} for i in range(steps)]
    for step, loss in ((1, 0.7), (3, 0.6), (steps - 1, 0.65)):
        history[step]["select_loss"] = loss
    last = eval_results(history, task)
    assert [result["select_loss"] for result in last] == [0.7, 0.6, 0.65]
    percents = [200 / steps, 400 / steps, 100]
    assert [result["percent"] for result in last] == percents
    assert last[-1]["curve"] == list(zip(percents, [0.7, 0.6, 0.65], strict=True))
    kept = replace(task.config, schedule=replace(task.config.schedule, keep_best=True))
    assert eval_results(history, replace(task, config=kept))[-1]["select_loss"] == 0.6


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_trial_is_compared_with_those_that_ended_before_a_restart(is_resumed):
    scheduler = ResumedASHA("percent", "select_loss", "min", grace_period=50, reduction_factor=2)
    curve = [(50.0, 0.5), (100.0, 0.4)]
    if is_resumed:
        ended = SimpleNamespace(trial_id="a", status="TERMINATED", last_result={"curve": curve})
        scheduler.on_trial_add(None, ended)
    trial = SimpleNamespace(trial_id="b", status="PENDING")
    scheduler.on_trial_add(None, trial)
    decision = scheduler.on_trial_result(None, trial, {"percent": 50.0, "select_loss": 0.6})
    assert decision == ("STOP" if is_resumed else "CONTINUE")


def outcomes(folder: Path):
    told = json.loads((folder / "trials.json").read_text())["trials"]
    return [(t["search"], t["point"], t["state"], t["losses"]) for t in told]


def left_behind():
    """Placement groups and actors of trials that still hold something."""
    import ray
    from ray.util import placement_group_table

    ray.get(ray.remote(num_cpus=1)(lambda: None).remote())
    groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    free = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
    return len(groups), free[1] - free[0]


def settled():
    for _ in range(60):
        if left_behind() == (0, 0):
            return True
        time.sleep(0.5)
    return False


@pytest.fixture(scope="module")
def searched(cluster, tmp_path_factory, tiny_model_folder):
    """An undisturbed search of three trials each."""
    config = more_config(tiny_model_folder, tmp_path_factory.mktemp("searched"))
    return config, run_tune_more(config, PREFERENCE["more"][1], RunLogger())


def test_a_search_compares_its_winners_with_the_defaults(searched):
    config, found = searched
    out = Path(config.out)
    assert [t.search for t in found.trials] == ["tpe"] * 3 + ["random"] * 3
    first, again = found.trials[0], found.trials[3]
    assert first.point == again.point == found.metrics["points"]["defaults"]
    assert first.losses[: len(again.losses)] == again.losses[: len(first.losses)]
    assert set(found.metrics["select_loss"]) == {"tpe", "random", "defaults"}
    for name in ("tpe", "random"):
        ended = [t for t in found.trials if t.search == name and t.state == "finished"]
        least = min(t.select_loss for t in ended)
        assert found.metrics["select_loss"][name] == least
        assert {"log_loss", "accuracy"} <= set(found.metrics["pairs"][name]["macro"])
    chosen = json.loads((out / "best.json").read_text())
    assert chosen["select_loss"] == min(found.metrics["select_loss"].values())
    assert (out / "search.png").stat().st_size > 10_000
    assert trials_table(found.trials).rows
    assert len(search_table(found.metrics).rows) == 3


def test_a_trial_is_the_run_that_its_point_says(searched, tmp_path):
    config, found = searched
    base, _ = prepare(config, Path(config.out), RunLogger())
    ended = next(t for t in found.trials if t.state == "finished")
    alone = replace(trial_task(ended.point, base, config), folder=str(tmp_path))
    RewardTrainer(alone, Group()).run()
    history = json.loads((tmp_path / DONE).read_text())["history"]
    assert eval_results(history, alone)[-1]["losses"] == pytest.approx(list(ended.losses), rel=1e-5)


def test_every_trial_is_a_child_of_one_run(searched):
    from mlflow import MlflowClient

    config, found = searched
    out = Path(config.out)
    client = MlflowClient(f"sqlite:///{out.parent / 'mlflow.db'}")
    parent = client.get_run((out / "mlflow_run").read_text())
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], where)
    assert len(children) == len(found.trials)
    by_name = {child.info.run_name: child for child in children}
    for t in found.trials:
        child = by_name[f"{t.search} {t.number:03d}"]
        assert child.data.metrics["select_loss"] == t.select_loss
        assert child.data.params["normalizer"] == t.point["normalizer"]
        looked = client.get_metric_history(child.info.run_id, "select/loss")
        assert [m.value for m in sorted(looked, key=lambda m: m.step)] == list(t.losses)


def test_nothing_is_left_on_the_cluster(searched):
    assert settled(), left_behind()


def test_the_same_folder_with_another_search_is_refused(searched):
    config, _ = searched
    with pytest.raises(ValueError, match=r"other settings \(num_trials: "):
        run_tune_more(replace(config, num_trials=4), PREFERENCE["more"][1], RunLogger())


def test_a_killed_search_goes_on_and_ends_as_an_undisturbed_one(searched, tmp_path):
    import ray

    config, found = searched
    cut = replace(config, out=str(tmp_path / "cut"))
    code = (
        "import sys, pickle; from workflows.tune_more import run_tune_more\n"
        "from panoply.report.progress import RunLogger\n"
        "run_tune_more(*pickle.loads(bytes.fromhex(sys.argv[1])), RunLogger())"
    )
    given = pickle.dumps((cut, PREFERENCE["more"][1])).hex()
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": "."}
    driver = subprocess.Popen([sys.executable, "-c", code, given], env=env)
    snapshots = Path(cut.out) / "search" / "tpe"
    while not any("TERMINATED" in s.read_text() for s in snapshots.glob("experiment_state*.json")):
        assert driver.poll() is None
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = list((Path(cut.out) / "trials").glob(f"*/{DONE}"))
    assert done
    assert settled(), left_behind()
    made = {path: path.stat().st_mtime_ns for path in done}
    run_tune_more(cut, PREFERENCE["more"][1], RunLogger())
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert outcomes(Path(cut.out)) == outcomes(Path(config.out))
    assert len(outcomes(Path(cut.out))) == len(found.trials)
    assert settled(), left_behind()

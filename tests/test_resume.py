"""A folder goes on with what changes no result, and names what would; a failed start is free."""

import importlib
import json
import os
import pkgutil
from dataclasses import fields, is_dataclass, replace

import pytest

import panoply.config
from jobs.recipes import ARMORM, BEST_OF_N, LASER, PREFERENCE, SERVE, TUNE_MORE
from panoply.config.armorm import ArmoRMConfig
from panoply.config.from_file import with_values
from panoply.config.preference import Full, Lora, PreferenceConfig, ScheduleConfig
from panoply.config.resume import MARK, changes, settings
from workflows.cluster.run_folder import check_folder, claim, finished_metrics

FREE = {"out", "num_workers", "gpus", "num_samplers", "wait_minutes", "experiment", "store"}
FREE |= {"report_to", "model_name", "token_budget", "checkpoint_every", "max_concurrent"}
"""Names of settings that change no result, in whatever configuration they stand."""
IDS = {"pairs": "abc"}


def pairs_config(tmp_path, **changed):
    return PreferenceConfig(**{"pairs": ("p.jsonl",), "out": str(tmp_path / "run")} | changed)


def with_results(config, out, ids=IDS):
    """Leaves a run that trained in a folder."""
    claim(out, config, ids)
    (out / "train").mkdir()
    (out / "train" / "step-00000050.pt").touch()


def configurations():
    for module in pkgutil.iter_modules(panoply.config.__path__, "panoply.config."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value):
                yield value


def test_what_changes_no_result_is_marked_so_wherever_it_stands():
    names = {
        f"{kind.__name__}.{field.name}"
        for kind in configurations()
        if kind.__name__ not in ("ScalingConfig", "GatewayConfig", "GatewayArgs")
        for field in fields(kind)
        if field.name in FREE and field.metadata.get(MARK) != "no effect"
    }
    assert not names


def test_workers_paths_and_names_let_a_run_go_on(tmp_path, monkeypatch):
    config, out = pairs_config(tmp_path), tmp_path / "run"
    with_results(config, out)
    (tmp_path / "p.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    other = replace(
        config,
        num_workers=7,
        experiment="other",
        store="elsewhere",
        wait_minutes=1.0,
        out="run",
        pairs=(str(tmp_path / "p.jsonl"),),
        schedule=replace(config.schedule, token_budget=100, checkpoint_every=3),
    )
    claim(out, other, IDS)
    assert json.loads((out / "config.json").read_text())["num_workers"] == 7


def test_a_refusal_names_each_setting_with_both_values(tmp_path):
    config, out = pairs_config(tmp_path), tmp_path / "run"
    with_results(config, out)
    other = replace(config, schedule=replace(config.schedule, lr=3e-4), seed=2)
    with pytest.raises(ValueError, match=r"seed: 0 -> 2; schedule.lr: 0.0001 -> 0.0003"):
        check_folder(out, other)
    full = replace(config, backbone=replace(config.backbone, trained=Full()))
    assert changes(full, settings(config)) == ["backbone.trained: lora -> full"]


def test_the_run_of_another_command_is_refused(tmp_path):
    config, out = pairs_config(tmp_path), tmp_path / "run"
    with_results(config, out)
    armorm = ArmoRMConfig(ratings=("r.jsonl",), pairs=("p.jsonl",), out=str(out))
    assert not changes(armorm, settings(config))  # what both have is alike
    with pytest.raises(ValueError, match=r"another command \(PreferenceConfig\)"):
        check_folder(out, armorm)


def test_other_data_are_refused_wherever_they_lie(tmp_path):
    config, out = pairs_config(tmp_path), tmp_path / "run"
    with_results(config, out)
    with pytest.raises(ValueError, match=r"other pairs \(see data.json\)"):
        claim(out, config, {"pairs": "other"})


def test_a_folder_without_results_is_taken_again(tmp_path):
    config, out = pairs_config(tmp_path), tmp_path / "run"
    claim(out, config, IDS)
    (out / "data").mkdir()
    for name in ("tokens.parquet", "pairs.parquet"):
        (out / "data" / name).touch()
    (out / "tracking.json").touch()
    claim(out, replace(config, seed=5), {"pairs": "other"})
    assert json.loads((out / "config.json").read_text())["seed"] == 5
    assert json.loads((out / "data.json").read_text())["pairs"] == "other"
    # Rendered by the old settings, unlike the pairs that are read again.
    assert not (out / "data" / "tokens.parquet").exists()
    assert (out / "data" / "pairs.parquet").exists()


def test_settings_that_are_newer_than_a_run_count_at_their_defaults(tmp_path):
    config, out = pairs_config(tmp_path), tmp_path / "run"
    with_results(config, out)
    old = json.loads((out / "config.json").read_text())
    del old["num_heads"], old["schedule"]["patience"], old["backbone"]["trained"]["alpha"]
    old["of an older version"] = 1
    (out / "config.json").write_text(json.dumps(old))
    claim(out, config, IDS)
    (out / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="num_heads: 1 -> 3"):
        claim(out, replace(config, num_heads=3), IDS)


def test_a_place_is_the_same_in_every_spelling_and_another_place_is_refused(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    config = pairs_config(tmp_path)
    config = replace(config, backbone=replace(config.backbone, model="a"))
    old = settings(config)
    monkeypatch.chdir(tmp_path / "b")
    for model, count in ((str(tmp_path / "a"), 0), ("../a", 0), ("../b", 1)):
        other = replace(config, backbone=replace(config.backbone, model=model))
        assert len(changes(other, old)) == count


def test_equal_settings_are_not_written_again_and_torn_ones_are_named(tmp_path):
    config, out = pairs_config(tmp_path), tmp_path / "run"
    with_results(config, out)
    file = out / "config.json"
    before = file.stat()
    claim(out, config, IDS)
    assert file.stat().st_ino == before.st_ino
    file.write_text(file.read_text()[:40])
    with pytest.raises(ValueError, match=r"config.json' is torn.*remove that file"):
        check_folder(out, config)
    file.unlink()  # the advice
    claim(out, config, IDS)
    assert json.loads(file.read_text())["seed"] == 0


def test_a_run_is_finished_until_a_setting_or_an_input_changes(tmp_path):
    file, out = tmp_path / "p.jsonl", tmp_path / "run"
    file.write_text("{}")
    config = pairs_config(tmp_path, pairs=(str(file),))
    with_results(config, out)
    assert finished_metrics(config) is None
    (out / "metrics.json").write_text('{"a": 1}')
    later = file.stat().st_ctime + 5
    os.utime(out / "metrics.json", (later, later))
    assert finished_metrics(config) == {"a": 1}
    assert finished_metrics(replace(config, num_workers=5)) == {"a": 1}
    assert finished_metrics(replace(config, seed=1)) is None
    assert finished_metrics(replace(config, pairs=(str(tmp_path),))) is None
    os.utime(out / "metrics.json", (1, 1))  # older than the pairs, however old those claim to be
    os.utime(file, (0, 0))
    assert finished_metrics(config) is None


def test_the_settings_of_a_run_read_back_from_its_file(tmp_path, monkeypatch):
    # Models of recipes are folders here once `make demo` has run.
    monkeypatch.chdir(tmp_path)
    for recipes in (ARMORM, PREFERENCE, TUNE_MORE, LASER, BEST_OF_N, SERVE):
        config = next(iter(recipes.values()))[1] if recipes is not SERVE else SERVE["demo"][1]
        values = json.loads(json.dumps(settings(config)))
        assert with_values(type(config), None, values) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedul": {}}, "`schedul` is no setting: there is schedule"),
        ({"schedule": {"lrr": 1}}, "`schedule.lrr` is no setting: there is lr"),
        ({"schedule": {"lr": "fast"}}, "`schedule.lr` must be float, got 'fast'"),
        ({"schedule": {"lr": -1}}, "`schedule.lr` must be positive, got -1.0"),
        ({"backbone": {"trained": {"kind": "all"}}}, "`backbone.trained.kind` must be one of"),
        ({"seed": {"a": 1}}, "`seed` takes one value"),
        ({"parallel": "tp"}, "`parallel` must be"),
    ],
)
def test_a_wrong_name_or_value_in_a_file_of_settings_is_named(values, message):
    base = PreferenceConfig(pairs=("x",))
    with pytest.raises(ValueError, match=message):
        with_values(PreferenceConfig, base, values)


def test_a_file_of_settings_may_leave_out_what_has_a_default():
    base = PreferenceConfig(pairs=("x",), schedule=ScheduleConfig(num_epochs=4))
    values = {"schedule": {"lr": "3e-4"}, "backbone": {"trained": {"kind": "lora", "rank": 2}}}
    config = with_values(PreferenceConfig, base, values)
    assert config.schedule == ScheduleConfig(num_epochs=4, lr=3e-4)
    assert config.backbone.trained == Lora(rank=2)
    with pytest.raises(ValueError, match="`arms` is missing"):
        with_values(type(LASER["embedded"][1]), None, {})

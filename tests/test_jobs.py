"""The command line: quick to answer, and clear about what is wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from jobs._main import parse_recipe
from jobs.recipes import ARMORM, PREFERENCE
from panoply.config.preference import PreferenceConfig
from panoply.config.resume import settings
from tests.builders.ray_head import ROOT


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_help_lists_the_recipes():
    help_text = run("jobs.armorm", "--help").stdout
    assert "usage" in help_text
    assert all(name in help_text for name in ARMORM)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["embedded", "--gate.lr", "-1"], "gate.lr"),
        (["embedded", "--gaate.lr", "1"], "gaate"),
        (["files"], "ratings"),
        (["embedded", "--ratings", "x.parquet"], "brings its own data"),
    ],
)
def test_a_wrong_flag_is_told_at_once(flags, message):
    done = run("jobs.armorm", *flags)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


TYPOS = [
    ("preference pairs --pairs no.parquet", "'no.parquet' does not exist"),
    ("armorm files --ratings no.parquet --pairs no.parquet", "'no.parquet' does not exist"),
    ("tune_more pairs --pairs no.parquet", "'no.parquet' does not exist"),
    ("laser files --arms.models a=b/c --prompts.file no.jsonl", "'no.jsonl' does not exist"),
    ("preference pairs --pairs bad.jsonl", "bad.jsonl"),
    ("preference pairs --pairs good.jsonl --backbone.model nowhere", "neither a folder nor a"),
    ("armorm embedded --backbone.model empty", "a folder without config.json"),
    ("evaluate nowhere --pairs no.parquet", "`model` is 'nowhere', neither"),
    ("cross_eval nowhere --pairs no.parquet", "`models` is 'nowhere', neither"),
    ("serve models --models a=runs/x", "a run: name its model, runs/x/model"),
    ("board rmbench --files no.parquet --scorers a=b/c", "'no.parquet' does not exist"),
    ("board rmbench --files good.jsonl --scorers a=b/c", "is no file of RM-Bench"),
    (
        "board pairs --files good.jsonl --training numbers.jsonl --scorers a=b/c",
        "of no known layout",
    ),
    (
        "best_of_n files --arms.models a=nowhere --prompts.file good.jsonl",
        "`arms.models` is 'nowhere'",
    ),
    ("preference pairs --pairs good.jsonl --out held", "seed: 1 -> 0"),
    ("preference pairs --pairs good.jsonl --out torn", "config.json' is torn"),
    ("preference --config no.yaml", "no.yaml"),
    ("preference pairs --config bad.yaml", "`schedule.lrr` is no setting: there is lr"),
    ("preference pairs --learning_rate 1", "perhaps you meant `--schedule.lr`"),
    ("laser embedded --num-generations=4", "perhaps you meant `--num-samples`"),
    ("armorm embedded --lr 1", "perhaps you meant `--gate.lr`"),
    ("preference pair", "perhaps you meant 'pairs'"),
]
"""Command lines with something wrong, and a part of what is told."""
TELLS = """
import contextlib, io, json, runpy, sys
heavy = {"torch", "transformers", "ray", "mlflow", "matplotlib"}
for words in json.loads(sys.argv[1]):
    sys.argv = [f"jobs.{words[0]}", *words[1:]]
    code, told = 0, io.StringIO()
    with contextlib.redirect_stdout(told):
        try: runpy.run_module(sys.argv[0], run_name="__main__")
        except SystemExit as end: code = end.code
    print(json.dumps([code, told.getvalue(), sorted(heavy & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each command line with something wrong gives, all of them in one process."""
    folder = tmp_path_factory.mktemp("typos")
    (folder / "good.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    (folder / "bad.jsonl").write_text('{"question": "a", "answer": "b"}')
    (folder / "numbers.jsonl").write_text('{"a": 1}')
    (folder / "bad.yaml").write_text("schedule: {lrr: 1}")
    for name in ("empty", "held/train", "torn", "runs/x/model"):
        (folder / name).mkdir(parents=True)
    (folder / "held" / "config.json").write_text('{"seed": 1}')
    (folder / "held" / "train" / "step.pt").touch()
    (folder / "torn" / "config.json").write_text('{"seed"')
    (folder / "runs" / "x" / "model" / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", TELLS, json.dumps([words.split() for words, _ in TYPOS])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(TYPOS)), ids=[words for words, _ in TYPOS])
def test_what_is_wrong_is_told_before_anything_heavy_is_imported(number, answers):
    code, told, heavy = answers[number]
    assert code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert TYPOS[number][1] in told
    assert heavy == []


def test_a_file_of_settings_gives_a_run_and_flags_stand_above_it(tmp_path):
    config = replace(PREFERENCE["embedded"][1], seed=3, num_heads=2)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings(config)))
    words = ["--config", str(file)]
    assert parse_recipe("preference", PREFERENCE, words) == config
    parsed = parse_recipe("preference", PREFERENCE, [*words, "--num-heads", "1"])
    assert parsed == replace(config, num_heads=1)
    file.write_text("pairs: [a.jsonl]\nschedule:\n  lr: 3e-4\n")
    parsed = parse_recipe("preference", PREFERENCE, ["haf", *words, "--seed", "4"])
    expected = replace(PREFERENCE["haf"][1], pairs=("a.jsonl",), seed=4)
    assert parsed == replace(expected, schedule=replace(expected.schedule, lr=3e-4))


def test_the_overview_names_every_command_and_each_begins_with_what_it_is():
    overview = run("jobs").stdout
    for job in ("armorm", "preference", "serve", "evaluate", "doctor"):
        assert f"  {job} " in overview
    assert run("jobs.preference").stdout.splitlines()[2] == PreferenceConfig.__doc__.splitlines()[0]


@pytest.mark.slow
def test_a_hub_out_of_reach_is_told_before_any_data_is_read(tmp_path):
    out = str(tmp_path / "run")
    done = run("jobs.armorm", "embedded", "--backbone.model", "a/b", "--out", out)
    assert done.returncode == 2
    assert "the hub could" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


UNREAD = """
import io, os, runpy, sys
for job in sys.argv[1:]:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.close(writer)
    buffering = 0 if os.environ["PYTHONUNBUFFERED"] else -1
    sys.stdout = io.TextIOWrapper(open(1, "wb", buffering, closefd=False), write_through=True)
    sys.argv = [job, "--help"]
    try: runpy.run_module(job, run_name="__main__")["main"]()  # called by itself in a job alone
    except SystemExit as end: assert not end.code, (job, end.code)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_who_leaves_a_help_text_early_sees_no_traceback(unbuffered):
    files = sorted((ROOT / "jobs").glob("[a-z]*.py"))
    commands = [f"jobs.{file.stem}" for file in files if file.stem != "recipes"]
    words = [sys.executable, "-c", UNREAD, "jobs", "panoply.cli", *commands]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")

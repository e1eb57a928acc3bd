"""The command line: quick to answer, and clear about what is wrong."""

import subprocess
import sys

import pytest

from jobs.recipes import ARMORM


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_help_lists_the_recipes_and_loads_neither_torch_nor_ray():
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('jobs.{}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    )
    for job in (
        "armorm",
        "average",
        "cross_eval",
        "doctor",
        "evaluate",
        "export",
        "serve",
        "track",
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(job)], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"
        assert "usage" in done.stdout
        assert job != "armorm" or all(name in done.stdout for name in ARMORM)


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


@pytest.mark.slow
def test_a_missing_backbone_and_a_hub_out_of_reach_are_told_before_any_data_is_read(tmp_path):
    for name, message in ((str(tmp_path / "none"), "neither a folder"), ("a/b", "the hub could")):
        done = run(
            *("jobs.armorm", "embedded", "--backbone.model", name, "--out", str(tmp_path / "run")),
        )
        assert done.returncode == 2
        assert message in " ".join(done.stdout.split())
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_missing_model_or_file_ends_with_a_sentence_and_not_with_a_traceback(tmp_path):
    done = run("jobs.evaluate", str(tmp_path), "--pairs", "nothing.parquet", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "no panoply.json" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_models_to_compare_are_named_once_and_a_model_to_evaluate_alone(tmp_path):
    for words, message in (
        (("jobs.evaluate", "a", "b"), "unrecognized"),
        (("jobs.cross_eval", "a", "a"), "different folders"),
        (("jobs.cross_eval", "a", "--board", "rmbench"), "unrecognized"),
        (("jobs.cross_eval", str(tmp_path), "b"), "no panoply.json"),
    ):
        done = run(*words, "--pairs", "nothing.parquet", "--out", str(tmp_path / "out"))
        assert done.returncode == 2
        assert message in " ".join((done.stdout + done.stderr).lower().split())
        assert "Traceback" not in done.stderr

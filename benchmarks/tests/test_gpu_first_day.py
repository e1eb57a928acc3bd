"""The command of the first day on a GPU runs, on a CPU, all that can run there."""

import json
import subprocess
import sys

import pytest

from benchmarks.gpu_first_day import SECONDS, Options, run_part_apart, troubles
from benchmarks.gpu_setting import within


def test_a_tiny_run_has_every_part_and_all_of_its_figures_hold(tmp_path):
    file = tmp_path / "first" / "day.json"
    command = [sys.executable, "-m", "benchmarks.gpu_first_day", "--tiny", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    assert {f"part_{part}" for part in SECONDS} <= figures.keys()
    assert all("error" not in figure for figure in figures.values())
    errors = {name: figure["value"] for name, figure in figures.items() if "holds" in figure}
    assert {"flex_forward_window", "features_by_flex", "gradients_by_calls"} <= errors.keys()
    assert all(value > 0 for value in errors.values())  # two ways, and not one with itself
    assert max(value for name, value in errors.items() if "drift" not in name) < 1e-4
    for name in ("pairs_tiny_vs_padded_sdpa", "n16_tiny_vs_padded_sdpa", "step_tiny_vs_plain_loop"):
        assert figures[name]["value"] > 0
        assert figures[name]["ideal"] > 1
    assert figures["served_tiny_vs_padded_requests"]["items_per_second"] > 0
    assert "pairs_tiny_vs_padded_sdpa" in done.stdout


def test_the_parts_end_within_eight_minutes_and_a_beginning():
    assert sum(SECONDS.values()) <= 8 * 60 - 10


def test_a_part_that_fails_is_reported_with_its_error():
    figures = run_part_apart("nonsense", tiny=True)
    assert "KeyError: 'nonsense'" in figures["part_nonsense"]["error"]
    [line] = troubles(figures)
    assert line.startswith("part_nonsense: ")


def test_a_figure_beyond_its_bound_is_trouble_and_nan_is_beyond_any():
    figures = {"a": within(1e-6, 1e-4), "b": within(2e-4, 1e-4), "c": within(float("nan"), 1.0)}
    assert troubles(figures) == ["b: 0.0002 is beyond 0.0001", "c: nan is beyond 1"]


def test_a_part_that_does_not_exist_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"`parts` has \['speed'\]: allowed are \['exactness'"):
        Options(json=tmp_path / "f.json", parts=("speed",))

"""A benchmark per release: a small part, parts that are missing, and the page of two commits."""

import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import tyro

from benchmarks.release import (
    GRACE,
    PARTS,
    Bar,
    MissingPart,
    Part,
    checked_out,
    git,
    machine,
    measured,
    ratios,
    stop,
)
from benchmarks.release_page import page_of

CACHE = {"module": "benchmarks.judge_cache", "flags": "--responses 16 --words 5"}


def test_all_parts_together_end_within_twenty_minutes():
    assert sum(part.seconds for part in PARTS) <= 20 * 60
    assert all(part.seconds > GRACE for part in PARTS)


@pytest.mark.parametrize("part", PARTS, ids=[part.name for part in PARTS])
def test_every_benchmark_takes_the_flags_that_it_gets(part):
    data = ["--data", "folder"] if part.needs_data else []
    options = import_module(part.module).Options
    parsed = tyro.cli(options, args=[*part.flags.split(), "--json", "file", *data])
    assert parsed.json == Path("file")
    assert part.needs_data == hasattr(parsed, "data")


def test_a_part_leaves_ratios_with_extremes_over_its_runs(tmp_path):
    bars = {"same": Bar(at_least=1.0), "cache_vs_server": Bar()}
    part = Part(name="cache", seconds=120, num_runs=2, bars=bars, **CACHE)
    entry = measured(part, tmp_path, tmp_path)
    assert set(entry) == {"load", "figures"}, (tmp_path / "cache.log").read_text()
    assert entry["figures"]["same"] == {"ratio": 1.0, "min": 1.0, "max": 1.0, "at_least": 1.0}
    figure = entry["figures"]["cache_vs_server"]
    assert 0 < figure["min"] <= figure["ratio"] <= figure["max"]
    assert "at_least" not in figure


def test_a_part_that_runs_out_of_time_is_missing(tmp_path):
    flags = "--responses 400000"
    part = Part(name="cache", module=CACHE["module"], flags=flags, seconds=GRACE + 3)
    entry = measured(part, tmp_path, tmp_path)
    assert entry["missing"] == "ran out of its 13 s"
    assert "figures" not in entry


def test_what_a_part_has_started_ends_with_it():
    code = (
        "import subprocess, time\np = subprocess.Popen(['sleep', '60'])\nprint(p.pid, flush=True)"
    )
    part = subprocess.Popen(
        [sys.executable, "-c", f"{code}\ntime.sleep(60)"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with part.stdout:
        child = psutil.Process(int(part.stdout.readline()))
    assert child.is_running()
    stop(part)
    assert part.returncode == -signal.SIGINT
    with suppress(psutil.NoSuchProcess):
        child.wait(10)
    assert not child.is_running()


def test_a_part_that_fails_is_missing_with_its_last_words(tmp_path):
    part = Part(name="cache", module="benchmarks.nonesuch", seconds=60, bars={"same": Bar()})
    entry = measured(part, tmp_path, tmp_path)
    assert entry["missing"].startswith("ended with 1: ")
    assert "benchmarks.nonesuch" in entry["missing"]


def test_a_figure_that_is_not_there_makes_its_part_missing_and_never_0():
    runs = [{"a": {"ratio": 2.0, "min": 1.5, "max": 3.0, "ideal": 4.0}}, {"a": {"ratio": 2.5}}]
    bar = Bar(at_least=0.5, of_ideal=True)
    assert ratios({"a": bar}, runs[:1]) == {"a": runs[0]["a"] | {"at_least": 2.0}}
    with pytest.raises(MissingPart, match="wrote no 'a'"):  # a share of no ideal
        ratios({"a": bar}, runs)
    assert ratios({"a": Bar()}, runs)["a"] == {"ratio": 2.25, "min": 1.5, "max": 3.0, "ideal": 4.0}
    with pytest.raises(MissingPart, match="wrote no 'b'"):
        ratios({"a": Bar(), "b": Bar()}, runs)
    with pytest.raises(MissingPart, match="wrote no 'a'"):
        ratios({"a": Bar()}, [{"a": {"ratio": float("nan")}}])


@pytest.fixture
def two_commits(tmp_path):
    """A repository of two commits."""
    for words in (
        ("init", "--quiet"),
        ("config", "user.name", "n"),
        ("config", "user.email", "e"),
    ):
        git(tmp_path, *words)
    for subject in ("Begin", "Go on"):
        (tmp_path / "file").write_text(subject)
        git(tmp_path, "add", "file")
        git(tmp_path, "commit", "--quiet", "--message", subject)
    return tmp_path


def release(about, ratio, missing=""):
    """The file of a commit: a ratio with a bar, or why there is none, and a count."""
    figure = {"ratio": ratio, "min": ratio - 0.25, "max": ratio + 0.25, "ideal": 6.0}
    trees = {"figures": {"n16_vs_sorted": figure | {"at_least": 4.8}}}
    counts = {"figures": {"pairs: tokens": {"value": 13_315, "ideal": 13_315}}}
    parts = {"counts": counts, "trees": {"missing": missing} if missing else trees}
    parts = {name: {"load": 0.5, **part} for name, part in parts.items()}
    return {**about, "machine": machine(), "parts": parts}


def test_the_page_shows_two_commits_in_the_order_of_git(two_commits):
    new = checked_out(two_commits)
    assert new["subject"] == "Go on"
    git(two_commits, "checkout", "--quiet", "HEAD~1")
    old = checked_out(two_commits)
    history = [old["commit"], new["commit"]]
    files = [json.dumps(release(new, 4.5)), json.dumps(release(old, 5.5))]
    page = page_of(map(json.loads, files), history)
    drawing = re.search(r"<figure.*?n16 vs sorted.*?</figure>", page, re.DOTALL)[0]
    rows = re.findall(r'<th scope="row">(\d)</th>(.*?)</tr>', drawing, re.DOTALL)
    assert [(place, re.findall("<td>(.*?)</td>", cells)) for place, cells in rows] == [
        ("1", ["5.500", "5.250", "5.750", "6.000", "4.800"]),
        ("2", ["4.500", "4.250", "4.750", "6.000", "4.800"]),
    ]
    assert page.index(f"2: {new['commit'][:8]}") < page.index(f"1: {old['commit'][:8]}")
    row = re.search(r'<tr class="strong">.*?n16 vs sorted.*?</tr>', page, re.DOTALL)[0]
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == [
        *("4.500", "4.250", "4.750", "6.000", "0.750", "at least 4.80", "5.500")
    ]
    assert page.count("<td>13,315</td>") == 3  # of two commits, and the least there can be


def test_the_page_says_what_is_missing_and_which_commits_are_elsewhere(two_commits):
    about = checked_out(two_commits)
    elsewhere = {**about, "commit": "e" * 40}
    releases = [release(about, 0.0, missing="ran out of its 260 s"), release(elsewhere, 5.5)]
    page = page_of(releases, [about["commit"]])
    assert "trees is missing: ran out of its 260 s" in page
    assert f"Missing at {about['commit'][:8]}: ran out of its 260 s" in page
    assert "0.000" not in page
    assert "is checked out: eeeeeeee." in page
    assert "5.500" not in page


def test_files_that_differ_from_the_commit_are_not_measured(two_commits):
    (two_commits / "file").write_text("changed")
    with pytest.raises(RuntimeError, match=r"commit first, or stash.*\n.*file"):
        checked_out(two_commits)

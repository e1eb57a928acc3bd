"""A look at data files: what is shown is what a run would read."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from panoply.data.overview import look
from panoply.data.read import Input
from panoply.report.results.overview import sections
from panoply.report.terminal import print_sections

ROOT = Path(__file__).parents[1]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def some_pairs(num: int = 40) -> list[dict[str, Any]]:
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad", "seed": i} for i in range(num)]
    rows[3]["rejected"] = rows[5]["rejected"] = ""
    rows[9] |= rows[8] | {"chosen": "bad", "rejected": "good"}
    return rows


def shown(overview: Any) -> str:
    page = io.StringIO()
    print_sections(sections(overview), Console(file=page, width=200))
    return page.getvalue()


def test_a_look_counts_parts_names_what_is_ignored_and_quotes_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", some_pairs())
    overview = look([Input(file)], None, tmp_path / "out", num_shown=4, seed=0)
    assert overview.kind == "pairs"
    assert sum(overview.num_rows.values()) == 38
    assert len(set().union(*overview.prompts.values())) == 37
    assert overview.files[0].ignored == ("seed",)
    assert overview.quarantined == {"empty response": [f"{file}:4", f"{file}:6"]}
    assert [row.responses["chosen"] for row in overview.rows] == ["good"] * 4
    text = shown(overview)
    assert "1 contradict an earlier pair" in text
    assert f"{file}:4, {file}:6" in text
    assert "  user: q0\n  chosen: good\n  rejected: bad" in text
    assert "columns not read: seed" in text


def test_the_kind_is_what_the_columns_allow_and_ratings_come_with_scales(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": "r", "tone": i % 5, "n_tokens": i} for i in range(30)]
    ratings = Input(write(tmp_path / "ratings.jsonl", rows))
    prompts = Input(write(tmp_path / "prompts.jsonl", [{"problem": "1+1?", "answer": 2}, {}]))
    overview = look([ratings], None, tmp_path / "out", num_shown=1, seed=0)
    assert overview.kind == "ratings"
    assert overview.rows[0].labels == {"ratings-tone": 0.0}
    assert "on 0 to 4, as observed" in shown(overview)
    overview = look([prompts], None, tmp_path / "out", num_shown=1, seed=0)
    assert (overview.kind, overview.rows[0].labels) == ("prompts", {"label": 2})
    assert list(overview.quarantined.values()) == [[f"{prompts.data}:2"]]
    with pytest.raises(ValueError, match=r"prompts\.jsonl: unknown layout for ratings"):
        look([prompts], "ratings", tmp_path / "out", num_shown=1, seed=0)


def test_ties_are_counted_and_files_of_unlike_kinds_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "response_a": "a", "response_b": "b", "winner": winner}
        for i, winner in enumerate(["model_a", "model_b", "tie"] * 5)
    ]
    arena = Input(write(tmp_path / "arena.jsonl", rows))
    overview = look([arena], None, tmp_path / "out", num_shown=0, seed=0)
    assert sum(overview.num_rows.values()) == 10
    assert "5 ties between responses are left out" in shown(overview)
    other = Input(write(tmp_path / "other.jsonl", [{"text": "x"}]))
    with pytest.raises(ValueError, match=r"other\.jsonl: unknown layout for pairs"):
        look([arena, other], None, tmp_path / "out", num_shown=0, seed=0)


def test_the_command_shows_a_file_and_loads_nothing_heavy(tmp_path: Path) -> None:
    rows = [{"q": f"q{i}", "chosen": "good [b]", "rejected": "bad"} for i in range(20)]
    write(tmp_path / "mine.jsonl", rows)
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['x', {str(tmp_path / 'mine.jsonl')!r}, '--columns', 'prompt=q']\n"
        "runpy.run_module('jobs.inspect', run_name='__main__')\n"
        "heavy = {'torch', 'transformers', 'ray', 'datasets', 'scipy', 'sklearn'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "heavy: []" in done.stdout, done.stdout + done.stderr
    assert "good [b]" in done.stdout
    wrong = [sys.executable, "-m", "jobs.inspect", str(tmp_path / "none.jsonl")]
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "none.jsonl' does not exist" in " ".join(done.stdout.split())

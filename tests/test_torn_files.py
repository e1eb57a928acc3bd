"""Each file that a finished run left is cut off in turn: the same command goes on, or names it."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from panoply.config.preference import Mixed
from panoply.report.progress import RunLogger
from tests.builders.preference_runs import small_config, write_pairs
from workflows.preference import run_preference

pytestmark = pytest.mark.slow

READ_AGAIN = [
    "config.json",
    "data.json",
    "data/tokens.parquet",
    "train/score/done.json",
    "train/score/margins.npy",
    "train/score/trained.pt",
    "train/score/untrained.npz",
    "model/model.safetensors",
]
"""Files that a run which is started again reads, with one of the sealed folder (`test_seal.py` has
the others); it writes all the rest anew, or passes it over."""


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_model_folder):
    """The configuration of a run that is over, in this process."""
    folder = tmp_path_factory.mktemp("torn")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        config = small_config(
            tiny_model_folder,
            write_pairs(folder, (60, 60)),
            schedule={"num_epochs": 1, "lr": 1e-4},
            weighting=Mixed(),
            out=str(folder / "run"),
            store=str(folder / "store"),
        )
        run_preference(config, RunLogger())
        yield config


def files_of(config):
    folder = Path(config.out)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.startswith(".lease/"))


@contextmanager
def cut_in_half(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    try:
        yield
    finally:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.mark.parametrize("name", READ_AGAIN)
def test_a_damaged_file_that_is_read_again_is_named_with_what_to_do(name, config):
    file = Path(config.out) / name
    with cut_in_half(file), pytest.raises(ValueError, match=r"damaged|torn|bytes, not") as told:
        run_preference(config, RunLogger())
    assert repr(str(file)) in str(told.value)
    assert "\n" not in str(told.value)
    assert any(word in str(told.value) for word in ("delete", "remove", "another `--out`"))


def test_all_other_files_are_written_anew_or_passed_over(config):
    folder = Path(config.out)
    sealed = json.loads((folder / "model" / "seal.json").read_text())["files"]
    read = {*READ_AGAIN, *(f"model/{name}" for name in (*sealed, "seal.json")), "mlflow_run"}
    others = sorted(set(files_of(config)) - read)
    assert {"metrics.json", "report.html", "data/pairs.parquet"} <= set(others)
    whole = {name: (folder / name).read_bytes() for name in others}
    for name in others:
        (folder / name).write_bytes(whole[name][: len(whole[name]) // 2])
    run_preference(config, RunLogger())
    for name in ("history.json", "data/pairs.parquet"):
        assert (folder / name).read_bytes() == whole[name], name
    again = json.loads((folder / "metrics.json").read_bytes())
    assert again["pairs"] == json.loads(whole["metrics.json"])["pairs"]
    assert (folder / "report.html").stat().st_size > len(whole["report.html"]) // 2


def test_deleting_what_the_message_names_lets_the_same_command_go_on(config):
    score = Path(config.out) / "train" / "score"
    with cut_in_half(score / "margins.npy"):
        with pytest.raises(ValueError, match=r"delete the done\.json beside it"):
            run_preference(config, RunLogger())
        (score / "done.json").unlink()
        assert run_preference(config, RunLogger())["pairs"]

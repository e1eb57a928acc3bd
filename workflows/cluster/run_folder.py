"""The folder of a run: who may take it, and whether what it holds is finished.

A folder is claimed after its inputs were read, so a wrong path leaves nothing behind. While it
holds no results, a run with other settings may take it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panoply.config.resume import changes, local_inputs, result_changes, settings
from panoply.files import write_whole

CONFIG, DATA_IDS, METRICS = "config.json", "data.json", "metrics.json"
BEFORE_RESULTS = {CONFIG, DATA_IDS, "data", "gold_pairs", "tracking.json", "mlflow_run"}
"""Names of what a run leaves before it has computed anything; hidden files are beside them."""
RENDERED = "data/tokens.parquet"
"""File that depends on the settings as well as on the data, though it is no result."""


def run_folder(out: str) -> Path:
    """Returns the absolute run folder.

    Raises:
        ValueError: a relative path under a Ray job, whose working folder is temporary.
    """
    path = Path(out).expanduser()
    if not path.is_absolute() and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise ValueError(
            f"`out` is {out!r}, a relative path, but a Ray job runs in a temporary folder: "
            "give an absolute path on storage that all nodes share"
        )
    return path.absolute()


def check_folder(out: Path, config: Any) -> None:
    """Checks that a run with these settings may go on, or begin, in a folder.

    Raises:
        ValueError: the folder holds results of other settings, which are named; or its record of
            them is torn.
    """
    old = read_record(out / CONFIG)
    kind = read_record(out / DATA_IDS).get("settings", type(config).__name__)
    if kind != type(config).__name__ and has_results(out):
        raise ValueError(
            f"{str(out)!r} holds the run of another command ({kind}): take another `--out`, or "
            "remove that folder"
        )
    if old and (changed := changes(config, old)) and has_results(out):
        raise ValueError(
            f"{str(out)!r} holds a run with other settings ({'; '.join(changed)}): take another "
            "`--out`, or remove that folder"
        )


def claim(out: Path, config: Any, data_ids: Mapping[str, Any]) -> None:
    """Takes a folder for a run with these settings and data, or goes on with the run there.

    Args:
        out: folder of the run.
        config: its settings.
        data_ids: what identifies its data, by the name of each part.

    Raises:
        ValueError: the folder holds results of other settings or other data.
    """
    check_folder(out, config)
    data_ids = {"settings": type(config).__name__, **data_ids}
    old, old_ids = read_record(out / CONFIG), read_record(out / DATA_IDS)
    if not has_results(out):
        (out / DATA_IDS).unlink(missing_ok=True)
        if changes(config, old) or old_ids != data_ids:
            (out / RENDERED).unlink(missing_ok=True)
    check_or_write(out / DATA_IDS, data_ids)
    _write_settings(out / CONFIG, config, old)


def check_or_write(file: Path, values: Mapping[str, Any]) -> None:
    """Writes a record that may only be written once; where it exists, compares.

    Raises:
        ValueError: what the file holds differs.
    """
    new: dict[str, Any] = json.loads(json.dumps(values))
    old = read_record(file)
    if changed := sorted(name for name in new.keys() & old.keys() if new[name] != old[name]):
        raise ValueError(
            f"{str(file.parent)!r} holds a run with other {', '.join(changed)} (see {file.name}): "
            "take another `--out`, or remove that folder"
        )
    if new.keys() - old.keys():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(new, indent=1))


def check_or_write_settings(file: Path, config: Any) -> None:
    """Writes settings of a part of a run; where they exist, compares those that results depend on.

    Raises:
        ValueError: one differs, named with both values.
    """
    old = read_record(file)
    if old and (changed := changes(config, old)):
        raise ValueError(
            f"{str(file.parent)!r} was begun with other settings ({'; '.join(changed)}): take "
            "another `--out`, or remove that folder"
        )
    _write_settings(file, config, old)


def _write_settings(file: Path, config: Any, old: Mapping[str, Any]) -> None:
    if (values := settings(config)) != old:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(values, indent=1))


def has_results(out: Path) -> bool:
    """Returns whether a folder holds more than the inputs of a run."""
    names = (file.relative_to(out).parts[0] for file in out.rglob("*") if file.is_file())
    return any(name not in BEFORE_RESULTS and not name.startswith(".") for name in names)


def finished_metrics(config: Any) -> dict[str, Any] | None:
    """Returns the metrics of a run that is finished; None where anything may be left to do.

    It is where a setting that results depend on differs, or an input changed after the results.
    """
    out = run_folder(config.out)
    metrics, old = out / METRICS, read_record(out / CONFIG)
    if not old or not metrics.is_file() or result_changes(config, old):
        return None
    written = metrics.stat().st_mtime
    if any(_changed_at(path) >= written for _, path in local_inputs(config)):
        return None
    return read_record(metrics)


def _changed_at(path: Path) -> float:
    """Returns when a file, or the newest in a folder, was written, moved or copied there."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(file.stat().st_ctime for file in files)


def read_record(file: Path) -> dict[str, Any]:
    """Returns the values of a file; none where it is missing.

    Raises:
        ValueError: the file is no JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"{str(file)!r} is torn or no JSON object: remove that file, and the same command "
            "writes it again"
        )
    return values  # pyright: ignore[reportUnknownVariableType]

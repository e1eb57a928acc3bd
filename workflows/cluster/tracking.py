"""Trackers of a run: MLflow, and others that `--report-to` names.

They are opened before anything is trained, so that a broken one costs nothing, get the steps while
a run trains, and its results at the end, from its folder. So MLflow can get them later too
(`jobs.track`), and a finished run stays finished where a tracker fails. Only the driver talks to
trackers.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_never

from panoply.config.tracked import TrackedRun, TrackerName
from panoply.files import write_json
from panoply.report.headline import flat
from panoply.report.progress import RunLogger
from panoply.report.report import RECORD_FILE
from panoply.secret import without_secrets
from workflows.cluster.mlflow_calls import TrackerError
from workflows.cluster.mlflow_run import MlflowRun
from workflows.cluster.other_trackers import TensorBoard, Trackio, WandB
from workflows.cluster.tracked_results import ENTRY_FILE, Entry, Results, Steps

Tracker = MlflowRun | TensorBoard | Trackio | WandB
TERMINATED = 128 + signal.SIGTERM
"""Exit code that a shell gives a command that SIGTERM ended."""


def git_commit() -> str:
    """Returns the commit of the working folder, or 'unknown' outside a checkout.

    A folder that is submitted to a cluster has no `.git`: there `PANOPLY_COMMIT` holds the commit.
    """
    if commit := os.environ.get("PANOPLY_COMMIT"):
        return commit
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@dataclass(frozen=True, slots=True)
class Trackers:
    """The trackers of a run, before it begins."""

    trackers: Sequence[Tracker]
    experiment: str
    out: Path
    opened: float
    """Time in seconds since 1970."""

    @contextmanager
    def run(
        self,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        logger: RunLogger,
        *,
        data: Mapping[str, Mapping[str, Any]] | None = None,
        model: str = "",
        steps: str = "",
    ) -> Generator[None]:
        """Begins a run in each tracker, or continues that of an earlier try, and ends it.

        While it trains, trackers get what `logger.log_steps` is called with. An error of a tracker
        after the beginning is logged, with the command that tracks later, and not raised.

        Args:
            config: values logged as parameters.
            tags: tags of the run, beside the commit.
            logger: receives the place of each tracker's run, or why there is none.
            data: by kind of data, its summary with `id`, and its `files`.
            model: name under which `OUT/model` is registered; empty for none.
            steps: the model of `history.json` that the run is about; empty for none.

        Raises:
            TrackerError: a tracker cannot be used, before anything was trained.
        """
        params = {name: str(value) for name, value in flat(config, ".")}
        tags = {"git_commit": git_commit(), **tags}
        entry = Entry(self.experiment, params, tags, model, steps, dict(data or {}))
        write_json(self.out / ENTRY_FILE, asdict(entry))
        begun: list[Tracker] = []
        try:
            for tracker in self.trackers:
                tracker.begin(entry)
                begun.append(tracker)
            write_json(self.out / RECORD_FILE, self._record(begun))
            with _exits_on_sigterm(), logger.sending_steps_to(_sink(begun, steps, logger)):
                yield
        except BaseException as error:
            for tracker in begun:
                with suppress(TrackerError):
                    tracker.stop("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        for tracker in begun:
            try:
                tracker.finish(entry, Results.read(self.out))
            except TrackerError as error:
                later = tracker.track_later()
                logger.info(f"not tracked: {error}; the results are complete. {later}".rstrip())
            else:
                logger.info(f"tracked: {tracker.place}")

    def _record(self, begun: Sequence[Tracker]) -> dict[str, Any]:
        """Returns what the report says of how the results came about."""
        versions = {name: version(name) for name in ("ray", "torch", "transformers")}
        return {
            "begun": self.opened,
            "command": without_secrets(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
            "versions": versions,
            "trackers": [tracker.place for tracker in begun],
        }


def open_trackers(config: TrackedRun, out: Path) -> Trackers:
    """Returns the trackers of a run folder, once each of them can be used.

    Raises:
        TrackerError: a package is missing, MLflow does not answer, or its experiment was deleted.
    """
    trackers = [_open(name, config.experiment, out) for name in config.trackers]
    return Trackers(trackers, config.experiment, out, time.time())


def _open(name: TrackerName, experiment: str, out: Path) -> Tracker:
    match name:
        case "mlflow":
            return MlflowRun.open(experiment, out)
        case "tensorboard":
            return TensorBoard(out)
        case "trackio":
            return Trackio(out)
        case "wandb":
            return WandB(out)
        case _:
            assert_never(name)


def track(out: Path, experiment: str = "") -> str:
    """Tracks a finished run in MLflow from the files in its folder; returns the MLflow run.

    Args:
        out: the run folder.
        experiment: experiment to track in; empty for that of the run.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        TrackerError: MLflow cannot be used.
    """
    for name in (ENTRY_FILE, "config.json", "metrics.json"):
        if not (out / name).is_file():
            raise FileNotFoundError(
                f"{str(out)!r} has no {name}: name the `--out` of a finished run, or finish that "
                "run by its own command"
            )
    entry = Entry(**json.loads((out / ENTRY_FILE).read_text()))
    entry = replace(entry, experiment=experiment or entry.experiment)
    run = MlflowRun.open(entry.experiment, out)
    run.begin(entry)
    run.finish(entry, Results.read(out))
    return run.place


def _sink(trackers: Sequence[Tracker], main: str, logger: RunLogger) -> Steps:
    """Returns a function that sends steps to the trackers, each until it fails once."""
    working = list(trackers)

    def send(model: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for tracker in list(working):
            try:
                tracker.log_steps("train" if model == main else f"train-{model}", rows)
            except TrackerError as error:
                working.remove(tracker)
                logger.info(f"steps are tracked at the end of the run only: {error}")

    return send


@contextmanager
def _exits_on_sigterm() -> Generator[None]:
    """Turns SIGTERM into an exit, so that trackers learn of the end; leaves other handlers."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""Trackers beside MLflow, with the same settings as in Hugging Face trainers.

Weights & Biases and Trackio take their server, key and mode from their own variables
(`WANDB_MODE`, `TRACKIO_SPACE_ID`, ...). Each is looked for before anything is trained.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflows.cluster.mlflow_calls import TrackerError
from workflows.cluster.tracked_results import Entry, Results, Rows, step_numbers


class TensorBoard:
    """Event files in `OUT/tensorboard`."""

    def __init__(self, out: Path) -> None:
        self.folder, self.place = out / "tensorboard", f"tensorboard --logdir {out}"
        module = _module("torch.utils.tensorboard", "tensorboard")
        self.writer_class: Any = module.SummaryWriter
        self.writer: Any = None

    def begin(self, entry: Entry) -> None:
        """Opens a file, and writes the parameters as text."""
        with _tracker_call("tensorboard"):
            self.writer = self.writer_class(str(self.folder))
            lines = [f"    {name}: {value}" for name, value in entry.params.items()]
            self.writer.add_text("config", "\n".join(lines))

    def log_steps(self, group: str, rows: Rows) -> None:
        """Writes the numbers of steps."""
        with _tracker_call("tensorboard"):
            for row in rows:
                for name, value in step_numbers(group, row).items():
                    self.writer.add_scalar(name, value, row["step"])
            self.writer.flush()

    def finish(self, entry: Entry, results: Results) -> None:
        """Writes the headline metrics."""
        with _tracker_call("tensorboard"):
            for name, value in results.headline.items():
                self.writer.add_scalar(name, value)
            self.writer.close()

    def stop(self, status: str) -> None:
        """Closes the file of a run that came to no results."""
        self.writer.close()

    def track_later(self) -> str:
        """Returns nothing: no command tracks later."""
        return ""


class WandB:
    """A run of Weights & Biases, which the same command continues."""

    def __init__(self, out: Path) -> None:
        self.out, self.place = out, ""
        self.wandb: Any = _module("wandb", "wandb")
        self.run: Any = None

    def begin(self, entry: Entry) -> None:
        """Begins a run, or continues the one whose id `OUT/wandb_run` keeps."""
        file = self.out / "wandb_run"
        with _tracker_call("wandb"):
            self.run = self.wandb.init(
                project=entry.experiment,
                name=self.out.name,
                dir=str(self.out),
                id=file.read_text() if file.is_file() else None,
                resume="allow",
                config=dict(entry.params) | dict(entry.tags),
                settings=self.wandb.Settings(silent=True),
            )
            file.write_text(self.run.id)
            self.place = f"wandb run {self.run.url or self.run.dir}"

    def log_steps(self, group: str, rows: Rows) -> None:
        """Logs the numbers of steps, over the step of their own model."""
        with _tracker_call("wandb"):
            self.run.define_metric(f"{group}/*", step_metric=f"{group}/step")
            for row in rows:
                self.run.log(step_numbers(group, row) | {f"{group}/step": row["step"]})

    def finish(self, entry: Entry, results: Results) -> None:
        """Logs the headline metrics as the summary."""
        with _tracker_call("wandb"):
            self.run.summary.update(results.headline)
            self.run.finish()

    def stop(self, status: str) -> None:
        """Ends a run that came to no results."""
        with _tracker_call("wandb"):
            self.run.finish(exit_code=1)

    def track_later(self) -> str:
        """Returns how a run that was kept on this machine is sent."""
        return f"`wandb sync` sends what lies in {self.out / 'wandb'}"


class Trackio:
    """A run of Trackio, which the same command continues."""

    def __init__(self, out: Path) -> None:
        self.out, self.place = out, "trackio show"
        self.trackio: Any = _module("trackio", "trackio")

    def begin(self, entry: Entry) -> None:
        """Begins a run, or continues the one of that name."""
        with _tracker_call("trackio"):
            self.trackio.init(
                project=entry.experiment,
                name=self.out.name,
                config=dict(entry.params) | dict(entry.tags),
                resume="allow",
                embed=False,
            )

    def log_steps(self, group: str, rows: Rows) -> None:
        """Logs the numbers of steps."""
        with _tracker_call("trackio"):
            for row in rows:
                self.trackio.log(step_numbers(group, row), step=row["step"])

    def finish(self, entry: Entry, results: Results) -> None:
        """Logs the headline metrics."""
        with _tracker_call("trackio"):
            self.trackio.log(results.headline)
            self.trackio.finish()

    def stop(self, status: str) -> None:
        """Ends a run that came to no results."""
        with _tracker_call("trackio"):
            self.trackio.finish()

    def track_later(self) -> str:
        """Returns nothing: no command tracks later."""
        return ""


def _module(name: str, package: str) -> Any:
    """Returns a module of a tracker.

    Raises:
        TrackerError: its package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrackerError(
            f"`--report-to {package}` needs a package that is not installed ({error}): "
            f"pip install {package}"
        ) from error


@contextmanager
def _tracker_call(name: str) -> Generator[None]:
    """Turns the errors of a tracker into one sentence."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrackerError(f"{name} failed ({reason})") from error

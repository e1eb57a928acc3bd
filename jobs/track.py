"""Track a finished run in MLflow: `python -m jobs.track OUT`."""

from __future__ import annotations

from typing import Annotated

import tyro

from jobs._main import run_function


def main(out: Annotated[str, tyro.conf.Positional], /, experiment: str = "") -> None:
    """Sends the results of a finished run to MLflow, where the run itself could not.

    It trains nothing and needs no cluster. What MLflow has of the run already is not sent twice.

    Args:
        out: folder of the run, as its `--out` named it.
        experiment: MLflow experiment to track it in; empty for that of the run.
    """
    # MLflow loads only now, after the arguments are known to be right.
    from pathlib import Path

    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from workflows.cluster.tracking import track

    console = Terminal()
    with exit_if_unusable(console):
        place = track(Path(out).expanduser().absolute(), experiment)
    RunLogger(console).info(f"tracked: {place}")


if __name__ == "__main__":
    run_function("track", main)

"""Average scalar reward models: `python -m jobs.average MODEL... --out DIR`."""

from __future__ import annotations

from typing import Annotated

import tyro

from jobs._main import run_function


def main(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")],
    /,
    out: str,
) -> None:
    """Averages the parameters of scalar reward models, for example of one per source.

    All must have the same architecture, chat template and token limits. The mean has temperature 1
    until one is fitted: its scores rank, and its probabilities say nothing yet.

    Args:
        models: folders of scalar reward models.
        out: new folder of the averaged model.
    """
    # Torch loads only now, after the arguments are known to be right.
    from pathlib import Path

    from panoply.hub.artefact.average import average_models
    from panoply.hub.backbone.pretrained import silence_libraries
    from panoply.report.progress import Terminal, exit_if_unusable
    from workflows.cluster.run_folder import run_folder

    console = Terminal()
    silence_libraries()
    with exit_if_unusable(console):
        folder = run_folder(out)
        drift = average_models([Path(name).expanduser() for name in models], folder)
    console.print(
        f"averaged {len(models)} models: {folder} (scores by transformers alone drift at most "
        f"{drift:.1e} of their deviation)",
        markup=False,
    )


if __name__ == "__main__":
    run_function("average", main)

"""Serve reward models: `python -m jobs.serve RECIPE --models NAME=WHERE ...`."""

from __future__ import annotations

import tyro

from jobs.recipes import SERVE


def main() -> None:
    """Parses a recipe and its flags, then serves until it is stopped."""
    config = tyro.extras.overridable_config_cli(SERVE, prog="python -m jobs.serve")
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from workflows.serve import run_serve

    console = Terminal()
    with exit_if_unusable(console):
        run_serve(config, RunLogger(console))


if __name__ == "__main__":
    main()

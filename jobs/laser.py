"""Train a policy by the reward models that a bandit chooses: `python -m jobs.laser RECIPE ...`."""

from __future__ import annotations

import tyro

from jobs.recipes import LASER


def main() -> None:
    """Parses a recipe and its flags, then runs it."""
    config = tyro.extras.overridable_config_cli(LASER, prog="python -m jobs.laser")
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from panoply.report.report import print_summary
    from workflows.cluster.ray_cluster import run_folder
    from workflows.laser import run_laser

    console = Terminal()
    with exit_if_unusable(console):
        metrics = run_laser(config, RunLogger(console))
    print_summary(metrics, console)
    out = run_folder(config.out)
    console.print(f"results: {out}, and as a page in {out}/report.html")


if __name__ == "__main__":
    main()

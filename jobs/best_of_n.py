"""Best of n without training: `python -m jobs.best_of_n RECIPE ...`."""

from __future__ import annotations

import tyro

from jobs.recipes import BEST_OF_N


def main() -> None:
    """Parses a recipe and its flags, then runs it."""
    config = tyro.extras.overridable_config_cli(BEST_OF_N, prog="python -m jobs.best_of_n")
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from panoply.report.report import print_summary
    from workflows.best_of_n import run_best_of_n
    from workflows.cluster.ray_cluster import run_folder

    console = Terminal()
    with exit_if_unusable(console):
        metrics = run_best_of_n(config, RunLogger(console))
    print_summary(metrics, console)
    out = run_folder(config.out)
    console.print(f"results: {out}, and as a page in {out}/report.html")


if __name__ == "__main__":
    main()

"""Train a gated multi-objective reward model: `python -m jobs.armorm RECIPE --out DIR`."""

from __future__ import annotations

import tyro

from jobs.recipes import ARMORM


def main() -> None:
    """Parses a recipe and its flags, then runs it."""
    config = tyro.extras.overridable_config_cli(ARMORM, prog="python -m jobs.armorm")
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from panoply.report.report import print_summary
    from workflows.armorm import run_armorm
    from workflows.cluster.ray_cluster import run_folder

    console = Terminal()
    with exit_if_unusable(console):
        metrics = run_armorm(config, RunLogger(console))
    print_summary(metrics, console)
    out = run_folder(config.out)
    console.print(f"results: {out}, and as a page in {out}/report.html")
    console.print(f"next: python -m jobs.evaluate {out}/model --pairs FILE... --out {out}-eval")


if __name__ == "__main__":
    main()

"""Train a scalar reward model from pairs: `python -m jobs.preference RECIPE --out DIR`."""

from __future__ import annotations

import tyro

from jobs.recipes import PREFERENCE


def main() -> None:
    """Parses a recipe and its flags, then runs it."""
    config = tyro.extras.overridable_config_cli(PREFERENCE, prog="python -m jobs.preference")
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from panoply.report.report import print_summary
    from workflows.cluster.ray_cluster import run_folder
    from workflows.preference import run_preference

    console = Terminal()
    with exit_if_unusable(console):
        metrics = run_preference(config, RunLogger(console))
    print_summary(metrics, console)
    out = run_folder(config.out)
    console.print(f"results: {out}")
    if config.loss.reward:
        console.print(f"next: python -m jobs.evaluate {out}/model --pairs FILE... --out {out}-eval")


if __name__ == "__main__":
    main()

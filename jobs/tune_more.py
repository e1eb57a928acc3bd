"""Search MORE's weighting on your pairs: `python -m jobs.tune_more RECIPE --out DIR`."""

from __future__ import annotations

import shlex

import tyro

from jobs.recipes import PREFERENCE, TUNE_MORE


def main() -> None:
    """Parses a recipe and its flags, then runs it."""
    config = tyro.extras.overridable_config_cli(TUNE_MORE, prog="python -m jobs.tune_more")
    # Ray and torch load only now, after the arguments are known to be right.
    from panoply.report.progress import RunLogger, Terminal, exit_if_unusable
    from panoply.report.terminal import as_rich
    from panoply.report.trials import search_table, trials_table
    from workflows.cluster.ray_cluster import run_folder
    from workflows.tune_more import run_tune_more

    console = Terminal()
    recipe = "more" if config.preference.planted is None else "embedded"
    with exit_if_unusable(console):
        found = run_tune_more(config, PREFERENCE[recipe][1], RunLogger(console))
    console.print(as_rich(trials_table(found.trials)))
    console.print()
    console.print(as_rich(search_table(found.metrics)))
    out = run_folder(config.out)
    console.print(f"results: {out}")
    command = ["python", "-m", "jobs.preference", recipe, *found.flags, "--out", f"{out}-best"]
    console.print(f"next: {shlex.join(command)}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()

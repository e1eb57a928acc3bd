"""Search MORE's weighting on your pairs: `python -m jobs.tune_more RECIPE --out DIR`."""

from __future__ import annotations

import shlex

from jobs._main import parse_recipe, run_workflow
from jobs.recipes import PREFERENCE, TUNE_MORE
from panoply.report.progress import Terminal


def main() -> None:
    """Parses a recipe and its flags, runs the search, and prints the best point's command."""
    config = parse_recipe("tune_more", TUNE_MORE)
    from panoply.report.terminal import as_rich
    from panoply.report.trials import search_table, trials_table
    from workflows.cluster.run_folder import run_folder
    from workflows.tune_more import run_tune_more

    recipe = "more" if config.planted is None else "embedded"
    search = run_workflow(
        lambda config, logger: run_tune_more(config, PREFERENCE[recipe][1], logger), config
    )
    console, out = Terminal(), run_folder(config.out)
    console.print(as_rich(trials_table(search.trials)))
    console.print()
    console.print(as_rich(search_table(search.metrics)))
    console.print(f"results: {out}")
    words = [recipe, *search.next_words, "--out", f"{out}-best"]
    command = ["python", "-m", "jobs.preference", *words]
    console.print(f"next: {shlex.join(command)}", soft_wrap=True)


if __name__ == "__main__":
    main()

"""Search MORE's weighting on your pairs: `python -m jobs.tune_more RECIPE --out DIR`."""

from __future__ import annotations

import json
import shlex
from typing import Any

from jobs._main import metrics_of, parse_recipe
from jobs.recipes import PREFERENCE, TUNE_MORE
from panoply.config.tune import TuneConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses a recipe and its flags, runs the search, and prints the best point's command."""
    config = parse_recipe("tune_more", TUNE_MORE)
    metrics = metrics_of(run, config)
    from panoply.report.terminal import as_rich
    from panoply.report.trials import Trial, search_table, trials_table
    from workflows.cluster.run_folder import run_folder

    console, out = Terminal(), run_folder(config.out)
    trials = json.loads((out / "trials.json").read_text())["trials"]
    console.print(as_rich(trials_table([Trial(**trial) for trial in trials])))
    console.print()
    console.print(as_rich(search_table(metrics)))
    console.print(f"results: {out}", soft_wrap=True)
    words = json.loads((out / "best.json").read_text())["flags"]
    command = ["python", "-m", "jobs.preference", recipe_of(config), *words, "--out", f"{out}-best"]
    console.print(f"next: {shlex.join(command)}", soft_wrap=True)


def run(config: TuneConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the search. Ray and torch load only now, after the inputs were looked at."""
    from workflows.tune_more import run_tune_more

    return run_tune_more(config, PREFERENCE[recipe_of(config)][1], logger).metrics


def recipe_of(config: TuneConfig) -> str:
    """Returns the recipe of `jobs.preference` that the best run starts from."""
    return "more" if config.planted is None else "embedded"


if __name__ == "__main__":
    main()

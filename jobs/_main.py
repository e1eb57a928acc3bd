"""Shared by the commands that run a recipe: parse its flags, run its workflow, print the results.

Ray and torch take seconds to load, so a command imports its workflow only after its flags are
parsed: `--help` and a wrong flag are answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from panoply.report.progress import RunLogger, Terminal, exit_if_unusable

Config = TypeVar("Config")
Result = TypeVar("Result")


def parse_recipe(
    job: str, recipes: Mapping[str, tuple[str, Config]], words: Sequence[str] | None = None
) -> Config:
    """Returns the recipe that the command line names, with its flags applied.

    A recipe fixes the alternatives, and flags set their numbers. Another alternative is a word, as
    in `backbone.trained:full`, and flags may stand before and behind it.

    Args:
        job: module of the command, for its usage line.
        recipes: description and default values by name.
        words: the command line; None: that of the process.
    """
    defaults = {name: values for name, (_, values) in recipes.items()}
    descriptions = {name: text for name, (text, _) in recipes.items()}
    return tyro.cli(
        tyro.extras.subcommand_type_from_defaults(defaults, descriptions),
        prog=f"python -m jobs.{job}",
        args=words,
        config=(tyro.conf.CascadeSubcommandArgs,),
    )


def run_workflow(run: Callable[[Config, RunLogger], Result], config: Config) -> Result:
    """Runs a workflow that reports on the terminal.

    An error that the user can mend is printed as one sentence, with exit code 2.
    """
    console = Terminal()
    with exit_if_unusable(console):
        return run(config, RunLogger(console))


def print_results(metrics: Mapping[str, Any], out: str) -> None:
    """Prints the tables of a run, the place of its results, and how to evaluate its model."""
    from panoply.report.report import DEMO, print_summary
    from workflows.cluster.ray_cluster import run_folder

    console, folder = Terminal(), run_folder(out)
    print_summary(metrics, console)
    # A command that is copied has to be one line.
    console.print(f"results: {folder}, and as a page in {folder}/report.html", soft_wrap=True)
    config = json.loads((folder / "config.json").read_text())
    if (folder / "model").is_dir():
        command = f"python -m jobs.evaluate {folder}/model --pairs FILE... --out {folder}-eval"
        if config.get("planted"):
            console.print(DEMO)
            command = "make serve, then open the page that it names"
        console.print(f"next: {command}", soft_wrap=True)

"""Shared by the commands: parse flags and files of settings, run a workflow, print the results.

Ray and torch take seconds to load, so a command looks at its flags, files and folders before it
imports its workflow: what is wrong is told at once.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro
import yaml

from panoply.config.flags import check_flags
from panoply.config.from_file import with_values
from panoply.extras import DISTRIBUTION
from panoply.report.progress import RunLogger, Terminal, exit_if_unread, exit_if_unusable

Config = TypeVar("Config")
Result = TypeVar("Result")


@exit_if_unread()
def parse_recipe(
    job: str, recipes: Mapping[str, tuple[str, Config]], words: Sequence[str] | None = None
) -> Config:
    """Returns the recipe that the command line names, with a file's settings and flags applied.

    A recipe fixes the alternatives, and flags set their numbers. Another alternative is a word, as
    in `backbone.trained:full`. A file with all settings, as a run leaves, needs no recipe.

    Args:
        job: module of the command, for its usage line.
        recipes: description and default values by name.
        words: the command line; None: that of the process.
    """
    command = f"python -m jobs.{job}"
    words, file = _take_file(command, sys.argv[1:] if words is None else words)
    name = words[0] if words and not words[0].startswith("-") and ":" not in words[0] else ""
    if name and name not in recipes:
        near = difflib.get_close_matches(name, recipes, 1)
        meant = f"perhaps you meant {near[0]!r}; " if near else ""
        _refuse(f"{name!r} is no recipe: {meant}recipes are {', '.join(recipes)}")
    kind = type(recipes[name or next(iter(recipes))][1])
    if not name and file is None:
        _print_recipes(command, kind, recipes)
        sys.exit(2 if {"-h", "--help"}.isdisjoint(words) else 0)
    about = (kind.__doc__ or "").strip()
    text, base = recipes[name] if name else ("", None)
    with exit_if_unusable(Terminal()):
        default = base if file is None else with_values(kind, base, _read_settings(file))
        check_flags(words, kind)
    settings = tyro.cli(
        kind,
        default=default,
        prog=f"{command} {name}".strip(),
        description=f"{about}\n\nRecipe {name}: {text}" if name else about,
        args=words[1:] if name else words,
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    return cast(Config, settings)


@exit_if_unread()
def parse_settings(job: str, kind: type[Config]) -> Config:
    """Returns the settings of a command without recipes, of which those required stand alone."""
    command = f"python -m jobs.{job}"
    words, file = _take_file(command, sys.argv[1:])
    with exit_if_unusable(Terminal()):
        default = None if file is None else with_values(kind, None, _read_settings(file))
        check_flags(words, kind)
    # A file gives all that is required, and what stands alone would be taken twice.
    marks = (tyro.conf.PositionalRequiredArgs,) if file is None else ()
    return cast(Config, tyro.cli(kind, default=default, prog=command, args=words, config=marks))


def run_workflow(run: Callable[[Config, RunLogger], Result], config: Config) -> Result:
    """Runs a workflow that reports on the terminal, after a look at what the settings name.

    An error that the user can mend is printed as one sentence, with exit code 2.
    """
    from workflows.cluster.check_inputs import check_inputs

    console = Terminal()
    logger = RunLogger(console)
    with exit_if_unusable(console, logger), logger.heartbeat():
        check_inputs(config)
        result = run(config, logger)
        logger.tell_seconds()
        return result


def metrics_of(
    run: Callable[[Config, RunLogger], dict[str, Any]], config: Config
) -> dict[str, Any]:
    """Returns the metrics of a recipe, which is run where its folder does not hold them all.

    Args:
        run: imports the workflow and runs it.
        config: the recipe.
    """
    from workflows.cluster.run_folder import finished_metrics

    console = Terminal()
    with exit_if_unusable(console):
        metrics = finished_metrics(config)
    if metrics is None:
        return run_workflow(run, config)
    RunLogger(console).info("finished before: these are its results")
    return metrics


def run_function(job: str, function: Callable[..., None]) -> None:
    """Calls a function with arguments from the command line, and ends it as `run_workflow` does."""
    command = f"python -m jobs.{job}"
    answer_version(command, sys.argv[1:])
    with exit_if_unusable(Terminal()):
        tyro.cli(function, prog=command)


def answer_version(command: str, words: Sequence[str]) -> None:
    """Prints the version and ends the process where it is asked for."""
    if "--version" in words:
        print(f"{command}: {DISTRIBUTION} {version(DISTRIBUTION)}")
        sys.exit(0)


def print_results(metrics: Mapping[str, Any], out: str) -> None:
    """Prints the tables of a run, the place of its results, and how to evaluate its model."""
    from panoply.report.report import DEMO, print_summary
    from workflows.cluster.run_folder import run_folder

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


def _take_file(command: str, words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Returns the words without `--config FILE`, and the file; answers `--version` itself."""
    answer_version(command, words)
    left, file = list(words), None
    for place, word in enumerate(left):
        if word == "--config" or word.startswith("--config="):
            used = 1 if "=" in word else 2
            text = word.partition("=")[2] if "=" in word else "".join(left[place + 1 : place + 2])
            if not text:
                _refuse("`--config` needs a file of settings, YAML or JSON")
            file = Path(text).expanduser()
            del left[place : place + used]
            break
    return left, file


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{str(file)!r} is neither YAML nor JSON: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(file)!r} holds no settings: give NAME: VALUE in each line")
    return values


def _print_recipes(command: str, kind: type, recipes: Mapping[str, tuple[str, Any]]) -> None:
    print(f"usage: {command} RECIPE [--config FILE] [FLAGS]\n\n{(kind.__doc__ or '').strip()}\n")
    for name, (text, _) in recipes.items():
        print(f"  {name:<12} {text}")
    print(f"\n{command} RECIPE --help lists the flags of a recipe, with its values.")
    print("--config FILE takes settings from YAML or JSON, such as OUT/config.json of a run.")


def _refuse(text: str) -> None:
    with exit_if_unusable(Terminal()):
        raise ValueError(text)

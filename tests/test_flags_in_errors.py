"""Advice in errors: every flag that a message names is one of a command."""

import ast
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import tyro

from jobs import recipes

ROOT = Path(__file__).parents[1]
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
OTHER_PROGRAMS = {
    "--enable-lora",  # vLLM
    "--max-lora-rank",
    "--no-deps",  # pip
    "--artifact-uri",  # mlflow
    *("--file", "--prompt", "--responses"),  # panoply score
}


class Parsed(Exception):
    """Ends a command where it parses its flags."""


def option_strings(parser):
    names = set()
    for action in parser._actions:
        names |= set(action.option_strings)
        if isinstance(action.choices, dict):
            for nested in action.choices.values():
                names |= option_strings(nested)
    return names


def flags_of(job, words, monkeypatch):
    """The flags of a command, from the parser that it makes."""
    names = set()
    monkeypatch.setattr(sys, "argv", [job, *words])

    def cli(settings, *, prog, args=None, config=(), **_):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            names.update(option_strings(tyro.extras.get_parser(settings, config=config)))
        raise Parsed

    monkeypatch.setattr(tyro, "cli", cli)
    with pytest.raises(Parsed):
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    return names


def is_error(call):
    """Whether a call makes an error or a reason that a user reads."""
    name = ast.unparse(call.func).rpartition(".")[2]
    return name.endswith("Error") or name in ("BadRow", "require", "Finding")


def flags_in_errors():
    """The flags that errors name, with their places."""
    places = {}
    for folder in ("panoply", "actors", "workflows", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and is_error(node):
                    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                    flags = FLAG.findall(" ".join(text for text in texts if isinstance(text, str)))
                    for flag in flags:
                        places.setdefault(flag, f"{path.relative_to(ROOT)}:{node.lineno}")
    return places


def test_every_flag_in_an_error_exists(monkeypatch):
    jobs = [path.stem for path in (ROOT / "jobs").glob("[a-z]*.py") if path.stem != "recipes"]
    flags = set()
    for job in jobs:
        for name in getattr(recipes, job.upper(), {"": ()}):
            flags |= flags_of(job, [name] if name else [], monkeypatch)
    assert {"--columns", "--source", "--rating-scales", "--prompts.columns"} <= flags
    named = flags_in_errors()
    assert {"--pairs", "--columns", "--rating-columns"} <= named.keys()
    spelled = {flag.replace("_", "-") for flag in flags}
    wrong = {
        flag: at
        for flag, at in named.items()
        if flag.replace("_", "-") not in spelled and flag not in OTHER_PROGRAMS
    }
    assert not wrong, wrong

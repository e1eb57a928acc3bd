"""A first look at what a command names, before anything heavy is imported.

A wrong path or layout is told within a second. Reading the data finds the rest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from panoply.config.resume import named_inputs
from panoply.config.serve import NAME
from panoply.config.steps import split_off_rule
from panoply.data.layouts import pair_layout, rating_layout
from panoply.data.read import Input, open_input
from workflows.cluster.run_folder import check_folder, run_folder

MAX_BYTES = 16 * 2**20
"""Most bytes of a text file, whose columns are known only once all of it was read."""
LAYOUTS = {"pairs": pair_layout, "gold_pairs": pair_layout, "ratings": rating_layout}
"""Layouts by the field of the files; other data are only opened."""
MODELS = (
    "backbone.model",
    "backbone.adapter",
    "model",
    "models",
    "base",
    "arms",
    "arms.models",
    "scorers",
)
"""Fields that name models."""
ELSEWHERE = re.compile(r"[\w.-]+/[\w.-]+(:\S+)?|\w+(\+\w+)?:.*|.*[*?[].*")
"""Hub names, `KIND:PLACE`, addresses and patterns, which are looked up later."""


def check_inputs(config: Any) -> None:
    """Looks at the folder, the files and the models that a configuration names.

    Raises:
        ValueError, OSError: the folder holds another run, or an input is missing or unusable.
    """
    if getattr(config, "out", ""):
        check_folder(run_folder(config.out), config)
    for field, text in named_inputs(config):
        if field in MODELS:
            name, equals, where = text.partition("=")
            check_model(field, where if equals and NAME.fullmatch(name) else text)
        elif field.rpartition(".")[2] in (*LAYOUTS, "file"):
            check_data(field, text)


def check_model(field: str, where: str) -> None:
    """Looks whether a model that is named as a folder is there.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no model.
        ValueError: the rule of steps behind it is wrong.
    """
    where, _ = split_off_rule(where)
    path = Path(where).expanduser()
    if path.is_dir():
        if (path / "model" / "config.json").is_file():
            raise FileNotFoundError(f"`{field}` is {where!r}, a run: name its model, {where}/model")
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(f"`{field}` is {where!r}, a folder without config.json")
    elif path.exists():
        raise FileNotFoundError(f"`{field}` is {where!r}, a file: name the folder of a model")
    elif where != "embedded" and not ELSEWHERE.fullmatch(where):
        raise FileNotFoundError(
            f"`{field}` is {where!r}, neither a folder nor a hub name 'owner/name'"
        )


def check_data(field: str, text: str) -> None:
    """Looks at the columns of local data, where they are known without reading all of it.

    Raises:
        ValueError, OSError: the data are missing, damaged or in no known layout.
    """
    path = Path(text).expanduser()
    if not path.exists() and ELSEWHERE.fullmatch(text):
        return
    files = path.iterdir() if path.is_dir() else [path]
    sizes = [file.stat().st_size for file in files if file.is_file() and file.suffix != ".parquet"]
    if sum(sizes) > MAX_BYTES:
        return
    layout = LAYOUTS.get(field.rpartition(".")[2])
    for opened in open_input(Input(text)):
        if layout is not None:
            try:
                layout(opened.columns)
            except ValueError as error:
                raise ValueError(f"{opened.label}: {error}") from error

"""Marks the settings that a run may go on with, and compares the settings of two runs.

A field says by its metadata what another value means for a run that began before:

| metadata | another value |
| --- | --- |
| none | gives another run, and is refused |
| `NO_EFFECT` | changes no result: workers, waits, names in MLflow |
| `EXTENDS` | changes what comes next; what there is stays, as with one more strategy of LASeR |
| `PLACE` | gives another run, but a path may be spelled in another way |
| `DATA` | may name another place; the data themselves are compared by the ids of their rows |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

MARK = "resume"
NO_EFFECT = {MARK: "no effect"}
EXTENDS = {MARK: "extends"}
PLACE = {MARK: "place"}
DATA = {MARK: "data"}


def settings(config: Any) -> dict[str, Any]:
    """Returns a configuration as the values of a JSON file; local paths of inputs are absolute."""
    values: dict[str, Any] = {"kind": config.kind} if hasattr(config, "kind") else {}
    for field in fields(config):
        value = getattr(config, field.name)
        values[field.name] = settings(value) if is_dataclass(value) else _plain(field, value)
    return values


def changes(config: Any, old: Mapping[str, Any]) -> list[str]:
    """Returns each setting that keeps a run from going on, as 'schedule.lr: 0.0001 -> 0.0003'.

    A setting that is new since the run began had its default then.

    Args:
        config: the settings now.
        old: those that the run began with, as `settings` gave them.
    """
    return list(_changes(config, old, passed_over=("no effect", "extends", "data")))


def result_changes(config: Any, old: Mapping[str, Any]) -> list[str]:
    """Returns each setting that another result could come of; see `changes`."""
    return list(_changes(config, old, passed_over=("no effect",)))


def _changes(
    config: Any, old: Mapping[str, Any], *, passed_over: tuple[str, ...], path: str = ""
) -> Iterator[str]:
    for field in fields(config):
        if field.metadata.get(MARK) in passed_over:
            continue
        name, value = f"{path}{field.name}", getattr(config, field.name)
        before = old[field.name] if field.name in old else _default(field)
        if not (is_dataclass(value) and isinstance(before, Mapping)):
            new = settings(value) if is_dataclass(value) else _plain(field, value)
            before = _plain(field, before)
            if new != before:
                yield f"{name}: {_shown(before)} -> {_shown(new)}"
        elif getattr(value, "kind", None) != before.get("kind"):
            yield f"{name}: {before.get('kind')} -> {getattr(value, 'kind', None)}"
        else:
            yield from _changes(value, before, passed_over=passed_over, path=f"{name}.")


def local_inputs(config: Any) -> Iterator[tuple[str, Path]]:
    """Yields the existing files and folders that a configuration names, with the field of each."""
    for field, text in named_inputs(config):
        path = Path(text.partition("?")[0].rpartition("=")[2]).expanduser()
        if path.exists():
            yield field, path


def named_inputs(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields what a configuration names as an input, data or models, with the field of each."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from named_inputs(value, f"{path}{field.name}.")
        elif field.metadata.get(MARK) in ("place", "data"):
            for text in value if isinstance(value, tuple) else (value,):  # pyright: ignore[reportUnknownVariableType]
                if text:
                    yield f"{path}{field.name}", text


def _default(field: Field[Any]) -> Any:
    value = field.default
    if field.default_factory is not MISSING:
        value = field.default_factory()
    if value is MISSING:
        return None
    return settings(value) if is_dataclass(value) else value


def _plain(field: Field[Any], value: Any) -> Any:
    """Returns a value as JSON gives it back, and a path of an input in one spelling."""
    if field.metadata.get(MARK) in ("place", "data"):
        value = _spelled(value)
    return json.loads(json.dumps(value))


def _spelled(value: Any) -> Any:
    """Returns a value in which local paths are absolute, also behind `NAME=` and before `?`."""
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, str) or not value:
        return value
    place, mark, parameters = value.partition("?")
    name, equals, where = place.rpartition("=")
    path = Path(where).expanduser()
    return f"{name}{equals}{path.resolve()}{mark}{parameters}" if path.exists() else value


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "settings"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"  # pyright: ignore[reportUnknownArgumentType]
    return "none" if value is None else str(value) or "empty"

"""Settings of a file, such as a run's `config.json`, as a configuration again."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def with_values(config: Config, values: Mapping[str, Any], path: str = "") -> Config:
    """Returns a configuration with the values of a file, as `settings` gives them or fewer.

    Raises:
        ValueError: a name is no setting, with the one that is spelled most like it; or a value is
            none that the setting can have.
    """
    names = [field.name for field in fields(config)]  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(type(config))
    taken = {name: getattr(config, name) for name in names}
    for name, value in values.items():
        if name == "kind" and hasattr(config, "kind"):
            continue
        if name not in names:
            near = difflib.get_close_matches(name, names, 1) or [", ".join(names)]
            raise ValueError(f"`{path}{name}` is no setting; allowed here is {near[0]}")
        taken[name] = _value(hints[name], taken[name], value, f"{path}{name}")
    return type(config)(**taken)


def _value(hint: Any, now: Any, value: Any, path: str) -> Any:
    """Returns a value of a file as the type of its field, else raises a ValueError."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, Mapping):
        groups = [option for option in options if is_dataclass(option)]
        kind = value.get("kind")  # pyright: ignore[reportUnknownMemberType]
        if kind is not None:
            kinds = [getattr(group, "kind", None) for group in groups]
            if kind not in kinds:
                raise ValueError(f"`{path}.kind` must be one of {kinds}, got {kind!r}")
            groups = [groups[kinds.index(kind)]]
        if not groups:
            raise ValueError(f"`{path}` takes one value, got the settings {list(value)}")  # pyright: ignore[reportUnknownArgumentType]
        base = now if any(type(now) is group for group in groups) else groups[0]()
        return with_values(base, value, f"{path}.")  # pyright: ignore[reportUnknownArgumentType]
    for option in options:
        matches, typed = _plain(option, value)
        if matches:
            return typed
    raise ValueError(f"`{path}` must be {_described(options)}, got {value!r}")


def _plain(hint: Any, value: Any) -> tuple[bool, Any]:
    """Returns whether a value of a file fits a type, and the value as that type."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list | tuple):
            return False, value
        items = list(value)  # pyright: ignore[reportUnknownArgumentType]
        kinds = kinds[:1] * len(items) if kinds[-1] is ... else kinds
        fitted = [_plain(kind, item) for kind, item in zip(kinds, items, strict=False)]
        fits = len(kinds) == len(items) and all(matches for matches, _ in fitted)
        return fits, tuple(item for _, item in fitted)
    if hint is type(None):
        return value is None, None
    if hint is float:
        # YAML reads 1e-4 as a text.
        try:
            return not isinstance(value, bool | None), float(value)
        except (TypeError, ValueError):
            return False, value
    if hint in (int, str, bool):
        return type(value) is hint, value
    return value in get_args(hint), value  # a `Literal`


def _described(options: tuple[Any, ...]) -> str:
    names = [getattr(option, "__name__", str(option)) for option in options]
    return " or ".join(names)

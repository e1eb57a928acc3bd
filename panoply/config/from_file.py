"""Settings of a file, such as a run's `config.json`, as a configuration again."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def with_values(
    kind: type[Config], base: Config | None, values: Mapping[str, Any], path: str = ""
) -> Config:
    """Returns a configuration with values of a file, as `panoply.config.resume.settings` gives.

    Args:
        kind: class of the configuration.
        base: holds what the file leaves out; None: the defaults.
        values: some or all settings, nested.
        path: where in a larger configuration this one stands, with a dot behind.

    Raises:
        ValueError: a name is no setting, with those that are spelled most like it; a value is none
            that the setting can have; or one that has no default is missing.
    """
    names = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    hints, taken = get_type_hints(kind), {}
    for name in values:
        if name not in names and not (name == "kind" and hasattr(kind, "kind")):
            near = difflib.get_close_matches(name, names, 3) or list(names)
            raise ValueError(f"`{path}{name}` is no setting: there is {', '.join(near)}")
    for name, field in names.items():
        now = None if base is None else getattr(base, name)
        if name in values:
            taken[name] = _value(hints[name], now, values[name], f"{path}{name}")
        elif base is not None:
            taken[name] = now
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"`{path}{name}` is missing, and has no default")
    return kind(**taken)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the one type that a hint is."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _value(hint: Any, now: Any, value: Any, path: str) -> Any:
    """Returns a value of a file as the type of its field, else raises a ValueError."""
    options = alternatives(hint)
    if isinstance(value, Mapping):
        return _group(options, now, value, path)  # pyright: ignore[reportUnknownArgumentType]
    matches, typed = _as_one_of(hint, value)
    if matches:
        return typed
    allowed = " or ".join(str(getattr(option, "__name__", option)) for option in options)
    raise ValueError(f"`{path}` must be {allowed}, got {value!r}")


def _group(options: tuple[Any, ...], now: Any, values: Mapping[str, Any], path: str) -> Any:
    groups = [option for option in options if is_dataclass(option)]
    kinds = [getattr(group, "kind", None) for group in groups]
    if not groups:
        raise ValueError(f"`{path}` takes one value, got the settings {', '.join(values)}")
    if "kind" in values and values["kind"] not in kinds:
        raise ValueError(f"`{path}.kind` must be one of {kinds}, got {values['kind']!r}")
    if "kind" in values:
        chosen: Any = groups[kinds.index(values["kind"])]
    else:
        chosen = type(now) if type(now) in groups else groups[0]
    base = now if type(now) is chosen else None
    return with_values(chosen, base, values, f"{path}.")


def _as_one_of(hint: Any, value: Any) -> tuple[bool, Any]:
    """Returns whether a value of a file fits a type of a union, and the value as that type."""
    for option in alternatives(hint):
        matches, typed = _plain(option, value)
        if matches:
            return True, typed
    return False, value


def _plain(hint: Any, value: Any) -> tuple[bool, Any]:
    """Returns whether a value of a file fits a type, and the value as that type."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list | tuple):
            return False, value
        items = list(value)  # pyright: ignore[reportUnknownArgumentType]
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(items)
        fitted = [_as_one_of(kind, item) for kind, item in zip(kinds, items, strict=False)]
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

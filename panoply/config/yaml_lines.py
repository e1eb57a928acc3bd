"""Settings of a scorer in a YAML file: read as a dataclass, and each fault named with its line."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, SequenceNode

T = TypeVar("T")
Place: TypeAlias = Sequence[int | str]
"""Keys and indices that lead to a setting."""
SETTING = re.compile(r"`([^\W\d][\w.\[\]]*)`")
"""Name of a setting, which begins the message of an error."""
UNKNOWN = "unexpected_keyword_argument"
"""Pydantic's name of a fault: a setting that there is not."""
VALUE_ERROR = "Value error, "
"""Words that pydantic puts before the message of a ValueError."""


class _Loader(yaml.SafeLoader):
    """Reads yes, no, on and off as texts, as YAML has them since 1.2: they may be labels."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {}
for _first, _resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
    _Loader.yaml_implicit_resolvers[_first] = [pair for pair in _resolvers if pair[0] != _BOOL]
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?i:true|false)$"), list("tTfF"))


def read_settings(path: Path, kind: type[T]) -> T:
    """Returns the settings of a YAML file.

    Args:
        path: the file, in UTF-8.
        kind: a dataclass, nested as the file is. `__pydantic_config__ = {"extra": "forbid"}` makes
            an unknown key an error. Members of a union are told apart by a field `kind`, a
            `Literal`, and `pydantic.Field(discriminator="kind")`.

    Raises:
        ValueError: "FILE:LINE: " and what is wrong: no YAML, a key that stands there twice or is
            no setting, a value that is none of its setting, or what a class itself refuses.
        OSError: the file cannot be read.
    """
    values, node = _parse(path)
    if not isinstance(node, MappingNode):
        raise ValueError(f"{path}:1: must hold settings, `name: value` on each line")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A misspelled setting is missing under its own name too.
        unknown = [fault for fault in faults if fault["type"] == UNKNOWN]
        fault = (unknown or faults)[0]
        place, hint = _walk(kind, fault["loc"])
        message = _explained(fault, place, hint)
        raise ValueError(f"{path}:{_line(node, place, message)}: {message}") from None


@contextmanager
def with_line(path: Path) -> Generator[None]:
    """Puts file and line before the message of a ValueError that begins with a setting's name.

    Args:
        path: a file that `read_settings` has read: for what is seen only after that, as a file
            that is named there and is missing.

    Raises:
        ValueError: as in the block; "FILE:LINE: " stands before the message.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        if not SETTING.match(message):
            raise
        raise ValueError(f"{path}:{_line(_parse(path)[1], (), message)}: {message}") from error


def _parse(path: Path) -> tuple[Any, Node | None]:
    """Returns the values of a file, and the node that knows their lines."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check_keys(path, node, set())
        return loader.construct_document(node), node
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:1: is no text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}:{line}: is no YAML: {error.problem}") from error
    except RecursionError as error:
        raise ValueError(f"{path}:1: is no YAML that can be read: it nests too deeply") from error
    except yaml.YAMLError as error:  # a character that YAML has not
        raise ValueError(f"{path}:1: is no YAML: {str(error).splitlines()[0]}") from error


def _check_keys(path: Path, node: Node, checked: set[int]) -> None:
    """Checks that no mapping has a key twice: YAML would take the last one.

    Args:
        path: of the file, for the message.
        node: is checked, and all below it.
        checked: ids of the nodes that were: an alias is the node that it names, even its parent.
    """
    if id(node) in checked:
        return
    checked.add(id(node))
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_keys(path, item, checked)
    elif isinstance(node, MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if str(key.value) in keys:
                line = key.start_mark.line + 1
                raise ValueError(f"{path}:{line}: `{key.value}` stands there twice")
            keys.add(str(key.value))
            _check_keys(path, value, checked)


def _explained(fault: ErrorDetails, place: Place, hint: Any) -> str:
    """Returns what is wrong, beginning with the name of the setting.

    Args:
        fault: as pydantic has it.
        place: the keys that lead there.
        hint: type of the group at the place, or above it where nothing is at the place.
    """
    message = fault["msg"]
    if message.startswith(VALUE_ERROR):
        return message.removeprefix(VALUE_ERROR)
    name = ".".join(map(str, place))
    if place and place[-1] == "[key]":
        name = ".".join(map(str, place[:-2]))
        return f"`{name}` must have texts for names: put {fault['input']!r} into quotes"
    if fault["type"] == UNKNOWN:
        names: list[str] = []
        for group in _groups(hint):
            names += type_hints(group)
        near = difflib.get_close_matches(str(place[-1]), names, 3) or names
        return f"`{name}` is no setting: there is {', '.join(near)}"
    match fault["type"]:
        case "missing":
            return f"`{name}` is missing, and has no default"
        case "union_tag_not_found":
            return f"`{name}.kind` is missing: it must be one of {_kinds(hint)}"
        case "union_tag_invalid":
            return (
                f"`{name}.kind` must be one of {_kinds(hint)}, got {fault['input'].get('kind')!r}"
            )
        case _:
            what = f"{message[0].lower()}{message[1:]}"
            return f"`{name}`: {what}, got {reprlib.repr(fault['input'])}"


def _walk(kind: Any, place: Place) -> tuple[list[int | str], Any]:
    """Returns the keys of a place, and the type that is there, or the last one on the way.

    Pydantic puts the kind of a union's member into a place; no file has it there as a key.
    """
    keys: list[int | str] = []
    hint = kind
    for step in place:
        groups = _groups(hint)
        if len(groups) > 1:
            hint = next((group for group in groups if step in _kinds(group)), None)
            continue
        keys.append(step)
        below = type_hints(groups[0], include_extras=True).get(str(step)) if groups else None
        inner = [arg for arg in get_args(_members(hint)[0]) if arg is not ...]
        if below is None and not inner:
            continue
        hint = below or inner[-1]
    return keys, hint


def _members(hint: Any) -> list[Any]:
    """Returns the members of a union, or the one type that a hint is."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


def _groups(hint: Any) -> list[Any]:
    """Returns the dataclasses among the members of a type."""
    return [member for member in _members(hint) if is_dataclass(member)]


def _kinds(hint: Any) -> list[str]:
    """Returns the kinds by which the members of a union are told apart."""
    kinds: list[str] = []
    for group in _groups(hint):
        kinds += get_args(type_hints(group).get("kind"))
    return kinds


def _line(root: Node | None, place: Place, message: str) -> int:
    """Returns the line of the setting that a message names, or else of the place.

    Args:
        root: node of the file.
        place: of the group, or the setting, that is at fault.
        message: begins with the name, which may stand for itself, or lead from the root.
    """
    if root is None:
        return 1
    match = SETTING.match(message)
    parts = re.findall(r"\w+", match[1]) if match else []
    names: list[int | str] = [int(part) if part.isdigit() else part for part in parts]
    for way in ([*place, *names], names, [*place, *names[-1:]]):
        node, is_whole = _node(root, way)
        if is_whole and way:
            return node.start_mark.line + 1
    # Nothing leads there where a setting is missing: its group has the line.
    return _node(root, place)[0].start_mark.line + 1


def _node(root: Node, place: Place) -> tuple[Node, bool]:
    """Returns the deepest node on the way to a place, its key where it has one; and if it is whole.

    Whole is the way on which nothing is missing.
    """
    node, shown = root, root
    for step in place:
        if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = shown = node.value[step]
            continue
        # What `<<` merges in stands before the mapping's own keys, which count.
        pairs = reversed(node.value) if isinstance(node, MappingNode) else ()
        pair = next(((key, value) for key, value in pairs if key.value == str(step)), None)
        if pair is None:
            return shown, False
        shown, node = pair
    return shown, True

"""Conversion of the values in data sets to JSON.

Arrays, scalars and rows of numpy, pandas, pyarrow and torch are converted by their own methods
(`tolist`, `as_py`), so that none of these packages has to be installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, cast

from pydantic import JsonValue


def json_value(value: Any, what: str) -> JsonValue:
    """Returns a value of a data set as JSON.

    Missing values (NaN, NaT, NA) are null. Dates are text as ISO 8601 has them, spans of time
    text as their library writes them, decimals and fractions text with all of their digits, and
    sets are sorted lists. Keys that are numbers, true or false become text, as JSON has them.

    Args:
        value: value of a data set.
        what: its name, for the message.

    Raises:
        TypeError: it is, or holds, a value that JSON does not have.
        ValueError: it holds an infinite number.
    """
    if _is_missing(value):
        return None
    match value:
        case Enum():
            return json_value(value.value, what)
        case bool():
            return value
        case int():
            return int(value)
        case float():
            return _finite(value, what)
        case str() | Decimal() | Fraction() | timedelta():
            return str(value)
        case Mapping() if not hasattr(value, "as_py"):  # a map of pyarrow has no `items`
            pairs = cast(Mapping[Any, Any], value).items()
            return {_key(key, what): json_value(inner, what) for key, inner in pairs}
        case list() | tuple():
            return [json_value(inner, what) for inner in cast(list[Any], value)]
        case AbstractSet():
            members = [json_value(inner, what) for inner in cast(AbstractSet[Any], value)]
            return sorted(members, key=json.dumps)
        case _:
            return json_value(_plain(value, what), what)


def _finite(value: float, what: str) -> float:
    if math.isinf(value):
        raise ValueError(f"{what} holds {value}, and JSON has no infinite number")
    return float(value)


def _is_missing(value: Any) -> bool:
    """Returns whether a value is None, NaN, or NA and NaT of pandas and numpy."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    compares = isinstance(value, float | Decimal) or _is_numpy_time(value)
    return compares and bool(value != value)


def _is_numpy_time(value: Any) -> bool:
    """Returns whether a value is a time or a span of numpy; its `tolist` may be a bare number."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return kind in ("m", "M") and value.ndim == 0


def _plain(value: Any, what: str) -> Any:
    """Returns a value of another library as Python's own.

    Raises:
        TypeError: it has no method that converts it.
    """
    if _is_numpy_time(value):
        return str(value)
    kind = type(value)
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
        return list(value)
    for method in ("as_py", "tolist", "to_pylist", "isoformat"):
        if callable(convert := getattr(value, method, None)):
            plain = convert()
            if not isinstance(plain, kind):  # or the conversion would never end
                return plain
    raise TypeError(
        f"{what} holds a {kind.__module__}.{kind.__qualname__}, which is no JSON value: make it "
        "text, a number, true or false, null, or lists and dictionaries of these"
    )


def _key(key: Any, what: str) -> str:
    plain = json_value(key, what)
    if isinstance(plain, list | dict) or plain is None:
        raise TypeError(f"{what} has the key {key!r}; keys of JSON are text")
    return plain if isinstance(plain, str) else json.dumps(plain)

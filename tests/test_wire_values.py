"""Labels as data sets hold them: JSON, or an error that names the type."""

import datetime
import enum
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from panoply.wire.values import json_value


class Level(enum.Enum):
    """A value with a name."""

    HIGH = "high"


class Rank(enum.IntEnum):
    """A number with a name."""

    FIRST = 1


class Word(enum.StrEnum):
    """A text with a name."""

    YES = "yes"


DAY = datetime.date(2026, 11, 29)
NESTED = {"gold": np.array([1, 2]), "spans": [(0, np.int64(3))], "why": {"ok": np.bool_(True)}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("42", "42"),
        (np.str_("42"), "42"),
        (True, True),
        (np.bool_(False), False),
        (3, 3),
        (np.int64(2**60), 2**60),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([1, 2]), [1, 2]),
        (np.array(7), 7),
        (np.array([[1.5, 2.0]]), [[1.5, 2.0]]),
        (np.array(["a", {"b": np.int8(1)}], dtype=object), ["a", {"b": 1}]),
        (np.array([], dtype=object), []),
        ((1, ("a",)), [1, ["a"]]),
        ({"b", "a"}, ["a", "b"]),
        (frozenset({2, 1}), [1, 2]),
        (NESTED, {"gold": [1, 2], "spans": [[0, 3]], "why": {"ok": True}}),
        ({1: "a", np.str_("k"): "b"}, {"1": "a", "k": "b"}),
        ({np.int64(1): "a", np.float64(0.5): "b"}, {"1": "a", "0.5": "b"}),
        ({False: "a", DAY: "b", Rank.FIRST: "c"}, {"false": "a", "2026-11-29": "b", "1": "c"}),
        (datetime.timedelta(days=1, seconds=1), "1 day, 0:00:01"),
        (pd.Timedelta("1s"), "0 days 00:00:01"),
        (np.timedelta64(5, "s"), "5 seconds"),
        (float("nan"), None),
        (np.float32("nan"), None),
        (Decimal("NaN"), None),
        (pd.NA, None),
        (pd.NaT, None),
        (np.datetime64("NaT"), None),
        (np.array([1.0, np.nan]), [1.0, None]),
        (DAY, "2026-11-29"),
        (datetime.datetime(2026, 11, 29, 10, 30), "2026-11-29T10:30:00"),
        (pd.Timestamp("2026-11-29 10:30"), "2026-11-29T10:30:00"),
        (np.datetime64("2026-11-29T10:30:00", "ns"), "2026-11-29T10:30:00.000000000"),
        (np.array(["2026-11-29"], dtype="datetime64[D]"), ["2026-11-29"]),
        (Decimal("0.10"), "0.10"),
        (Fraction(3, 4), "3/4"),
        (Level.HIGH, "high"),
        (Rank.FIRST, 1),
        (Word.YES, "yes"),
        (pa.scalar(5), 5),
        (pa.scalar({"a": [1, None]}), {"a": [1, None]}),
        (pa.scalar([("a", 1)], pa.map_(pa.string(), pa.int64())), [["a", 1]]),
        (pa.array(["a", None]), ["a", None]),
        (pd.Series([1, 2]), [1, 2]),
    ],
    ids=repr,
)
def test_what_data_sets_hold_is_json(value, expected):
    converted = json_value(value, "a label")
    assert converted == expected
    assert type(converted) is type(expected)
    assert json.loads(json.dumps(converted, allow_nan=False)) == converted


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"42", "builtins.bytes"),
        ([Path("x")], r"pathlib\.PosixPath"),
        ({"a": [1 + 2j]}, "builtins.complex"),
        (range(2), "builtins.range"),
        (pd.DataFrame({"a": [1]}), "DataFrame"),
        (np.array([1j]), "builtins.complex"),
    ],
    ids=repr,
)
def test_what_is_no_json_is_told_by_its_type(value, kind):
    with pytest.raises(TypeError, match=f"column 'answer' holds a .*{kind}.*make it text"):
        json_value(value, "column 'answer'")


def test_keys_that_are_no_text_and_infinite_numbers_are_told():
    with pytest.raises(TypeError, match=r"has the key \(1, 2\)"):
        json_value({(1, 2): 3}, "a label")
    with pytest.raises(ValueError, match="holds inf"):
        json_value([np.float32(math.inf)], "a label")

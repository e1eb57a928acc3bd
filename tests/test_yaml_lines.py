"""Settings in YAML files: read as dataclasses, each fault named with its line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from panoply.config import require
from panoply.config.yaml_lines import read_settings, with_line

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """Settings of a test."""

    __pydantic_config__ = STRICT
    size: float
    spokes: int = 32

    def __post_init__(self):
        require(self.size > 0, "size", self.size, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Settings of a test."""

    __pydantic_config__ = STRICT
    kind: Literal["chain"] = "chain"
    links: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Belt:
    """Settings of a test."""

    __pydantic_config__ = STRICT
    kind: Literal["belt"] = "belt"
    belt: str
    """A field of the member's own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bicycle:
    """Settings of a test."""

    __pydantic_config__ = STRICT
    name: str
    wheels: tuple[Wheel, ...]
    drive: Annotated[Chain | Belt, Field(discriminator="kind")]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        require(bool(self.wheels), "wheels", self.wheels, "one or more")


GOOD = """\
name: tandem
wheels:
  - size: 1e-1
  - size: 26
    spokes: 28
drive:
  kind: chain
  links: 112
weights: {frame: 2}
"""


def read(text, tmp_path: Path):
    path = tmp_path / "bicycle.yaml"
    path.write_text(text)
    return read_settings(path, Bicycle)


def test_a_file_becomes_nested_dataclasses(tmp_path):
    assert read(GOOD, tmp_path) == Bicycle(
        name="tandem",
        wheels=(Wheel(size=0.1), Wheel(size=26, spokes=28)),
        drive=Chain(links=112),
        weights={"frame": 2.0},
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("spokes", "spoke", 5, "`wheels.1.spoke` is no setting: there is spokes"),
        ("size: 26", "size: -26", 4, "`size` must be positive, got -26.0"),
        ("size: 26", "sizes: 26", 4, "`wheels.1.sizes` is no setting: there is size"),
        ("  - size: 26\n    spokes", "  - spokes", 4, "`wheels.1.size` is missing"),
        ("links: 112", "links: many", 8, "`drive.links`: .* valid integer.*, got 'many'"),
        ("  links: 112\n", "", 6, "`drive.links` is missing"),
        ("  links: 112\n", "  links: 1\n  link: 1\n", 9, "`drive.link` is no setting.*links"),
        (
            "kind: chain",
            "kind: shaft",
            7,
            r"`drive.kind` must be one of \['chain', 'belt'\].*shaft",
        ),
        ("  kind: chain\n", "", 6, r"`drive.kind` is missing.*'belt'"),
        ("kind: chain\n  links: 112", "kind: belt\n  belt: [1]", 8, "`drive.belt`: .*string"),
        ("{frame: 2}", "{frame: heavy}", 9, "`weights.frame`: .*valid number"),
        ("name: tandem\n", "", 1, "`name` is missing"),
        ("name: tandem\n", "name: a\nname: b\n", 2, "`name` stands there twice"),
        ("{frame: 2}", "{1: 2}", 9, "`weights` must have texts for names: put 1 into quotes"),
        ("{frame: 2}", "{frame: 2", 10, "is no YAML"),
        (GOOD[13:], "wheels: []\ndrive: {kind: chain, links: 1}\n", 2, "`wheels` must be one or"),
        (GOOD, "- name\n", 1, "must hold settings"),
        (GOOD, "", 1, "must hold settings"),
        ("tandem", "&a [*a]", 1, "`name`: .*string"),
    ],
)
def test_each_fault_is_one_line_that_names_the_file_and_its_line(old, new, line, words, tmp_path):
    with pytest.raises(ValueError, match=rf"bicycle\.yaml:{line}: {words}") as caught:
        read(GOOD.replace(old, new) if old in GOOD else new, tmp_path)
    assert "\n" not in str(caught.value)


def test_words_that_older_yaml_takes_for_truth_values_are_words(tmp_path):
    weights = read(
        GOOD.replace("{frame: 2}", "{Yes: 1, No: 0, on: 2, trueish: 3}"), tmp_path
    ).weights
    assert weights == {"Yes": 1.0, "No": 0.0, "on": 2.0, "trueish": 3.0}


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "bicycle.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ValueError, match=r"bicycle\.yaml:1: is no text in UTF-8"):
        read_settings(path, Bicycle)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_settings(tmp_path / "nowhere.yaml", Bicycle)


def test_what_is_seen_only_later_is_named_with_its_line_too(tmp_path):
    read(GOOD, tmp_path)
    path = tmp_path / "bicycle.yaml"
    few = "`wheels[1].spokes` are too few"
    with pytest.raises(ValueError, match=r"bicycle\.yaml:5: `wheels\[1\].s"), with_line(path):
        raise ValueError(few)
    with pytest.raises(ValueError, match=r"^another fault"), with_line(path):
        raise ValueError("another fault")

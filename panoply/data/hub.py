"""Data sets of the Hugging Face hub, by name: `owner/name/config:split@revision`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from panoply.data.formats import BATCH_ROWS, Batches

NAME = re.compile(
    r"(?P<repo>\w[\w.-]*/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[^@]+))?(?:@(?P<revision>.+))?"
)


@dataclass(frozen=True)
class HubName:
    """One split of a data set on the hub."""

    repo: str
    """Owner and name."""
    config: str | None = None
    """Configuration, or a folder of files inside the repository."""
    split: str = "train"
    """Split, also a slice of one as in "train[:1000]"."""
    revision: str | None = None
    """Branch, tag or commit; None: the newest."""

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Returns what a name of the form `owner/name/config:split@revision` means, None if other.

        All but `owner/name` may be left out.
        """
        match = NAME.fullmatch(text)
        if match is None:
            return None
        return cls(match["repo"], match["config"], match["split"] or "train", match["revision"])


def open_hub(name: HubName) -> tuple[pa.Schema, Batches]:
    """Downloads a split; returns its schema and its batches.

    Raises:
        ValueError: the package `datasets` is missing, the hub cannot be reached, or it does not
            hold that data set, configuration, split or revision.
    """
    try:
        from datasets import load_dataset  # heavy, and not needed for local files
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ValueError(
            f"hub name {name.repo!r} needs the package `datasets`: run `pip install '.[hf]'` in a "
            "clone of Panoply, or name a local file"
        ) from error
    load = partial(load_dataset, name.repo, split=name.split, revision=name.revision)
    try:
        loaded = _load(load, name.config)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"{name.repo!r} is no local path, and the hub could not be reached or does not hold it "
            f"with configuration {name.config!r}, split {name.split!r} and revision "
            f"{name.revision!r} ({type(error).__name__}: {error}); a local file or folder works too"
        ) from error
    return loaded.features.arrow_schema, partial(_batches, loaded)


def _load(load: Any, config: str | None) -> Any:
    if config is None:
        return load()
    try:
        return load(name=config)
    except ValueError as error:
        if "BuilderConfig" not in str(error):
            raise
        return load(data_dir=config)  # a folder of the repository, as HH-RLHF has them


def _batches(loaded: Any, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    narrow = loaded if columns is None else loaded.select_columns(columns)
    for table in narrow.with_format("arrow").iter(BATCH_ROWS):
        yield from table.to_batches()

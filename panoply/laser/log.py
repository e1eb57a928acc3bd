"""The log of a selector: each decision and each reward once, in immutable Parquet segments.

A round has two segments, `decisions-00000012.parquet` when it begins and `rewards-00000012.parquet`
when it ends. Each is written whole under a temporary name, synced and moved; writing it again is
nothing where it says the same, and an error where it does not. Reading is concatenation. What is
not finite is null.

Shapes: B decisions of a round, N decisions, K arms, D size of a context inside the bandit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from panoply.bandit.state import State
from panoply.bandit.update import Choice, update
from panoply.config.bandit import SIGNALS
from panoply.data.features import open_store
from panoply.laser.signals import MEASURES
from panoply.types import Array

Kind: TypeAlias = Literal["decisions", "rewards"]

DECISIONS = pa.schema(
    [
        ("round", pa.int64()),
        ("decision_id", pa.string()),
        ("prompt_ids", pa.list_(pa.string())),
        ("sources", pa.list_(pa.string())),
        ("arm", pa.string()),
        ("propensity", pa.float64()),
        ("probabilities", pa.list_(pa.float64())),
        ("context", pa.list_(pa.float64())),
        ("context_hash", pa.string()),
        ("state", pa.string()),
        (
            "sidelined",
            pa.list_(
                pa.struct([("arm", pa.string()), ("reason", pa.string()), ("until", pa.int64())])
            ),
        ),
    ]
)
"""A decision: for the prompts of `prompt_ids`, one each where decisions are made by prompt.

`probabilities` are of all arms, in their order, `context` is as the bandit sees it (projected),
`context_hash` that of the context as given, `state` the version of the state it was made with, and
`sidelined` holds the arms that could not be chosen, why, and the round in which they come back.
"""
REWARDS = pa.schema(
    [
        ("round", pa.int64()),
        ("decision_id", pa.string()),
        ("arm", pa.string()),
        *((name, pa.float64()) for name in MEASURES),
        *((f"signal_{name}", pa.float64()) for name in SIGNALS),
        ("signal", pa.string()),
        ("reward", pa.float64()),
        ("num_failed", pa.int64()),
        ("failure", pa.string()),
    ]
)
"""What came of a decision: what was measured (`panoply.laser.signals.Outcome`, means over its
prompts), every signal, the one that was applied, and how many of its prompts the arm failed on."""
SCHEMAS: dict[Kind, pa.Schema] = {"decisions": DECISIONS, "rewards": REWARDS}
READERS = 16
"""Segments that are read at once."""


class LogDiffers(ValueError):
    """What is to be written is not what the log already holds."""


@dataclass(frozen=True, slots=True)
class Record:
    """All of a log: decisions, and the rewards of the rounds that have ended."""

    arms: tuple[str, ...]
    decisions: pa.Table
    rewards: pa.Table

    @property
    def ended(self) -> pa.Table:
        """Decisions of the rounds that have ended, one for each reward.

        Raises:
            ValueError: decisions and rewards do not belong together.
        """
        told = self.decisions.slice(0, self.rewards.num_rows)
        for name in ("round", "decision_id", "arm"):
            if not told[name].equals(self.rewards[name]):
                raise ValueError(f"decisions and rewards differ in {name!r}: the log is damaged")
        return told

    @property
    def rewards_N(self) -> Array:
        """Rewards that were applied; NaN where there was none."""
        return column(self.rewards, "reward")

    def choice(self, decisions: pa.Table) -> Choice:
        """Returns some of the decisions as the bandit has them."""
        return to_choice(decisions, self.arms)


class Log:
    """A log in one folder, which one selector writes."""

    def __init__(self, uri: str, arms: tuple[str, ...]) -> None:
        self.arms = arms
        self.fs, self.path = open_store(uri)
        self.fs.create_dir(self.path, recursive=True)

    def check_or_write_config(self, own: Mapping[str, Any]) -> None:
        """Writes what the log stands on, or checks that it says the same.

        Raises:
            LogDiffers: the folder holds the log of another selector.
        """
        path = f"{self.path}/selector.json"
        wanted = json.loads(json.dumps(own))
        if self.fs.get_file_info(path).type == pafs.FileType.File:
            with self.fs.open_input_file(path) as file:
                old = json.loads(file.read())
            changed = sorted(k for k in {*wanted, *old} if wanted.get(k) != old.get(k))
            if changed:
                raise LogDiffers(
                    f"{self.path!r} holds the log of a selector with other {', '.join(changed)} "
                    "(see selector.json); take another folder, or remove that one"
                )
            return
        self._write_whole(path, json.dumps(wanted, indent=1).encode())

    def write(self, kind: Kind, round: int, table: pa.Table) -> None:
        """Writes a segment, unless it is there already.

        Raises:
            LogDiffers: it is there and says something else.
        """
        table = table.cast(SCHEMAS[kind])
        known = self.read_segment(kind, round)
        if known is not None:
            if not known.equals(table):
                raise LogDiffers(f"the {kind} of round {round} are in the log, and differ")
            return
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self._write_whole(self._segment(kind, round), buffer.getvalue())

    def read_segment(self, kind: Kind, round: int) -> pa.Table | None:
        """Returns a segment, or None where there is none."""
        path = self._segment(kind, round)
        if self.fs.get_file_info(path).type != pafs.FileType.File:
            return None
        with self.fs.open_input_file(path) as file:
            return pq.read_table(file, schema=SCHEMAS[kind])

    def read(self, known: Record | None = None) -> Record:
        """Returns the whole log.

        Args:
            known: what was read before; segments never change, so only later ones are read.

        Raises:
            ValueError: a segment is missing between others.
        """
        begun, over = self._rounds("decisions"), self._rounds("rewards")
        if over not in (begun, begun - 1):
            raise ValueError(
                f"{self.path!r} has decisions of {begun} rounds and rewards of {over}: segments "
                "are missing"
            )
        decisions, rewards = (SCHEMAS[kind].empty_table() for kind in SCHEMAS)
        if known is not None:
            decisions, rewards = known.decisions, known.rewards
        return Record(
            self.arms,
            self._extended("decisions", decisions, begun),
            self._extended("rewards", rewards, over),
        )

    def _extended(self, kind: Kind, known: pa.Table, num: int) -> pa.Table:
        first = known["round"][-1].as_py() + 1 if known.num_rows else 0
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda round: self.read_segment(kind, round), range(first, num))
            tables = [table for table in found if table is not None]
        return pa.concat_tables([known, *tables]).combine_chunks()

    def _rounds(self, kind: Kind) -> int:
        """Returns the number of segments, which are 0, 1 and so on."""
        listed = self.fs.get_file_info(pafs.FileSelector(self.path))
        names = {info.base_name for info in listed}
        names = {n for n in names if n.startswith(f"{kind}-") and n.endswith(".parquet")}
        wanted = [self._segment(kind, i).rpartition("/")[2] for i in range(len(names))]
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"{self.path!r} lacks {missing[0]}, but holds later segments")
        return len(names)

    def _segment(self, kind: Kind, round: int) -> str:
        return f"{self.path}/{kind}-{round:08d}.parquet"

    def _write_whole(self, path: str, content: bytes) -> None:
        """Writes a file whole or not at all, and so that it outlives the machine."""
        partial = f"{path}.{secrets.token_hex(8)}.part"
        with self.fs.open_output_stream(partial) as out:
            out.write(content)
        local = isinstance(self.fs, pafs.LocalFileSystem)  # object stores keep what they took
        if local:
            _sync(partial)
        self.fs.move(partial, path)
        if local:
            _sync(self.path)


def replay(record: Record, initial: State) -> State:
    """Returns the state after all rewards of a log, with the bits that the live one had.

    Args:
        record: the log. Its contexts and propensities are the ones that were used, so no policy
            is needed.
        initial: the state before the first reward (`panoply.bandit.make.initial_state`).

    Raises:
        ValueError: the log is damaged, or of other arms or contexts.
    """
    return update(initial, record.choice(record.ended), record.rewards_N)


def state_version(state: State) -> str:
    """Returns 16 hex digits that depend on every bit of a state."""
    words = hashlib.blake2b(digest_size=8)
    for part in state:
        words.update(str(part.shape).encode() + part.tobytes())
    return words.hexdigest()


def to_choice(decisions: pa.Table, arms: tuple[str, ...]) -> Choice:
    """Returns decisions of a log as the bandit has them.

    Raises:
        ValueError: an arm that is none of these.
    """
    names = decisions["arm"].to_pylist()
    if unknown := set(names) - set(arms):
        raise ValueError(f"the log has arms {sorted(unknown)} that are none of {list(arms)}")
    contexts, propensities = (matrix(decisions[name]) for name in ("context", "probabilities"))
    number = {arm: k for k, arm in enumerate(arms)}
    return Choice(contexts, np.array([number[n] for n in names], np.int64), propensities)


def matrix(lists: pa.ChunkedArray) -> Array:
    """Returns lists of one length as `[N, length]`."""
    rows = len(lists)
    flat = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float64).reshape(rows, len(flat) // max(rows, 1))


def column(table: pa.Table, name: str) -> Array:
    """Returns a column of numbers, NaN where null."""
    return table[name].to_numpy(zero_copy_only=False).astype(np.float64)


def nullable(values: Array) -> pa.Array:
    """Returns numbers as the log has them: null where they are not finite."""
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Log of a selector: each decision and each reward once, in immutable Parquet segments.

A round has two segments, `decisions-00000012.parquet` when it begins and `rewards-00000012.parquet`
when it ends. Where nothing is in rounds (`panoply.laser.online`), both kinds are numbered together,
as they are written. Each is created once, whole and synced: of two writers, on a disk or in a
bucket, one succeeds. Writing a segment again does nothing if the content is the same, and is an
error if it is not. A writer takes the log over from the one before, which is refused from then on.
Reading is concatenation; pages carry checksums. Numbers that are not finite are null.

Shapes: B decisions of a round, N decisions, K arms, D size of a context inside the bandit.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.bandit.state import State
from panoply.bandit.update import Choice, update
from panoply.config import as_dict
from panoply.config.bandit import SIGNALS, SelectorConfig
from panoply.files import reading
from panoply.laser.selector_file import SELECTOR_FILE, read_settings
from panoply.laser.signals import MEASURES
from panoply.lease import Lease, take_over
from panoply.records import open_records
from panoply.types import Array, Ints

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
            "suspended",
            pa.list_(
                pa.struct([("arm", pa.string()), ("reason", pa.string()), ("until", pa.int64())])
            ),
        ),
    ]
)
"""A decision: for the prompts of `prompt_ids`, one each where decisions are made by prompt.

`probabilities` are those of all arms, in their order; `context` is as the bandit sees it
(projected), `context_hash` that of the context as it came; `state` is the version of the state that
the decision was made with; `suspended` holds the arms that could not be chosen, why, and the round
in which they come back.
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
"""The reward of a decision: measurements (`panoply.laser.signals.PromptOutcome`, means over its
prompts), every signal, the one that was applied, and how many of its prompts the arm failed on."""
SCHEMAS: dict[Kind, pa.Schema] = {"decisions": DECISIONS, "rewards": REWARDS}
STORED_NAMES = {
    "suspended": "sidelined",
    "gold_margin_gain": "probe_gain",
    "signal_gold_margin": "signal_probe",
}
"""Columns whose names in files are older than today's words; old and new logs have the same."""
READERS = 16
"""Segments that are read at once."""
DAMAGED = "delete it if it is the last of its kind and run the same command again, else start anew"
"""Advice for a damaged segment: the last is made again from the files of its round."""


class LogDiffers(ValueError):
    """The log already holds something else than what is to be written."""


@dataclass(frozen=True, slots=True)
class Record:
    """Content of a log: decisions, and the rewards of the rounds that have ended."""

    arms: tuple[str, ...]
    decisions: pa.Table
    rewards: pa.Table
    reward_segments_N: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Number of the segment of each reward, where the record was read from a log."""

    @property
    def ended(self) -> pa.Table:
        """Decisions that have a reward, one for each, in the order of the rewards.

        Raises:
            ValueError: decisions and rewards do not belong together.
        """
        places = {key: place for place, key in enumerate(_keys(self.decisions))}
        rows = [places.get(key) for key in _keys(self.rewards)]
        if None in rows or len(set(rows)) < len(rows):
            raise ValueError("a reward has no decision, or a decision two: the log is damaged")
        ended = self.decisions.take(pa.array(rows, pa.int64()))
        if not ended["arm"].equals(self.rewards["arm"]):
            raise ValueError("decisions and rewards differ in 'arm': the log is damaged")
        return ended

    @property
    def rewards_N(self) -> Array:
        """Rewards that were applied; NaN where there was none."""
        return column(self.rewards, "reward")

    def choice(self, decisions: pa.Table) -> Choice:
        """Returns some of the decisions as the bandit has them."""
        return to_choice(decisions, self.arms)


class Log:
    """A log in one folder, on a disk or in a bucket, which one selector writes and any may read."""

    def __init__(self, uri: str, arms: tuple[str, ...], *, in_rounds: bool = True) -> None:
        """Names the folder; nothing is read.

        Args:
            uri: folder, on a disk or in a bucket.
            arms: names of the arms.
            in_rounds: whether a round's rewards come before the next round's decisions, and each
                kind of segment has numbers of its own.
        """
        self.uri, self.arms, self.in_rounds = uri, arms, in_rounds
        self.records = open_records(uri)
        self.path = self.records.where
        self.lease: Lease | None = None

    def take_over(self) -> None:
        """Makes this the one writer: one that wrote before is refused on its next write."""
        self.lease = take_over(self.uri)

    def check_or_write_config(
        self,
        config: SelectorConfig,
        num_features: int,
        prior_hash: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the selector's configuration, or fails if the log was made with another one.

        Args:
            config: of the selector.
            num_features: numbers in a context.
            prior_hash: hash of Thompson's prior.
            more: further settings that have to stay as they are.

        Raises:
            LogDiffers: the folder holds the log of another selector.
            ValueError: the file is damaged.
        """
        settings = {"arms": self.arms, "num_features": num_features, "prior": prior_hash}
        settings |= more or {}
        record = json.loads(json.dumps(as_dict(config) | settings))
        if self.records.create(SELECTOR_FILE, json.dumps(record, indent=1).encode()):
            return
        old = read_settings(self.records)
        changed = sorted(k for k in {*record, *old} if record.get(k) != old.get(k))
        if changed:
            raise LogDiffers(
                f"{self.path!r} holds the log of a selector with other {', '.join(changed)} "
                f"(see {SELECTOR_FILE}); take another folder, or remove that one"
            )

    def write(self, kind: Kind, round: int, table: pa.Table) -> None:
        """Creates a segment, or finds it there with the same content.

        Raises:
            LogDiffers: the segment is there with other content.
            LeaseLost: another writer has taken over.
        """
        table = table.cast(SCHEMAS[kind])
        if self.lease is not None:
            self.lease.check()
        buffer = io.BytesIO()
        stored = table.rename_columns(_stored_schema(kind).names)
        pq.write_table(stored, buffer, write_page_checksum=True)
        if self.records.create(_segment(kind, round), buffer.getvalue()):
            return
        old = self.read_segment(kind, round)
        if old is None or not old.equals(table):
            raise LogDiffers(f"the {kind} of round {round} are in the log, and differ")

    def read_segment(self, kind: Kind, round: int) -> pa.Table | None:
        """Returns a segment, or None where there is none.

        Raises:
            ValueError: it is damaged.
        """
        name = _segment(kind, round)
        content = self.records.read(name)
        if content is None:
            return None
        with reading(Path(self.path) / name, DAMAGED):
            stored = pq.read_table(
                io.BytesIO(content), schema=_stored_schema(kind), page_checksum_verification=True
            )
        return stored.rename_columns(SCHEMAS[kind].names)

    def read(self, before: Record | None = None) -> Record:
        """Returns the whole log.

        Args:
            before: content at an earlier time; segments never change, so only later ones are read.

        Raises:
            ValueError: a segment is missing between others.
        """
        names = self.records.names()  # once: somebody may be writing
        begun, ended = _numbers(names, "decisions"), _numbers(names, "rewards")
        self._check_whole(begun, ended)
        decisions, rewards = DECISIONS.empty_table(), REWARDS.empty_table()
        segments_N = np.empty(0, np.int64)
        if before is not None:
            decisions, rewards = before.decisions, before.rewards
            segments_N = before.reward_segments_N
        last_round = decisions["round"][-1].as_py() if decisions.num_rows else -1
        last_segment = segments_N[-1] if len(segments_N) else -1
        new_decisions = self._tables("decisions", [n for n in begun if n > last_round])
        ended = [number for number in ended if number > last_segment]
        new_rewards = self._tables("rewards", ended)
        sizes = [table.num_rows for table in new_rewards]
        return Record(
            self.arms,
            pa.concat_tables([decisions, *new_decisions]).combine_chunks(),
            pa.concat_tables([rewards, *new_rewards]).combine_chunks(),
            np.concatenate([segments_N, np.repeat(np.array(ended, np.int64), sizes)]),
        )

    def _tables(self, kind: Kind, numbers: Sequence[int]) -> list[pa.Table]:
        """Returns segments, read at the same time."""
        with ThreadPoolExecutor(READERS) as pool:
            segments = pool.map(lambda number: self.read_segment(kind, number), numbers)
            return [table for table in segments if table is not None]

    def _check_whole(self, begun: Sequence[int], ended: Sequence[int]) -> None:
        """Checks that no segment is missing between others.

        Raises:
            ValueError: one is missing.
        """
        both = ([*begun], [*ended]) if self.in_rounds else (sorted([*begun, *ended]),)
        for kind, numbers in zip(("decisions", "rewards"), both, strict=False):
            missing = next((i for i, number in enumerate(numbers) if i != number), None)
            if missing is not None:
                name = _segment(kind, missing) if self.in_rounds else f"segment {missing}"
                raise ValueError(f"{self.path!r} lacks {name}, but holds later segments")
        if self.in_rounds and len(ended) not in (len(begun), len(begun) - 1):
            raise ValueError(
                f"{self.path!r} has decisions of {len(begun)} rounds and rewards of {len(ended)}: "
                "segments are missing"
            )


def _numbers(names: Sequence[str], kind: Kind) -> list[int]:
    """Returns the numbers of the segments of a kind, ascending."""
    matches = [re.fullmatch(rf"{kind}-(\d+)\.parquet", name) for name in names]
    return sorted(int(match[1]) for match in matches if match)


def _keys(table: pa.Table) -> list[tuple[int, str]]:
    """Returns round and id of decisions, or of what they are rewarded with."""
    columns = (table[name].to_pylist() for name in ("round", "decision_id"))
    return list(zip(*columns, strict=True))


def _segment(kind: Kind, round: int) -> str:
    return f"{kind}-{round:08d}.parquet"


def _stored_schema(kind: Kind) -> pa.Schema:
    """Returns the schema of a segment's file."""
    schema = SCHEMAS[kind]
    names = [STORED_NAMES.get(name, name) for name in schema.names]
    return pa.schema(list(zip(names, schema.types, strict=True)))


def replay(record: Record, initial: State) -> State:
    """Returns the state after all rewards of a log, with the bits that the live one had.

    Args:
        record: the log. Its contexts and propensities are the ones that were used, so no rule is
            needed.
        initial: the state before the first reward (`panoply.laser.rounds.initial_state`).

    Raises:
        ValueError: the log is damaged, or of other arms or contexts.
    """
    return update(initial, record.choice(record.ended), record.rewards_N)


def prior_hash(prior_KD: Array | None) -> str:
    """Returns a hash of Thompson's prior, by which logs of different ones are told apart."""
    prior = b"" if prior_KD is None else np.asarray(prior_KD, np.float64).tobytes()
    return hashlib.blake2b(prior, digest_size=8).hexdigest()


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
    numbers = {arm: k for k, arm in enumerate(arms)}
    return Choice(
        contexts_BD=matrix(decisions["context"]),
        arms_B=np.array([numbers[name] for name in names], np.int64),
        propensities_BK=matrix(decisions["probabilities"]),
    )


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

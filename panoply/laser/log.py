"""Log of a selector: each decision and each reward once, in immutable Parquet segments.

A round has two segments, `decisions-00000012.parquet` when it begins and `rewards-00000012.parquet`
when it ends. Each is created once, whole and synced: of two writers, on a disk or in a bucket, one
succeeds. Writing a segment again does nothing if the content is the same, and is an error if it is
not. A writer takes the log over from the one before, which is refused from then on. Reading is
concatenation; pages carry checksums. Numbers that are not finite are null.

Shapes: B decisions of a round, N decisions, K arms, D size of a context inside the bandit.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.bandit.bandits import recorded_bandit
from panoply.bandit.state import State
from panoply.bandit.update import Choice, update
from panoply.config import as_dict
from panoply.config.bandit import SIGNALS, SelectorConfig, SignalConfig
from panoply.files import reading
from panoply.laser.signals import MEASURES
from panoply.lease import Lease, take_over
from panoply.records import Records, open_records
from panoply.types import Array

Kind: TypeAlias = Literal["decisions", "rewards"]
SELECTOR_FILE = "selector.json"

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
BANDIT_KINDS_V1 = {"linucb": "lin-ucb", "epsilon_greedy": "epsilon-greedy", "fixed": "fixed-arm"}
BANDIT_SETTINGS_V1 = {
    "name": "kind",
    "first_pulls": "min_pulls",
    "noise": "reward_std",
    "strength": "prior_precision",
    "span": "period",
}
"""Words of version 1 of `selector.json`, which has a `policy` where later ones have a `bandit`."""
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

    @property
    def ended(self) -> pa.Table:
        """Decisions of the rounds that have ended, one for each reward.

        Raises:
            ValueError: decisions and rewards do not belong together.
        """
        ended = self.decisions.slice(0, self.rewards.num_rows)
        for name in ("round", "decision_id", "arm"):
            if not ended[name].equals(self.rewards[name]):
                raise ValueError(f"decisions and rewards differ in {name!r}: the log is damaged")
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

    def __init__(self, uri: str, arms: tuple[str, ...]) -> None:
        self.uri, self.arms = uri, arms
        self.records = open_records(uri)
        self.path = self.records.where
        self.lease: Lease | None = None

    def take_over(self) -> None:
        """Makes this the one writer: one that wrote before is refused on its next write."""
        self.lease = take_over(self.uri)

    def check_or_write_config(
        self, config: SelectorConfig, num_features: int, prior_hash: str
    ) -> None:
        """Writes the selector's configuration, or fails if the log was made with another one.

        Raises:
            LogDiffers: the folder holds the log of another selector.
            ValueError: the file is damaged.
        """
        settings = {"arms": self.arms, "num_features": num_features, "prior": prior_hash}
        record = json.loads(json.dumps(as_dict(config) | settings))
        if self.records.create(SELECTOR_FILE, json.dumps(record, indent=1).encode()):
            return
        old = _read_settings(self.records)
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
        num_begun, num_ended = self._num_rounds("decisions"), self._num_rounds("rewards")
        if num_ended not in (num_begun, num_begun - 1):
            raise ValueError(
                f"{self.path!r} has decisions of {num_begun} rounds and rewards of {num_ended}: "
                "segments are missing"
            )
        decisions, rewards = DECISIONS.empty_table(), REWARDS.empty_table()
        if before is not None:
            decisions, rewards = before.decisions, before.rewards
        return Record(
            self.arms,
            self._extended("decisions", decisions, num_begun),
            self._extended("rewards", rewards, num_ended),
        )

    def _extended(self, kind: Kind, before: pa.Table, num_rounds: int) -> pa.Table:
        first = before["round"][-1].as_py() + 1 if before.num_rows else 0
        with ThreadPoolExecutor(READERS) as pool:
            segments = pool.map(
                lambda round: self.read_segment(kind, round), range(first, num_rounds)
            )
            tables = [table for table in segments if table is not None]
        return pa.concat_tables([before, *tables]).combine_chunks()

    def _num_rounds(self, kind: Kind) -> int:
        """Returns the number of segments, which are 0, 1 and so on."""
        names = {n for n in self.records.names() if n.startswith(f"{kind}-")}
        names = {n for n in names if n.endswith(".parquet")}
        for i in range(len(names)):
            if _segment(kind, i) not in names:
                raise ValueError(
                    f"{self.path!r} lacks {_segment(kind, i)}, but holds later segments"
                )
        return len(names)


def _segment(kind: Kind, round: int) -> str:
    return f"{kind}-{round:08d}.parquet"


def _read_settings(records: Records) -> dict[str, Any]:
    """Returns the content of a log's `selector.json` in today's words."""
    content = records.read(SELECTOR_FILE)
    if content is None:
        raise FileNotFoundError(f"{records.where!r} is no log of a selector: no {SELECTOR_FILE}")
    with reading(Path(records.where) / SELECTOR_FILE, "start anew in another folder"):
        return _in_todays_words(json.loads(content))


def recorded_selector(uri: str) -> tuple[SelectorConfig, tuple[str, ...], int]:
    """Returns the configuration of the selector that wrote a log, its arms, and H.

    Raises:
        OSError: there is no log.
        ValueError: its bandit is none of today's.
    """
    record = _read_settings(open_records(uri))
    arms, num_features = tuple(record.pop("arms")), record.pop("num_features")
    del record["prior"]
    record["bandit"] = recorded_bandit(record["bandit"])
    record["signal"] = SignalConfig(**record["signal"])
    record["costs"] = tuple(record["costs"])
    return SelectorConfig(**record), arms, num_features


def _in_todays_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a `selector.json` as it is written today, whenever it was written."""
    renamed = dict(record)
    if "policy" not in record:
        return renamed
    # Version 1 had one class for all bandits, with a null for each setting that was not changed.
    policy: dict[str, Any] = renamed.pop("policy")
    settings: dict[str, Any] = {}
    for name, value in policy.items():
        if value is not None:
            settings[BANDIT_SETTINGS_V1.get(name, name)] = value
    settings["kind"] = BANDIT_KINDS_V1.get(settings["kind"], settings["kind"])
    signal = dict(renamed["signal"])
    signal["min_history"] = signal.pop("wait")
    if signal["name"] == "probe":
        signal["name"] = "gold_margin"
    renamed["bandit"], renamed["signal"] = as_dict(recorded_bandit(settings)), signal
    renamed["suspend_rounds"] = renamed.pop("sideline_rounds")
    return renamed


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

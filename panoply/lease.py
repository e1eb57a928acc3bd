"""Leases: at most one process writes a folder, on a disk or in a bucket, wherever it runs.

A lease is a record `.lease/00000003.json` beside what it protects. Its number, the fencing number,
is created once (`panoply.records`) and rises with every holder; the holder is the one with the
highest. It rewrites its record every few seconds. A holder that is gone loses the lease: at once
where its process was on this machine, else when its record has not changed for `EXPIRY_SECONDS`,
counted by the clock of whoever waits. Before each write a holder looks whether a higher number is
there, so one that was believed dead and goes on is refused on its next write.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from panoply.files import GUARDS, reading, remove_partial_files
from panoply.records import Records, open_records

FOLDER = ".lease"
RECORD = re.compile(r"([0-9]{8,})\.json")
"""Names of records, with their number."""
BEAT_SECONDS = 5.0
"""Time between two signs of life of a holder."""
EXPIRY_SECONDS = 30.0
"""Time without a sign of life after which a holder on another machine counts as gone."""

logger = logging.getLogger(__name__)


class LeaseLost(OSError):
    """Another process has taken over what this one writes."""


class LeaseHeld(ValueError):
    """A living process holds the lease."""


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """The process that holds a lease."""

    machine: str
    """Name that tells this machine, boot and container from others."""
    host: str
    pid: int
    started: str
    """Start of the process, which tells it from a later one of the same number."""
    since: str
    """Time in UTC at which the lease was taken."""
    token: str
    """Random word that tells this holding from any other of the process."""
    beat: int = 0
    """Number of signs of life so far."""
    released: bool = False

    @classmethod
    def this_process(cls) -> LeaseHolder:
        """Returns this process as a holder."""
        since = datetime.now(UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        host, pid = socket.gethostname(), os.getpid()
        start = _process_start(pid) or ""
        return cls(_machine(host), host, pid, start, since, secrets.token_hex(8))

    @classmethod
    def from_json(cls, content: bytes) -> LeaseHolder:
        """Reads a record."""
        return cls(**json.loads(content))

    def to_json(self) -> bytes:
        """Returns the record."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        # Whoever may write the folder writes what stands here: it is no command to a terminal.
        return f"process {self.pid!a} on {self.host!a} since {ascii(self.since)[1:-1]} UTC"


@dataclass(frozen=True, slots=True)
class Lease:
    """A fencing number; may be sent to the processes that write on behalf of the holder."""

    uri: str
    """Folder that is protected."""
    number: int

    def check(self) -> None:
        """Checks that nobody has taken over.

        Raises:
            LeaseLost: a higher number is there.
        """
        records = open_records(_lease_uri(self.uri))
        highest = max(_numbers(records), default=0)
        if not highest:
            raise LeaseLost(f"{_shown(self.uri)!r} was moved or removed while it was written")
        if highest != self.number:
            raise LeaseLost(
                f"{_shown(self.uri)!r} was taken over from this process by "
                f"{_read(records, highest)}: nothing more is written here"
            )


def take_over(uri: str) -> Lease:
    """Takes a lease whoever holds it: the latest holder wins, the others are refused."""
    return _take(uri, LeaseHolder.this_process(), lambda _: False)


def acquire(
    uri: str,
    holder: LeaseHolder,
    *,
    expiry_seconds: float = EXPIRY_SECONDS,
) -> Lease:
    """Takes a lease that no living process holds.

    Args:
        uri: folder that is protected; a path or the URI of a bucket.
        holder: this process.
        expiry_seconds: see `EXPIRY_SECONDS`.

    Raises:
        LeaseHeld: a living process holds it.
    """

    def is_alive(other: LeaseHolder) -> bool:
        if other.released:
            return False
        if other.machine == holder.machine:
            return _process_start(other.pid) == other.started
        logger.warning("waiting up to %g s for a sign of life of %s", expiry_seconds, other)
        return _changes(open_records(_lease_uri(uri)), other, expiry_seconds)

    return _take(uri, holder, is_alive)


@contextmanager
def holding(
    folder: Path,
    *,
    holder: LeaseHolder | None = None,
    beat_seconds: float = BEAT_SECONDS,
    expiry_seconds: float = EXPIRY_SECONDS,
) -> Generator[Lease]:
    """Holds a folder while the block runs: nobody else writes it, and what others left is removed.

    Args:
        folder: of a run; it is made, and removed again if nothing is written there.
        holder: this process, unless a test plays another.
        beat_seconds: see `BEAT_SECONDS`.
        expiry_seconds: see `EXPIRY_SECONDS`.

    Raises:
        LeaseHeld: a living process holds it.
    """
    holder = holder or LeaseHolder.this_process()
    is_new = not folder.exists()
    lease = acquire(str(folder), holder, expiry_seconds=expiry_seconds)
    remove_partial_files(folder)
    records, name = open_records(_lease_uri(lease.uri)), _name(lease.number)
    over = threading.Event()

    def beat() -> None:
        current = holder
        while not over.wait(beat_seconds):
            try:
                lease.check()
                current = replace(current, beat=current.beat + 1)
                records.replace(name, current.to_json())
            except LeaseLost:
                return
            except OSError:  # a full disk or a server that restarts: the next one may succeed
                continue

    thread = threading.Thread(target=beat, daemon=True, name="lease")
    thread.start()
    try:
        with guarded(lease):
            yield lease
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            lease.check()
            records.replace(name, replace(holder, released=True).to_json())
            _remove_if_alone(folder / FOLDER / name)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def guarded(lease: Lease | None) -> Generator[None]:
    """Refuses writes below the lease's folder, in this process, once somebody has taken over."""
    folder = Path(lease.uri) if lease else None
    if lease is None or folder is None or folder in GUARDS:
        yield
        return
    GUARDS[folder] = lease
    try:
        yield
    finally:
        del GUARDS[folder]


def lease_above(path: Path) -> Lease | None:
    """Returns the lease that this process holds on a folder above a path; None where it has none.

    Sent to a worker, it guards what the worker writes (`guarded`).
    """
    for folder, guard in GUARDS.items():
        if path.is_relative_to(folder) and isinstance(guard, Lease):
            return guard
    return None


def _take(uri: str, holder: LeaseHolder, is_alive: Callable[[LeaseHolder], bool]) -> Lease:
    """Creates the record of the next number, unless the holder of the highest is alive."""
    records = open_records(_lease_uri(uri))
    while True:
        numbers = _numbers(records)
        highest = max(numbers, default=0)
        other = _read(records, highest)
        if other is not None and is_alive(other):
            raise LeaseHeld(
                f"{_shown(uri)!r} is written by {other}: wait until it is over or end it, or take "
                "another `--out`"
            )
        content = holder.to_json()
        name = _name(highest + 1)
        # A request that was repeated after a lost answer finds its own record.
        if records.create(name, content) or records.read(name) == content:
            for number in numbers:
                records.remove(_name(number))
            return Lease(uri, highest + 1)


def _changes(records: Records, other: LeaseHolder, seconds: float) -> bool:
    """Returns whether a holder gives a sign of life within some seconds."""
    ends = time.monotonic() + seconds
    number = max(_numbers(records), default=0)
    while time.monotonic() < ends:
        time.sleep(min(1.0, seconds / 10))
        newest = max(_numbers(records), default=0)
        record = _read(records, newest)
        if newest != number or (record is not None and record != other):
            return record is not None and not record.released
    return False


def _numbers(records: Records) -> list[int]:
    matches = map(RECORD.fullmatch, records.names())
    return [int(match[1]) for match in matches if match]


def _read(records: Records, number: int) -> LeaseHolder | None:
    content = records.read(_name(number))
    if content is None:
        return None
    path = Path(records.where) / _name(number)
    with reading(path, "delete it when no process writes that folder"):
        return LeaseHolder.from_json(content)


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _lease_uri(uri: str) -> str:
    path, mark, query = uri.partition("?")
    return f"{path.rstrip('/')}/{FOLDER}{mark}{query}"


def _shown(uri: str) -> str:
    return uri.partition("?")[0]


def _remove_if_alone(record: Path) -> None:
    """Removes the record of a run that wrote nothing: a mistyped command leaves no trace."""
    folder = record.parent.parent
    if {path.name for path in folder.iterdir()} == {FOLDER}:
        record.unlink()
        record.parent.rmdir()


def _machine(host: str) -> str:
    """Returns host, boot and process namespace: within one, a process number is one process."""
    parts = [host]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """Returns when a living process of this machine started, in ticks; None where it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _is_running(pid)
    except ProcessLookupError:
        return None
    state, start = after_name[0], after_name[19]
    return None if state in "ZX" else start


def _is_running(pid: int) -> str | None:
    """Returns an empty start for a living process, on systems that do not tell when it started."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""

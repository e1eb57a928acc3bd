"""Calls of MLflow: waits that end soon, no output of its own, and one sentence for what fails."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""A server that is gone costs 5 to 35 s, where MLflow alone waits for 4 to 20 minutes. What the
environment says goes before."""
MODEL_SECONDS = "120"
"""The timeout for the files of a model, which a server may hand on before it answers."""
LOUD = ("mlflow", "alembic", "urllib3.connectionpool")
"""Loggers that print what is raised anyway."""
MOST_CHARACTERS = 300


class TrackerError(ValueError):
    """A failure of MLflow, of its database, its server or its store of artifacts, as a sentence."""


@contextmanager
def reaching(
    uri: str, way_out: str = "", timeout: str = SETTINGS["MLFLOW_HTTP_REQUEST_TIMEOUT"]
) -> Generator[None]:
    """Keeps MLflow quiet and its waits short, and makes a sentence of what it raises.

    Args:
        uri: address of MLflow, as the sentence names it.
        way_out: what to do, at the end of the sentence.
        timeout: seconds that one request may take.

    Raises:
        TrackerError: anything but an interrupt. MLflow's stores and their plugins raise errors of
            many kinds, and none of them may end a finished run.
    """
    loggers = [logging.getLogger(name) for name in LOUD]
    levels = [logger.level for logger in loggers]
    settings = SETTINGS | {"MLFLOW_HTTP_REQUEST_TIMEOUT": timeout}
    changed = {name: value for name, value in settings.items() if name not in os.environ}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    os.environ.update(changed)
    try:
        yield
    except TrackerError:
        raise
    except Exception as error:
        raise TrackerError(
            f"MLflow at {readable(uri)} failed ({_reason(error)}){way_out}"
        ) from error
    finally:
        for name in changed:
            os.environ.pop(name, None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def alone(uri: str) -> Generator[None]:
    """Lets one process at a time make a SQLite database: of several at once, all but one fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(f"{file}.lock", os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        # What SQLite cannot open, MLflow would try for minutes.
        with closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA schema_version")
        yield
    finally:
        os.close(handle)


def readable(address: str) -> str:
    """Returns text without what may be secret in its addresses: names, passwords, parameters."""
    return re.sub(r"\?\S+", "", re.sub(r"://[^/\s]*@", "://", address))


def _reason(error: Exception) -> str:
    """Returns the first line of an error, or the cause that an HTTP client puts at its end."""
    text = str(error).strip() or type(error).__name__
    if cause := re.search(r"""\(Caused by \w+\(["']?(.*?)["']?\)\)+$""", text):
        return readable(cause[1])
    line = re.split(r"\.? Response \w+: .?<", text.splitlines()[0])[0]  # a page of HTML
    return readable(line[:MOST_CHARACTERS])

"""Calls of MLflow, with short timeouts, no output, and one sentence for a failure."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mlflow.exceptions import MlflowException

from panoply.secret import without_secrets

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Defaults with which a lost server costs 5 to 35 s, where MLflow alone waits for 4 to 20 minutes.
Variables of the environment take precedence."""
MODEL_SECONDS = "120"
"""Timeout for the files of a model, which a server may pass on before it answers."""
LOUD = ("mlflow", "alembic", "urllib3.connectionpool")
"""Loggers that print errors which are raised anyway."""
MAX_CHARACTERS = 300


class TrackerError(ValueError):
    """A failure of MLflow, of its database, its server or its artifact store, in one sentence."""


@contextmanager
def mlflow_call(
    uri: str, advice: str = "", timeout: str = SETTINGS["MLFLOW_HTTP_REQUEST_TIMEOUT"]
) -> Generator[None]:
    """Keeps MLflow quiet and its waits short, and turns its errors into one sentence.

    Args:
        uri: address of MLflow, named in the sentence.
        advice: end of the sentence.
        timeout: seconds that one request may take.

    Raises:
        TrackerError: MLflow raised any error except an interrupt. Its stores and their plugins
            raise many kinds, and none of them may end a finished run.
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
            f"MLflow at {without_secrets(uri)} failed ({_reason(error)}){advice}"
        ) from error
    finally:
        for name in changed:
            os.environ.pop(name, None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def database_lock(uri: str) -> Generator[None]:
    """Lets one process at a time create a SQLite database: of several, all but one would fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(f"{file}.lock", os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        # Some file systems have no locks.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # A file that SQLite cannot open, MLflow would retry for minutes.
        with closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA schema_version")
        yield
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    """Returns the first line of an error, or the cause that an HTTP client puts at its end."""
    text = str(error).strip() or type(error).__name__
    if cause := re.search(r"""\(Caused by \w+\(["']?(.*?)["']?\)\)+$""", text):
        return without_secrets(cause[1])
    # Some servers answer with a page of HTML.
    line = re.split(r"\.? Response \w+: .?<", text.splitlines()[0])[0]
    return without_secrets(line[:MAX_CHARACTERS])


@contextmanager
def may_exist() -> Generator[None]:
    """Ignores that another run created the name first."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise

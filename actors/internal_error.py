"""Unexpected errors: a generic message to the client, class and place to the log, never a text."""

from __future__ import annotations

import logging
import traceback

from panoply.wire.request import RequestError

LOG = logging.getLogger("ray.serve")
"""Logger of Ray Serve, which writes to the log of the replica."""


def internal_error(what: str, error: Exception) -> RequestError:
    """Logs an error by its class and place, and returns the error for the client.

    Its text and its traceback are left out: they may hold what a client sent.

    Args:
        what: the part that failed.
        error: what it raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "?"
    kind = type(error).__name__
    LOG.error("%s failed: %s at %s", what, kind, place)
    return RequestError(
        f"internal error: {what} failed with {kind}; the server's log says where", 500
    )

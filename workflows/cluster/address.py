"""Addresses of a server: a free port, and the URL at which this very run answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import httpx2

NUM_CHECKS = 16
"""Requests that check an address, each on a connection of its own: where two servers listen at one
port, each answers about half of them."""
ANSWER_SECONDS = 30.0
"""Time limit for the first answer of a server that is up."""


@contextmanager
def reserved(host: str, port: int) -> Generator[int]:
    """Yields a port at which nobody listens, and at which nobody else reserves meanwhile.

    Ray Serve lets every process of its user listen at its port, without notice. So the port is
    first bound alone, and then opened to the processes of this user.

    Args:
        host: an address of this machine.
        port: 0 takes any that is free.

    Raises:
        OSError: the port is in use, or the address is not one of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
        # Connections of a server that has just ended are in nobody's way.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port))
        except OSError as error:
            raise OSError(
                f"cannot listen at {host}:{port}: {error.strerror}. Stop the program that listens "
                "there, or take another `--port` or `--host`"
            ) from error
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield holder.getsockname()[1]


def url(host: str, port: int, route: str) -> str:
    """Returns an HTTP address that ends in a slash."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{route.rstrip('/')}/"


def answering(urls: Sequence[str], run: str) -> str:
    """Returns the first address at which a run answers, and nobody else does.

    Args:
        urls: addresses of one server, each ending in a slash.
        run: id of the run, which the server's `/health` shows.

    Raises:
        ConnectionError: somebody else answers there as well, or nobody does.
    """
    until = time.monotonic() + ANSWER_SECONDS
    headers = {"Connection": "close"}
    with httpx2.Client(headers=headers, trust_env=False, timeout=5.0) as client:
        while time.monotonic() < until:
            for address in urls:
                if _run_at(address, client) == run:
                    if {_run_at(address, client) for _ in range(NUM_CHECKS)} - {run, None}:
                        raise ConnectionError(
                            f"{address} is answered by another server as well: stop that one, or "
                            "take another `--port`"
                        )
                    return address
            time.sleep(0.2)
    raise ConnectionError(
        f"no answer of this server at {' or '.join(urls)}: another one listens there, or this "
        "machine does not reach the nodes that serve (`--host 0.0.0.0` opens them)"
    )


def _run_at(address: str, client: httpx2.Client) -> str | None:
    """Returns the id of the run that answers.

    It is empty where what answers has none, and None where nothing does.
    """
    try:
        return str(client.get(f"{address}health").json()["run"])
    except httpx2.HTTPError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""

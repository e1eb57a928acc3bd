"""Way into the Ray cluster of a server of this machine, for the commands that change the server.

Such a cluster listens on loopback and asks for a token that its server made. While the server runs,
its address and token lie in a file that its user alone can read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN = "RAY_AUTH_TOKEN"


def _folder() -> Path:
    root = os.environ.get("PANOPLY_CACHE") or Path.home() / ".cache" / "panoply"
    # Users may share a cache, and not what opens their servers.
    return Path(root) / f"servers-{os.getuid()}"


@contextmanager
def joinable(port: int, address: str) -> Generator[None]:
    """Lets commands of this user join a server's cluster while the block runs.

    Args:
        port: HTTP port of the server.
        address: address of its cluster.
    """
    file = _folder() / f"{port}.json"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.unlink(missing_ok=True)  # of a server that was killed
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump({"address": address, "token": os.environ.get(TOKEN, "")}, out)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def join(port: int) -> None:
    """Sets the environment in which Ray joins a server's cluster; `RAY_ADDRESS` goes before.

    Args:
        port: HTTP port of the server.

    Raises:
        FileNotFoundError: no server of this user listens there.
    """
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        return
    entry: dict[str, str] = {}
    with suppress(OSError, ValueError), (_folder() / f"{port}.json").open() as file:
        # One that somebody else put there would lead into a cluster of theirs.
        if os.fstat(file.fileno()).st_uid == os.getuid():
            entry = json.load(file)
    if not entry:
        ports = sorted(file.stem for file in _folder().glob("*.json"))
        raise FileNotFoundError(
            f"no server that you started on this machine listens at port {port}; there are servers "
            f"at {ports}. Name one by `--port`, or its cluster by RAY_ADDRESS"
        )
    os.environ["RAY_ADDRESS"] = entry["address"]
    os.environ["RAY_AUTH_MODE"] = "token"
    if entry["token"]:
        os.environ[TOKEN] = entry["token"]

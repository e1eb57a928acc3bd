"""Small files that may exist once, in a folder on a disk or in a bucket.

Of any number of writers that create a record of one name at the same time, exactly one succeeds: by
a hard link on a disk, by a conditional request (`If-None-Match: *`) in a bucket. Keys of a bucket
come from the environment or the node's role.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from panoply.files import create_once, whole_file


class Records(Protocol):
    """The records of one folder, by name."""

    where: str

    def create(self, name: str, content: bytes) -> bool:
        """Creates a record; returns False where there is one of that name.

        Raises:
            OSError: the folder or bucket cannot be written.
        """
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Writes a record that only one process writes."""
        ...

    def read(self, name: str) -> bytes | None:
        """Returns the content of a record; None where there is none."""
        ...

    def names(self) -> list[str]:
        """Returns the names of all records, sorted."""
        ...

    def remove(self, name: str) -> None:
        """Removes a record, if it is there."""
        ...


def open_records(uri: str) -> Records:
    """Returns the records in a folder, which is made with the first one.

    Args:
        uri: a path, or a URI: `file:///PATH`, `s3://BUCKET/PATH`, `gs://BUCKET/PATH`. As in
            pyarrow, `?endpoint_override=HOST:PORT&scheme=http&region=NAME` names another server.
    """
    url = urlsplit(uri)
    if url.scheme in ("", "file"):
        path = Path(unquote(url.path) if url.scheme else uri).expanduser().absolute()
        return FolderRecords(path)
    return _open_bucket(url._replace(query="").geturl().rstrip("/"), url.query)


@cache
def _open_bucket(uri: str, query: str) -> BucketRecords:
    """Returns the records below a prefix; connections to the server are kept."""
    return BucketRecords(uri, {name: values[-1] for name, values in parse_qs(query).items()})


class FolderRecords:
    """Records on a disk that all writers share."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)

    def create(self, name: str, content: bytes) -> bool:
        """Creates a record; returns False where there is one of that name."""
        self.path.mkdir(parents=True, exist_ok=True)
        return create_once(self.path / name, content)

    def replace(self, name: str, content: bytes) -> None:
        """Writes a record that only one process writes."""
        with whole_file(self.path / name) as partial:
            partial.write_bytes(content)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a record; None where there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Returns the names of all records, sorted."""
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    def remove(self, name: str) -> None:
        """Removes a record, if it is there."""
        (self.path / name).unlink(missing_ok=True)


class BucketRecords:
    """Records in a bucket, below a prefix."""

    def __init__(self, uri: str, options: Mapping[str, str]) -> None:
        from obstore.store import from_url

        config: dict[str, Any] = {}
        endpoint, scheme = options.get("endpoint_override", ""), options.get("scheme", "https")
        if endpoint:
            config["endpoint"] = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
        if "region" in options:
            config["region"] = options["region"]
        allows_http = config.get("endpoint", "").startswith("http://")
        self.where = uri
        self.store = from_url(uri, config=config, client_options={"allow_http": allows_http})  # pyright: ignore[reportCallIssue, reportArgumentType]

    def create(self, name: str, content: bytes) -> bool:
        """Creates a record; returns False where there is one of that name."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            obstore.put(self.store, name, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except BaseError as error:
            raise self._failed("be written", error) from error
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Writes a record that only one process writes."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            obstore.put(self.store, name, content, use_multipart=False)
        except BaseError as error:
            raise self._failed("be written", error) from error

    def read(self, name: str) -> bytes | None:
        """Returns the content of a record; None where there is none."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            return bytes(obstore.get(self.store, name).bytes())
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._failed("be read", error) from error

    def names(self) -> list[str]:
        """Returns the names of all records, sorted."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            listed = obstore.list_with_delimiter(self.store)["objects"]
        except BaseError as error:
            raise self._failed("be listed", error) from error
        return sorted(entry["path"].rpartition("/")[2] for entry in listed)

    def remove(self, name: str) -> None:
        """Removes a record, if it is there."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            obstore.delete(self.store, name)
        except (FileNotFoundError, BaseError):  # it is gone, or somebody else removes it
            return

    def _failed(self, what: str, error: Exception) -> OSError:
        reason = str(error).splitlines()[0]
        return OSError(f"{self.where!r} cannot {what}: {reason:.300}")

"""Rows of text formats: JSON, JSON lines and CSV, as programs really write them.

A record may have a comma behind it, several may stand on a line or one on several lines, and a
CSV file may have semicolons; what cannot be read is a row with a reason, or one sentence.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, cast

from panoply.data.data_file import DataFile, Rows, Unfit, Unreadable, damaged
from panoply.data.parse import NOT_RATED, TRUTHS
from panoply.data.rows import Row

LONGEST_LINE = 64 * 2**20
"""Maximum bytes of a line: a megabyte of a compressed file may become a line of a gigabyte."""
LONGEST_DOCUMENT = 2 * 2**30
"""Maximum bytes of a file that is one JSON value, and so is read whole."""
UTF8_MARK = b"\xef\xbb\xbf"
NO_TEXT = {
    b"\xff\xfe": "it is UTF-16: save it as UTF-8",
    b"\xfe\xff": "it is UTF-16: save it as UTF-8",
    b"\x1f\x8b": "it is compressed by gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd: let its name end in .zst",
    b"PK\x03\x04": "it is a ZIP archive: unpack it",
}
"""Beginnings of files that are no text in UTF-8, and what to do about them."""


@contextmanager
def _open_utf8(file: DataFile) -> Generator[IO[bytes]]:
    """Opens a text format behind its byte order mark; what its reader raises names the file.

    Raises:
        ValueError: it is no text in UTF-8, damaged, or cut short.
    """
    try:
        with file.open_text() as text:
            start = text.peek(4)[:4]  # pyright: ignore[reportAttributeAccessIssue]
            for mark, advice in NO_TEXT.items():
                if start.startswith(mark):
                    raise Unfit(file, advice)
            if start.startswith(UTF8_MARK):
                text.read(len(UTF8_MARK))
            yield text
    except Unfit:
        raise
    except RecursionError as error:
        raise damaged(file, ValueError("it is nested too deeply")) from error
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise damaged(file, error) from error


# JSON


def json_rows(file: DataFile, columns: list[str] | None) -> Rows:
    """Yields the records of JSON lines, or of a JSON document, with all their columns."""
    with _open_utf8(file) as text:
        lines = _lines(text)
        first = next(lines, b"")
        # A JSON file of one line may hold all records in it.
        is_cut = len(first) > LONGEST_LINE
        second = next(lines, b"") if file.suffix == ".json" and not is_cut else b""
        if _begins_document(first, file.suffix, is_alone=not second):
            content = first + second + text.read(LONGEST_DOCUMENT)
            if len(content) > LONGEST_DOCUMENT:
                raise Unfit(
                    file,
                    f"it is one value of more than {LONGEST_DOCUMENT:,} bytes: write one record a "
                    "line",
                )
            yield from map(_record, _document(content, file))
            return
        for line in chain(filter(None, (first, second)), lines):
            yield from _line(line)


def _lines(text: IO[bytes]) -> Iterator[bytes]:
    """Yields the lines that are not blank, from their first character on.

    Of one that is longer than any record, its beginning.
    """
    while line := text.readline(LONGEST_LINE + 1):
        if line := line.lstrip():
            yield line


def _begins_document(line: bytes, suffix: str, *, is_alone: bool) -> bool:
    """Returns whether a line begins a list of records, or an object over several lines."""
    if suffix != ".json":
        return line.startswith(b"[") or line.strip() == b"{"
    if len(line) > LONGEST_LINE:
        return True
    is_record = not any(isinstance(record, Unreadable) for record in _line(line))
    return is_alone or line.startswith(b"[") or not is_record


def _document(content: bytes, file: DataFile) -> list[object]:
    """Returns the records of a whole JSON document.

    It is a list of records, an object that holds one such list, or records behind each other.

    Raises:
        ValueError: it is none of these.
    """
    text = content.decode()
    try:
        values = _values(text)
    except json.JSONDecodeError as error:
        if LAST_COMMA.search(text):
            raise Unfit(file, "a comma stands behind its last record: take it out") from error
        raise
    if len(values) > 1:
        return values
    value = values[0] if values else []
    if isinstance(value, list):
        return cast("list[object]", value)
    record = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    lists = [name for name, held in record.items() if _holds_records(held)]
    lists = lists or [name for name, held in record.items() if held == []]
    if {"chosen", "rejected", "prompt"}.isdisjoint(record) and lists:
        if len(lists) > 1:
            raise Unfit(file, f"it holds several lists ({', '.join(lists)}): one file for each")
        return cast("list[object]", record[lists[0]])
    if record and all(map(_is_column, record.values())):
        raise Unfit(
            file,
            "it holds columns and no records: write one record a line (in pandas, "
            "`to_json(FILE, orient='records', lines=True)`)",
        )
    return [value]


def _holds_records(value: object) -> bool:
    """Returns whether a value is a list of records, and none of messages, which a row may have."""
    entries = cast("list[object]", value) if isinstance(value, list) else []
    return any(isinstance(entry, dict) and not _is_message(entry) for entry in entries)


def _is_message(record: dict[str, object]) -> bool:
    return record.keys() >= {"role", "content"} or record.keys() >= {"from", "value"}


def _is_column(value: object) -> bool:
    """Returns whether a value is a column, as pandas writes it: a list, or an object by index."""
    if isinstance(value, dict):
        return "0" in value
    entries = cast("list[object]", value) if isinstance(value, list) else [{}]
    return not any(isinstance(entry, dict) for entry in entries)


def _line(line: bytes) -> list[Row | Unreadable]:
    """Returns the record of a line; several, or one with a comma behind it, are records too.

    Raises:
        ValueError: it is longer than any record.
    """
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a line has more than {LONGEST_LINE:,} bytes")
    try:
        return list(map(_record, _values(line.decode())))
    except UnicodeDecodeError:
        return [
            Unreadable(line.decode(errors="replace"), "line is no UTF-8: save the file as UTF-8")
        ]
    except (ValueError, RecursionError):  # not JSON, or nested without end
        return [Unreadable(line.decode())]


def _values(text: str) -> list[object]:
    """Returns the JSON values of a text, with white space or a comma behind each.

    Raises:
        ValueError: it holds something else.
    """
    values: list[object] = []
    at, text = 0, text.strip()
    while at < len(text):
        value, end = JSON.raw_decode(text, at)
        values.append(value)
        at = BEHIND.match(text, end).end()  # pyright: ignore[reportOptionalMemberAccess] (matches "")
    return values


def _object(pairs: list[tuple[str, object]]) -> object:
    """Returns a JSON object, of which Python would keep the last value of a repeated key."""
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    return Unreadable(json.dumps(list(record)), "a key stands twice in a record")


JSON = json.JSONDecoder(object_pairs_hook=_object)
LAST_COMMA = re.compile(r"\},\s*\]\s*$")
BEHIND = re.compile(r"\s*,?\s*")


def _record(value: object) -> Row | Unreadable:
    if isinstance(value, Unreadable):
        return value
    return cast("Row", value) if isinstance(value, dict) else Unreadable(json.dumps(value))


def json_columns(rows: Rows) -> dict[str, bool]:
    """Returns whether each column of some rows holds a number anywhere, by name."""
    columns: dict[str, bool] = {}
    for row in rows:
        if isinstance(row, Unreadable):
            continue
        for name, value in row.items():
            if not columns.get(name):
                columns[name] = isinstance(value, (bool, int, float))
    return columns


# CSV


def csv_rows(file: DataFile, columns: list[str] | None) -> Rows:
    """Yields the rows by the names in the first line; all values are texts, an empty one None."""
    csv.field_size_limit(sys.maxsize)
    # Bytes that are no UTF-8 become surrogates, which quarantine their row.
    with _open_utf8(file) as content, io.TextIOWrapper(
        content, "utf-8", "surrogateescape", newline=""
    ) as text:  # fmt: skip
        first = next(filter(str.strip, text), "")
        # Excel writes semicolons where a comma is the decimal point.
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(
            chain([first], text),
            delimiter=delimiter,
            # Else a quote behind the space is a character of its cell.
            skipinitialspace=f"{delimiter} " in first,
            strict=True,
        )
        try:
            names = [name.strip() for name in next(reader, [])]
            if len(set(names)) < len(names):
                raise Unfit(file, f"its first line names a column twice: {names}")
            for cells in reader:
                if len(cells) == len(names):
                    yield {n: cell or None for n, cell in zip(names, cells, strict=True)}
                elif cells:
                    reason = f"row has {len(cells)} cells, and the first line {len(names)}"
                    yield Unreadable(delimiter.join(cells), reason)
        except csv.Error as error:
            raise Unfit(
                file,
                f"it is no CSV at line {reader.line_num} ({error}): fetch it again if it is cut "
                "short, and write a quote inside a cell twice",
            ) from error


def csv_columns(rows: Rows) -> dict[str, bool]:
    """Finds the columns; those hold numbers where all that is not empty or "N/A" is a number."""
    has_number: dict[str, bool] = {}
    has_text: dict[str, bool] = {}
    for row in rows:
        if isinstance(row, Unreadable):
            continue
        for name, value in row.items():
            is_text = has_text.setdefault(name, False)
            if value is None or is_text or str(value).strip() in NOT_RATED:
                continue
            has_text[name] = not _is_numeral(str(value))
            has_number[name] = True
    return {name: name in has_number and not text for name, text in has_text.items()}


def _is_numeral(text: str) -> bool:
    if text.strip().lower() in TRUTHS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True

"""The documents of a file range, one at a time, and why some of them cannot be read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ctxext.data.sources.columnar import SUFFIXES, read_values
from ctxext.prepare.chunks import FileRange

MAX_LINE_BYTES = 1 << 28
"""A longer JSONL line is a file without line ends, which would fill the memory."""


class RawDocument(NamedTuple):
    """A line, a row or a text file: its text, "" if it has none, or the `reason` for rejecting it.

    number: of the line or row within the range, from 0; size: bytes read for it.
    """

    number: int
    text: str
    reason: str
    size: int


def raw_documents(file_range: FileRange, field: str) -> Iterator[RawDocument]:
    """Every document of the range, in order; blank JSONL lines are documents without text."""
    path = Path(file_range.path)
    if path.suffix in SUFFIXES:
        values = read_values(path, field, file_range.first, file_range.stop)
        for number, value in enumerate(values):
            if value is None:
                yield RawDocument(number, "", f'no text in the column "{field}"', 0)
            else:
                yield RawDocument(number, *_decode(value), len(value))
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, file_range.first, file_range.stop)):
                yield RawDocument(number, *_parse(line, field), len(line))
    else:
        data = path.read_bytes()
        yield RawDocument(0, *_decode(data), len(data))


def _lines(file: BinaryIO, first: int, stop: int) -> Iterator[bytes]:
    """The lines that begin in [first, stop), each cut off after MAX_LINE_BYTES."""
    position = first
    if first:
        file.seek(first - 1)
        position = first - 1 + _skip_line(file)
    while position < stop:
        line = file.readline(MAX_LINE_BYTES)
        if not line:
            return
        yield line
        position += len(line)
        if not line.endswith(b"\n"):
            position += _skip_line(file)


def _skip_line(file: BinaryIO) -> int:
    """Go to the start of the next line; returns the bytes passed over."""
    passed = 0
    while part := file.readline(1 << 20):
        passed += len(part)
        if part.endswith(b"\n"):
            break
    return passed


def _decode(data: bytes) -> tuple[str, str]:
    """(text, reason for rejecting it)."""
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {error.start})"


def _parse(line: bytes, field: str) -> tuple[str, str]:
    """(text, reason for rejecting it) of a JSONL line."""
    if len(line) >= MAX_LINE_BYTES:
        return "", f"a line of {MAX_LINE_BYTES:,} bytes or more"
    text, reason = _decode(line)
    if reason or not text.strip():
        return "", reason
    try:
        entry = json.loads(text)
    except RecursionError:
        return "", "not JSON (nested too deeply)"
    except ValueError as error:  # also for a number with too many digits
        return "", f"not JSON ({getattr(error, 'msg', error)})"
    if not isinstance(entry, dict):
        return "", f"not a JSON object but {_kind(entry)}"
    if field not in entry:
        return "", f'no key "{field}"'
    value = entry[field]
    if not isinstance(value, str):
        return "", f'"{field}" is {_kind(value)}, not text'
    if not _is_unicode(value):
        return value, f'"{field}" holds half a surrogate pair, which is not a character'
    return value, ""


def _kind(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

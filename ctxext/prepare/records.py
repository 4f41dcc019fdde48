"""The documents of a piece, one at a time, and what is wrong with those that are none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ctxext.data.columnar import SUFFIXES, values
from ctxext.prepare.chunks import Piece

LONGEST = 1 << 28
"""Bytes of a JSONL line; a longer one is no document but a file without line ends, which would fill the memory."""


class Record(NamedTuple):
    """A line, a row or a text file: its text, "" if it has none, or the `reason` why it cannot be had.

    number: of the line or row within the piece, from 0; size: bytes read for it.
    """

    number: int
    text: str
    reason: str
    size: int


def records(piece: Piece, field: str) -> Iterator[Record]:
    """Every record of the piece, in order; blank JSONL lines are records without text."""
    path = Path(piece.path)
    if path.suffix in SUFFIXES:
        for number, value in enumerate(values(path, field, piece.first, piece.stop)):
            text, reason = (
                ("", f'no text in the column "{field}"') if value is None else _decoded(value)
            )
            yield Record(number, text, reason, len(value or b""))
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, piece.first, piece.stop)):
                yield Record(number, *_parsed(line, field), len(line))
    else:
        data = path.read_bytes()
        yield Record(0, *_decoded(data), len(data))


def _lines(file: BinaryIO, first: int, stop: int) -> Iterator[bytes]:
    """The lines that begin in [first, stop), each cut off behind LONGEST bytes."""
    position = first
    if first:
        file.seek(first - 1)
        position = first - 1 + _skip(file)
    while position < stop:
        line = file.readline(LONGEST)
        if not line:
            return
        yield line
        position += len(line) + (_skip(file) if not line.endswith(b"\n") else 0)


def _skip(file: BinaryIO) -> int:
    """To the start of the next line; bytes passed over."""
    passed = 0
    while part := file.readline(1 << 20):
        passed += len(part)
        if part.endswith(b"\n"):
            break
    return passed


def _decoded(data: bytes) -> tuple[str, str]:
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {error.start})"


def _parsed(line: bytes, field: str) -> tuple[str, str]:
    if len(line) >= LONGEST:
        return "", f"a line of {LONGEST:,} bytes or more"
    text, reason = _decoded(line)
    if reason or not text.strip():
        return "", reason
    try:
        row = json.loads(text)
    except RecursionError:
        return "", "not JSON (nested too deeply)"
    except ValueError as error:  # also of a number with too many digits
        return "", f"not JSON ({getattr(error, 'msg', error)})"
    if not isinstance(row, dict):
        return "", f"not a JSON object but {_kind(row)}"
    if field not in row:
        return "", f'no key "{field}"'
    value = row[field]
    if not isinstance(value, str):
        return "", f'"{field}" is {_kind(value)}, not text'
    return value, "" if _is_unicode(
        value
    ) else f'"{field}" holds half a surrogate pair, which is no character'


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

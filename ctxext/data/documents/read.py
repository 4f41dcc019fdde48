"""The documents of a file, one at a time, and why some of them cannot be read."""

import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ctxext.data.documents.columnar import read_records, read_values
from ctxext.data.documents.compression import Stream, open_bytes
from ctxext.data.documents.conversations import (
    Unusable,
    conversation_text,
    has_record_columns,
    is_record,
)
from ctxext.data.documents.field import Field
from ctxext.data.documents.files import Found
from ctxext.data.documents.kinds import Kind, kind_of, unknown_kind

MAX_DOCUMENT_BYTES = 1 << 30
"""A longer line is a file without line ends, which would fill the memory; so would a longer text,
or a longer file of JSON."""
BOM = b"\xef\xbb\xbf"
BEGINNING = 100
"""Documents that show whether a file is what it should be."""
OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
"""UTF-16, of either byte order, and UTF-32. The little-endian one begins like UTF-16."""


class Document(NamedTuple):
    """A line, a row, an entry or a whole file: its text, or the `reason` why it has none.

    Without text and reason it is empty. number: of the line, row or entry within what is read, from
    0; size: bytes read for it.
    """

    number: int
    text: str
    reason: str
    size: int


def read_file(
    path: Path, field: Field, *, first: int = 0, stop: int | None = None
) -> Iterator[Document]:
    """Every document of a file, in order; what is blank is a document without text.

    [first, stop): a part of it, in bytes of uncompressed JSON lines, which belong to the part in
    which they begin, or in row groups of a table; other files are read as a whole. Raises
    ValueError for a file that cannot be read.
    """
    kind = kind_of(path)
    if kind is None:
        raise ValueError(unknown_kind(path))
    if field.is_chat and kind.form == "plain":
        raise ValueError(
            f"{path} is a plain text, and chat or instruction records are asked for: name the "
            "files that hold them"
        )
    if kind.form == "table" and field.is_chat:
        for number, record in enumerate(read_records(path, field, first, stop)):
            yield Document(number, *_conversation(record, field), 0)
        return
    if kind.form == "table":
        for number, value in enumerate(read_values(path, field, first, stop)):
            if value is None:
                yield Document(number, "", f'no text in the column "{field.name}"', 0)
            else:
                yield Document(number, *_checked(*decode(value)), len(value))
        return
    with open_bytes(path, kind.compression) as stream:
        if first == 0:
            start = stream.file.peek(4)  # pyright: ignore[reportAttributeAccessIssue]
            if reason := _other_encoding(start):
                raise ValueError(f"{path}: {reason}")
        match kind.form:
            case "lines":
                # Positions in a compressed file are not those of its lines.
                lines = _lines(stream.file, first, stop if kind.is_divisible else None)
                for number, (line, size) in enumerate(lines):
                    text, reason = _parse_line(line, field)
                    if reason and line is not None and first == number == 0:
                        reason += _hint_at_json(line, kind)
                    yield Document(number, text, reason, stream.size_on_disk(size))
            case "delimited":
                delimiter = "," if kind.suffix == ".csv" else "\t"
                yield from _rows(path, stream, field, delimiter)
            case "json":
                entries = _entries(_whole(stream.file), field)
                size = path.stat().st_size // len(entries)
                for number, (text, reason) in enumerate(entries):
                    yield Document(number, text, reason, size)
            case "plain":
                data = _whole(stream.file)
                content = _too_large("a text") if data is None else plain_text(data)
                yield Document(0, *_checked(*content), path.stat().st_size)


def read_texts(found: Found, field: Field) -> Iterator[str]:
    """The texts of `read_documents`."""
    return (document.text for _, document in read_documents(found, field))


def read_documents(found: Found, field: Field) -> Iterator[tuple[Path, Document]]:
    """All documents, each with its file; empty ones are left out.

    Raises ValueError with the file and the line, row or entry of the first that is broken, and if
    there is no text at all.
    """
    is_empty = True
    for path in found.files.values():
        for document in read_file(path, field):
            if document.reason:
                raise _broken(path, document)
            if document.text:
                is_empty = False
                yield path, document
    if is_empty:
        raise _empty(found)


def check_texts(found: Found, field: Field) -> None:
    """Read everything once. Raises ValueError as `read_texts` does."""
    for _ in read_texts(found, field):
        pass


def check_beginnings(found: Found, field: Field, *, strict: bool = True) -> None:
    """Read the first documents of every file. Raises ValueError for a broken one, or without text.

    Unless `strict`, broken ones are an error only if no file has a readable document among its
    first; a plain text, the only document of its file, counts as readable.
    """
    broken: list[ValueError] = []
    has_text = False
    may_have_text = False
    for path in found.files.values():
        num_read = 0
        for document in itertools.islice(read_file(path, field), BEGINNING):
            num_read += 1
            if not strict and (document.text or not location(path, 0)):
                return
            if document.reason:
                broken.append(_broken(path, document))
                if strict:
                    raise broken[0]
            has_text |= bool(document.text)
        may_have_text |= num_read == BEGINNING
    if broken:
        raise broken[0]
    if not has_text and not may_have_text:
        raise _empty(found)


def _empty(found: Found) -> ValueError:
    return ValueError(f"{found.root} holds no document with text")


def _broken(path: Path, document: Document) -> ValueError:
    return ValueError(f"{place_of(path, document)}: {document.reason}")


def place_of(path: Path, document: Document) -> str:
    """A file and the line, row or entry in it, in words."""
    place = location(path, document.number)
    return f"{path}, {cite(place)}" if place else str(path)


def location(path: Path, number: int) -> dict[str, int]:
    """The line, entry or row that a document is, each counted from 1.

    A header is not a row, and a plain text is one document.
    """
    kind = kind_of(path)
    assert kind is not None
    match kind.form:
        case "lines":
            return {"line": number + 1}
        case "json":
            return {"entry": number + 1}
        case "plain":
            return {}
        case _:
            return {"row": number + 1}


def cite(place: Mapping[str, Any]) -> str:
    """A place of `location` in words."""
    if "row" in place:
        return f"row {place['row']} (counted from 1)"
    return "".join(f"{unit} {place[unit]}" for unit in ("line", "entry") if unit in place)


def decode(data: bytes) -> tuple[str, str]:
    """(text, reason for rejecting it)."""
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {error.start})"


def _other_encoding(start: bytes) -> str:
    """The reason why a text with this beginning cannot be read; empty if it may be UTF-8."""
    if start.startswith(OTHER_BOMS):
        return "UTF-16 or UTF-32, not UTF-8: convert it, as with iconv"
    return ""


def _whole(file: BinaryIO) -> bytes | None:
    """A file without its byte order mark; None if it is too large."""
    data = file.read(MAX_DOCUMENT_BYTES + 1)
    return data.removeprefix(BOM) if len(data) <= MAX_DOCUMENT_BYTES else None


def _too_large(what: str) -> tuple[str, str]:
    return "", f"{what} of more than {MAX_DOCUMENT_BYTES:,} bytes"


def plain_text(data: bytes) -> tuple[str, str]:
    """(text, reason why it is none) of a plain text, without its byte order mark."""
    if reason := _other_encoding(data):
        return "", reason
    if b"\0" in data:
        return "", f"not text: it holds a zero byte (byte {data.index(0)})"
    return decode(data.removeprefix(BOM))


def _checked(text: str, reason: str) -> tuple[str, str]:
    """(text, reason); text of nothing but white space is empty."""
    return (text, reason) if text.strip() else ("", reason)


def _lines(file: BinaryIO, first: int, stop: int | None) -> Iterator[tuple[bytes | None, int]]:
    """The lines that begin in [first, stop) and their sizes; None for one that is too long.

    The file is at its beginning.
    """
    position = first
    if first:
        file.seek(first - 1)
        position = first - 1 + _skip_line(file)
    while stop is None or position < stop:
        line = file.readline(MAX_DOCUMENT_BYTES)
        if not line:
            return
        size = len(line)
        is_cut = size == MAX_DOCUMENT_BYTES and not line.endswith(b"\n")
        if is_cut:
            size += _skip_line(file)
        yield None if is_cut else line, size
        position += size


def _skip_line(file: BinaryIO) -> int:
    """Go to the start of the next line; returns the bytes passed over."""
    passed = 0
    while part := file.readline(1 << 20):
        passed += len(part)
        if part.endswith(b"\n"):
            break
    return passed


def _parse_line(line: bytes | None, field: Field) -> tuple[str, str]:
    """(text, reason) of a line of JSON."""
    if line is None:
        return _too_large("a line")
    text, reason = decode(line.removeprefix(BOM))  # files may have been joined
    if reason or not text.strip():
        return "", reason
    value, reason = _parse(text)
    return ("", reason) if reason else _text_of(value, field)


def _hint_at_json(line: bytes, kind: Kind) -> str:
    """Advice for JSON lines whose first line begins a JSON value that spans the whole file."""
    start = line.removeprefix(BOM).strip()
    if start.startswith(b"[") or start == b"{":
        return f"; if the whole file is one JSON value, call it .json{kind.compression}"
    return ""


def _parse(text: str) -> tuple[Any, str]:
    """(value, reason) of JSON."""
    try:
        return json.loads(text), ""
    except RecursionError:
        return None, "not JSON (nested too deeply)"
    except ValueError as error:  # also for a number with too many digits
        return None, f"not JSON ({getattr(error, 'msg', error)})"


def _entries(data: bytes | None, field: Field) -> list[tuple[str, str]]:
    """(text, reason) of every entry of a .json file: a list, one entry, or an entry per line."""
    if data is None:
        return [_too_large("a file of JSON, which has to be read at once,")]
    text, reason = decode(data)
    if reason or not text.strip():
        return [("", reason)]
    value, reason = _parse(text)
    if reason == "not JSON (Extra data)":
        # Many files of JSON lines are called .json.
        return [_parse_line(line, field) for line in data.split(b"\n")]
    if reason:
        return [("", reason)]
    if isinstance(value, list):
        return [_text_of(entry, field) for entry in value] or [("", "")]
    return [_text_of(value, field)]


def _text_of(entry: Any, field: Field) -> tuple[str, str]:
    """(text, reason) of a value of JSON: a text, or an object with one."""
    if field.is_chat:
        return _conversation(entry, field)
    name = "the text"
    value = entry
    if isinstance(entry, dict):
        if field.name not in entry and is_record(entry):
            return "", field.no_text_but_a_chat("key")
        if field.name not in entry:
            with_text = [key for key, value in entry.items() if isinstance(value, str)]
            return "", field.missing("key", list(entry), with_text)
        name = f'"{field.name}"'
        value = entry[field.name]
        if not isinstance(value, str):
            return "", f"{name} is {_type_name(value)}, not text"
    elif not isinstance(entry, str):
        return "", f"neither a text nor a JSON object but {_type_name(entry)}"
    if not _is_unicode(value):
        return "", f"{name} holds half a surrogate pair, which is not a character"
    return _checked(value, "")


def _conversation(entry: Any, field: Field) -> tuple[str, str]:
    """(text, reason) of a chat or instruction record."""
    try:
        return conversation_text(entry, field.name), ""
    except Unusable as reason:
        return "", str(reason)


def _type_name(value: object) -> str:
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


def _rows(path: Path, stream: Stream, field: Field, delimiter: str) -> Iterator[Document]:
    """The rows of comma- or tab-separated values, of which the first names the columns.

    Raises ValueError without such a column, and where the rows cannot be told apart.
    """
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    consumed = 0

    def text_lines() -> Iterator[str]:
        nonlocal consumed
        for number, (line, size) in enumerate(_lines(stream.file, 0, None), 1):
            if number == 1 and line is not None:
                line = line.removeprefix(BOM)
            text, reason = _too_large("a line") if line is None else decode(line)
            if reason:
                raise ValueError(f"{path}, line {number}: {reason}")
            consumed += stream.size_on_disk(size)
            yield text

    reader = csv.reader(text_lines(), delimiter=delimiter, strict=True)
    header = None
    number = -1
    try:
        header = next(reader, None)
        if header is None:
            return
        if not field.is_chat and field.name not in header and has_record_columns(header):
            raise ValueError(f"{path}: {field.no_text_but_a_chat('column')}")
        if not field.is_chat and header.count(field.name) != 1:
            raise ValueError(f"{path}: {field.missing('column', header, header)}")
        for number, row in enumerate(reader):
            if not row:
                yield Document(number, "", "", consumed)
            elif len(row) != len(header):
                reason = f"{len(row)} values, but {len(header)} columns"
                yield Document(number, "", reason, consumed)
            elif field.is_chat:
                record = dict(zip(header, row, strict=True))
                yield Document(number, *_conversation(record, field), consumed)
            else:
                column = header.index(field.name)
                yield Document(number, *_checked(row[column], ""), consumed)
            consumed = 0
    except csv.Error as error:
        place = "the header" if header is None else cite({"row": number + 2})
        raise ValueError(f"{path}, {place}: {error}") from None

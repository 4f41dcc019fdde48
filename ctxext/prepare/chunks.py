"""Sources cut into chunks, as a pure function of the files: a resumed run cuts the same ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctxext.data.documents import Document, Field, kind_of, read_file
from ctxext.data.documents.columnar import group_sizes

CHUNK_BYTES = 8 << 20
MAX_CHUNKS = 4096
"""Terabytes are cut into larger chunks: the shards are all in one directory."""


@dataclass(frozen=True)
class FileRange:
    """A part of one file: [first, stop) in bytes, or in row groups of a table.

    A line of JSON belongs to the range in which it begins; compressed and other files are not
    divided. The groups of an Arrow file are its record batches. size: bytes to read, about.
    """

    path: str
    name: str
    first: int
    stop: int
    size: int

    def documents(self, field: Field) -> Iterator[Document]:
        """Every document of the range, in order."""
        return read_file(Path(self.path), field, first=self.first, stop=self.stop)


@dataclass(frozen=True)
class Chunk:
    """Consecutive file ranges of one source, which one worker encodes into one shard."""

    source: int
    ranges: tuple[FileRange, ...]

    @property
    def size(self) -> int:
        return sum(file_range.size for file_range in self.ranges)


def cut(
    sources: list[dict[str, Path]], field: Field, chunk_bytes: int | None = None
) -> list[Chunk]:
    """Chunks of about `chunk_bytes` in the order of the documents.

    Default: 8 MiB, and more for what is very large. Raises ValueError for a table that cannot be
    read.
    """
    if chunk_bytes is None:
        total = sum(path.stat().st_size for files in sources for path in files.values())
        chunk_bytes = max(CHUNK_BYTES, -(-total // MAX_CHUNKS))
    return [
        Chunk(number, tuple(ranges))
        for number, files in enumerate(sources)
        for ranges in _group(_file_ranges(files, field, chunk_bytes), chunk_bytes)
    ]


def _file_ranges(files: dict[str, Path], field: Field, chunk_bytes: int) -> Iterator[FileRange]:
    for name, path in files.items():
        kind = kind_of(path)
        assert kind is not None
        if kind.form == "table":
            for i, (_, size) in enumerate(group_sizes(path, field)):
                yield FileRange(str(path), name, i, i + 1, size)
            continue
        size = path.stat().st_size
        step = chunk_bytes if kind.is_divisible else max(size, 1)
        for first in range(0, max(size, 1), step):
            stop = min(first + step, size)
            yield FileRange(str(path), name, first, stop, stop - first)


def _group(ranges: Iterator[FileRange], chunk_bytes: int) -> Iterator[list[FileRange]]:
    """Consecutive ranges of about `chunk_bytes`; adjacent ranges of a file become one."""
    group: list[FileRange] = []
    size = 0
    for new in ranges:
        last = group[-1] if group else None
        if last and (last.path, last.stop) == (new.path, new.first):
            group[-1] = FileRange(last.path, last.name, last.first, new.stop, last.size + new.size)
        else:
            group.append(new)
        size += new.size
        if size >= chunk_bytes:
            yield group
            group = []
            size = 0
    if group:
        yield group

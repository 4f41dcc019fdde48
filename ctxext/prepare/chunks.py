"""Sources cut into chunks, as a pure function of the files: a resumed run cuts the same ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctxext.data.sources import HFDocuments, recognize
from ctxext.data.sources.columnar import SUFFIXES, data_files, group_sizes

CHUNK_BYTES = 8 << 20
MAX_CHUNKS = 4096
"""Terabytes are cut into larger chunks: the shards are all in one directory."""


@dataclass(frozen=True)
class FileRange:
    """A part of one file: [first, stop) in bytes of text or JSONL, or in row groups of a table.

    A JSONL line belongs to the range in which it begins. The groups of an Arrow file are its record
    batches. size: bytes to read, about.
    """

    path: str
    name: str
    first: int
    stop: int
    size: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive file ranges of one source, which one worker encodes into one shard."""

    source: int
    ranges: tuple[FileRange, ...]

    @property
    def size(self) -> int:
        return sum(file_range.size for file_range in self.ranges)


def source_files(root: Path) -> dict[str, Path]:
    """The files of a source by the name they are cited by, in order.

    Raises ValueError if there are none, or both text and tables.
    """
    if not root.exists():
        raise ValueError(
            f"there is no {root}; give a file, a directory, or a dataset of the hub (owner/name)"
        )
    is_saved = any((root / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if is_saved or recognize(root) is HFDocuments:
        paths = data_files(root)
    elif root.is_dir():
        paths = sorted(
            path for path in root.rglob("*") if path.suffix in (".txt", ".jsonl") and path.is_file()
        )
    else:
        paths = [root]
    return {
        path.name if path == root else path.relative_to(root).as_posix(): path for path in paths
    }


def cut(sources: list[dict[str, Path]], field: str, chunk_bytes: int | None = None) -> list[Chunk]:
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


def _file_ranges(files: dict[str, Path], field: str, chunk_bytes: int) -> Iterator[FileRange]:
    for name, path in files.items():
        if path.suffix in SUFFIXES:
            for i, (_, size) in enumerate(group_sizes(path, field)):
                yield FileRange(str(path), name, i, i + 1, size)
            continue
        size = path.stat().st_size
        step = chunk_bytes if path.suffix == ".jsonl" else max(size, 1)
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

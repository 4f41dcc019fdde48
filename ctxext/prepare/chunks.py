"""Sources cut into units of work: a pure function of the files, so that a run that was killed cuts them again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ctxext.data.columnar import SUFFIXES, data_files, groups
from ctxext.data.source_names import is_table

UNIT_BYTES = 8 << 20
MOST_UNITS = 4096  # of a terabyte they become larger: the parts lie in one directory


@dataclass(frozen=True)
class Piece:
    """A part of one file: bytes [first, stop) of text or JSONL, row groups or record batches [first, stop) of a table.

    A JSONL line belongs to the piece in which it begins. size: bytes to read, about.
    """

    path: str
    name: str
    first: int
    stop: int
    size: int


@dataclass(frozen=True)
class Unit:
    """What one worker encodes into one part: consecutive pieces of one source."""

    source: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


def source_files(root: Path) -> dict[str, Path]:
    """The files of a source by the name they are cited by, in order.

    Raises ValueError if there are none, or text and tables both.
    """
    if not root.exists():
        raise ValueError(
            f"there is no {root}; give a file, a directory, or a dataset of the hub (owner/name)"
        )
    saved = any((root / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if saved or is_table(root):
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


def cut(sources: list[dict[str, Path]], field: str, unit_bytes: int | None = None) -> list[Unit]:
    """Units of about `unit_bytes` (default: 8 MiB, more for what is very large), in the order of the documents.

    Raises ValueError for a table that cannot be read.
    """
    if unit_bytes is None:
        total = sum(path.stat().st_size for files in sources for path in files.values())
        unit_bytes = max(UNIT_BYTES, -(-total // MOST_UNITS))
    return [
        Unit(number, tuple(pieces))
        for number, files in enumerate(sources)
        for pieces in _gathered(_pieces(files, field, unit_bytes), unit_bytes)
    ]


def _pieces(files: dict[str, Path], field: str, unit_bytes: int) -> Iterator[Piece]:
    for name, path in files.items():
        if path.suffix in SUFFIXES:
            yield from (
                Piece(str(path), name, i, i + 1, size)
                for i, (_, size) in enumerate(groups(path, field))
            )
            continue
        size = path.stat().st_size
        step = unit_bytes if path.suffix == ".jsonl" else max(size, 1)
        for first in range(0, max(size, 1), step):
            stop = min(first + step, size)
            yield Piece(str(path), name, first, stop, stop - first)


def _gathered(pieces: Iterator[Piece], unit_bytes: int) -> Iterator[list[Piece]]:
    gathered: list[Piece] = []
    size = 0
    for piece in pieces:
        last = gathered[-1] if gathered else None
        if last and (last.path, last.stop) == (piece.path, piece.first):  # neighbours are one
            gathered[-1] = Piece(
                last.path, last.name, last.first, piece.stop, last.size + piece.size
            )
        else:
            gathered.append(piece)
        size += piece.size
        if size >= unit_bytes:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered

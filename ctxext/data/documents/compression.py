"""Files as streams of bytes, compressed or not, with a bound on what they expand to."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ctxext.data.documents.kinds import Compression

MAX_EXPANSION = 200
"""How many times its size a file may expand to; text compresses 3 to 20 times."""
ALWAYS_ALLOWED = 64 << 20
"""Bytes that any file may expand to."""


class _ExpandsTooMuch(Exception):
    """A compressed file holds more than `MAX_EXPANSION` times its size."""


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more bytes than a file of text can hold."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self.given += count
        if self.given > self._limit:
            raise _ExpandsTooMuch
        return count


class Stream(NamedTuple):
    """The content of a file.

    size_on_disk: about how many bytes of the file that many bytes of its content are.
    """

    file: BinaryIO
    size_on_disk: Callable[[int], int]


@contextlib.contextmanager
def open_bytes(path: Path, compression: Compression) -> Iterator[Stream]:
    """The content of a file, decompressed while it is read.

    Raises ValueError with the file's name if it cannot be read, is damaged or cut off, or expands
    to more than `MAX_EXPANSION` times its size. `.zst` needs the extra `data`.
    """
    try:
        with path.open("rb") as file:
            if not compression:
                yield Stream(file, lambda size: size)
                return
            limit = max(ALWAYS_ALLOWED, MAX_EXPANSION * path.stat().st_size)
            bounded = _Bounded(_decompressed(path, file, compression), limit)
            # 1 MiB: every call of a decompressor has a cost.
            with io.BufferedReader(bounded, 1 << 20) as reader:
                yield Stream(reader, lambda size: size * file.tell() // max(bounded.given, 1))
    except _ExpandsTooMuch:
        raise ValueError(
            f"{path} expands to more than {MAX_EXPANSION} times its size, as no text does: "
            "decompress it yourself if it is meant"
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        verb = "decompressed" if compression and not getattr(error, "errno", None) else "read"
        raise ValueError(f"{path} cannot be {verb} ({reason})") from None


def _decompressed(path: Path, file: BinaryIO, compression: Compression) -> Any:
    """A stream of what a compressed file holds, in one part or in several that were joined."""
    match compression:
        case ".gz":
            return gzip.GzipFile(fileobj=file)
        case ".bz2":
            return bz2.BZ2File(file)
        case ".xz":
            return lzma.LZMAFile(file)
        case _:
            return _zstandard(path, file)


def _zstandard(path: Path, file: BinaryIO) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ValueError(f"to read {path}: pip install 'ctxext[data]'") from None
    return pyarrow.CompressedInputStream(file, "zstd")

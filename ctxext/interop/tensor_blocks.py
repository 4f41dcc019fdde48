"""Tensors on their way from file to file: read, cast and looked at in blocks, so that they never leave the cache."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Elements that are looked at, and written, at once: they stay in the cache, and larger writes make the system look for
# larger pages, which can take ten times as long.
BLOCK = 1 << 17


def numpy_dtype(name: str) -> np.dtype:
    """The numpy form of "float32", "float16" or "bfloat16". Raises ValueError for any other name."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


Index = tuple[slice, ...]


class Piece(NamedTuple):
    """Numbers that lie in a file one after another; `start` and `size` in bytes."""

    path: Path
    start: int
    size: int


class Entry(NamedTuple):
    """A tensor before it is read: `read()` gives all of it, `read(index)` a part; `dtype` is a name of `DTYPES`.

    `pieces`: where its numbers lie in this order and dtype, if they do.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[..., np.ndarray]
    pieces: tuple[Piece, ...] = ()


def read_piece(piece: Piece, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
    """All of a piece. A plain read takes a tenth of the time of a mapped file's pages. Raises ValueError if cut off."""
    values = np.fromfile(piece.path, kind, math.prod(shape), offset=piece.start)
    if values.nbytes != piece.size:
        raise ValueError(f"{piece.path} has become shorter while it was read; copy it again")
    return values.reshape(shape)


def blocks(entry: Entry, kind: np.dtype, name: str) -> Iterator[np.ndarray]:
    """The numbers of a tensor in order and in `kind`; a block holds them until the next one is asked for.

    Raises ValueError as `cast` does, and if there are others than `entry` says.
    """
    out = np.empty(max(BLOCK, math.prod(entry.shape[1:])), kind)
    for part in _stored(entry) if entry.pieces else _held(entry, name):
        yield cast(part, kind, name, out)


def read_into(memory: np.ndarray, entry: Entry, name: str) -> np.ndarray:
    """All of a tensor in the dtype of `memory`, which is where it then lies: fresh memory costs more than the reading.

    Raises ValueError as `blocks` does.
    """
    end = 0
    for block in blocks(entry, memory.dtype, name):
        memory[end : end + block.size] = block.reshape(-1)
        end += block.size
    return memory[:end].reshape(entry.shape)


def _stored(entry: Entry) -> Iterator[np.ndarray]:
    buffer = np.empty(BLOCK, DTYPES[entry.dtype])
    for path, start, size in entry.pieces:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while size:
                part = buffer[: size // buffer.itemsize]
                if file.readinto(part.view(np.uint8).data) != part.nbytes:
                    raise ValueError(f"{path} has become shorter while it was read; copy it again")
                size -= part.nbytes
                yield part


def _held(entry: Entry, name: str) -> Iterator[np.ndarray]:
    array = entry.read()
    if array.shape != entry.shape:
        raise ValueError(
            f"{name} has shape {list(array.shape)}, not {list(entry.shape)}; its file has changed"
        )
    array = array.reshape(-1) if array.flags.c_contiguous else array
    rows = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
    return (array[start : start + rows] for start in range(0, len(array), rows))


def cast(
    array: np.ndarray, dtype: np.dtype, name: str, out: np.ndarray | None = None
) -> np.ndarray:
    """`array` in `dtype`, contiguous, in `out` if it has to be copied.

    Raises ValueError if it holds or becomes NaN or infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if out is None or (array.dtype == dtype and array.flags.c_contiguous):
            made = np.asarray(array, dtype=dtype, order="C")
        else:
            made = out[: array.size].reshape(array.shape)
            np.copyto(made, array, casting="unsafe")
    if not _finite(made):
        why = (
            "is not finite"
            if not np.isfinite(array).all()
            else f"overflows {dtype.name}; use bfloat16 or float32"
        )
        raise ValueError(f"{name} {why}")
    return made


def _finite(array: np.ndarray) -> bool:
    """True if no exponent is all ones; as integers, those are the largest, and with a sign the largest of all.

    isfinite takes ten times as long for bfloat16.
    """
    unsigned, signed = np.dtype(f"u{array.itemsize}"), np.dtype(f"i{array.itemsize}")
    plus, minus = np.array([np.inf, -np.inf]).astype(array.dtype).view(unsigned)
    bits = array.reshape(-1).view(unsigned)
    parts = (bits[start : start + BLOCK] for start in range(0, bits.size, BLOCK))
    return all(part.max() < minus and part.view(signed).max() < plus for part in parts)

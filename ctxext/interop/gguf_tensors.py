"""The numbers of a GGUF file, made one tensor, or one device's rows of it, at a time."""

import functools
import math
from pathlib import Path

import numpy as np

from ctxext.interop.gguf_container import PLAIN_TYPES, TensorEntry
from ctxext.interop.gguf_library import dequantize
from ctxext.interop.lazy_tensor import (
    STORAGE_DTYPES,
    FileChunk,
    Index,
    LazyTensor,
    read_chunk,
)

ROWS_AT_ONCE = 1 << 22
"""Numbers that are dequantized together; the library takes several times their memory."""


def lazy_tensor(path: Path, entry: TensorEntry) -> LazyTensor:
    """A tensor of the file in the file's order of rows; float32 if it is quantized.

    Only the rows that a slice asks for are read.
    """
    dtype = PLAIN_TYPES.get(entry.type_number, "float32")
    chunks = ()
    if entry.type_number in PLAIN_TYPES:
        chunks = (FileChunk(path, entry.start, entry.num_bytes),)
    return LazyTensor(entry.shape, dtype, functools.partial(_read, path, entry), chunks, path)


def _read(path: Path, entry: TensorEntry, index: Index | None = None) -> np.ndarray:
    width = entry.shape[-1]
    rows = math.prod(entry.shape[:-1])
    start = 0
    stop = rows
    inner: Index = ()
    if index is not None and len(entry.shape) > 1:
        start, stop, _ = index[0].indices(entry.shape[0])
        inner = tuple(index[1:])
        rows_per_step = rows // entry.shape[0]
        start *= rows_per_step
        stop = max(start, stop * rows_per_step)
    values = _read_rows(path, entry, start, stop).reshape(-1, *entry.shape[1:])
    if len(entry.shape) == 1:
        values = values.reshape(width)
        return values if index is None else values[index]
    return values[(slice(None), *inner)] if inner else values


def _read_rows(path: Path, entry: TensorEntry, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) as a matrix."""
    width = entry.shape[-1]

    def chunk(first: int, last: int) -> FileChunk:
        at = entry.start + first * entry.row_bytes
        return FileChunk(path, at, (last - first) * entry.row_bytes)

    if entry.type_number in PLAIN_TYPES:
        dtype = STORAGE_DTYPES[PLAIN_TYPES[entry.type_number]]
        return read_chunk(chunk(start, stop), (stop - start, width), dtype)
    values = np.empty((stop - start, width), np.float32)
    step = max(1, ROWS_AT_ONCE // width)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        shape = (last - first, entry.row_bytes)
        stored = read_chunk(chunk(first, last), shape, np.dtype(np.uint8))
        values[first - start : last - start] = dequantize(stored, entry.type_number)
    return values

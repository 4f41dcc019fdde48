"""Tensors on their way from file to file: read, cast and checked block by block.

A block is small enough to stay in the processor's cache, so that a large tensor passes through
memory once.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

STORAGE_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that checkpoints are stored in, by name."""

BLOCK = 1 << 17
"""Elements that are checked and written at once.

They fit into the cache; larger writes make the system look for larger pages, which can take ten
times as long.
"""

Index = tuple[slice, ...]


def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype of a name in `STORAGE_DTYPES`. Raises ValueError for any other name."""
    if name not in STORAGE_DTYPES:
        raise ValueError(f"dtype {name!r} is not known; choose one of {', '.join(STORAGE_DTYPES)}")
    return STORAGE_DTYPES[name]


class FileChunk(NamedTuple):
    """Consecutive bytes of a file.

    `verify()` is called before they are read, and raises ValueError if they are corrupt; None where
    the file has no checksums.
    """

    path: Path
    start: int
    size: int
    verify: Callable[[], None] | None = None


class LazyTensor(NamedTuple):
    """A tensor that has not been read yet.

    `read()` returns all of it and `read(index)` a slice; `dtype` is a key of `STORAGE_DTYPES`.
    `chunks` is where its numbers are on disk, if they are there in this order and dtype. `file` is
    the one that they come from, or the first of several, to be named in errors.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[..., np.ndarray]
    chunks: tuple[FileChunk, ...] = ()
    file: Path | None = None

    def describe(self, name: str) -> str:
        """Its name, and the file that it comes from."""
        return name if self.file is None else f"{name} in {self.file}"


def num_values(named: tuple[str, LazyTensor]) -> int:
    """How many numbers a tensor has, with which the time of reading or writing it grows."""
    return math.prod(named[1].shape)


def read_chunk(chunk: FileChunk, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The numbers of a chunk, in host memory. Raises ValueError if it is cut off or corrupt.

    A plain read takes a tenth of the time of touching the pages of a mapped file.
    """
    if chunk.verify is not None:
        chunk.verify()
    values = np.fromfile(chunk.path, dtype, math.prod(shape), offset=chunk.start)
    if values.nbytes != chunk.size:
        raise _shortened(chunk.path)
    return values.reshape(shape)


def blocks(tensor: LazyTensor, dtype: np.dtype, name: str) -> Iterator[np.ndarray]:
    """Yield the numbers of a tensor in order and in `dtype`.

    A block is valid until the next one is requested. Raises ValueError as `cast` does, and if the
    file is corrupt or no longer holds what `tensor` describes.
    """
    out = np.empty(max(BLOCK, math.prod(tensor.shape[1:])), dtype)
    stored_blocks = _blocks_on_disk(tensor) if tensor.chunks else _blocks_in_memory(tensor, name)
    description = tensor.describe(name)
    for block in stored_blocks:
        yield cast(block, dtype, description, out)


def read_into(memory: np.ndarray, tensor: LazyTensor, name: str) -> np.ndarray:
    """Read a tensor into `memory`, a flat array that is large enough, and return that part of it.

    Allocating fresh memory would take longer than reading. Raises ValueError as `blocks` does.
    """
    end = 0
    for block in blocks(tensor, memory.dtype, name):
        memory[end : end + block.size] = block.reshape(-1)
        end += block.size
    return memory[:end].reshape(tensor.shape)


def _shortened(path: Path) -> ValueError:
    return ValueError(f"{path} became shorter while it was being read; copy it again")


def _blocks_on_disk(tensor: LazyTensor) -> Iterator[np.ndarray]:
    buffer = np.empty(BLOCK, STORAGE_DTYPES[tensor.dtype])
    for chunk in tensor.chunks:
        if chunk.verify is not None:
            chunk.verify()
        with chunk.path.open("rb", buffering=0) as file:
            file.seek(chunk.start)
            size = chunk.size
            while size:
                block = buffer[: size // buffer.itemsize]
                if file.readinto(block.view(np.uint8).data) != block.nbytes:
                    raise _shortened(chunk.path)
                size -= block.nbytes
                yield block


def _blocks_in_memory(tensor: LazyTensor, name: str) -> Iterator[np.ndarray]:
    array = tensor.read()
    if array.shape != tensor.shape:
        raise ValueError(
            f"{tensor.describe(name)} has shape {list(array.shape)}, not {list(tensor.shape)}; its "
            "file has changed"
        )
    if array.flags.c_contiguous:
        array = array.reshape(-1)
    step = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        yield array[start : start + step]


def cast(
    array: np.ndarray, dtype: np.dtype, name: str, out: np.ndarray | None = None
) -> np.ndarray:
    """Return `array` in `dtype`, contiguous; in the flat array `out` if it has to be copied.

    Raises ValueError if it holds NaN or infinity, before or after the cast.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if out is None or (array.dtype == dtype and array.flags.c_contiguous):
            result = np.asarray(array, dtype=dtype, order="C")
        else:
            result = out[: array.size].reshape(array.shape)
            np.copyto(result, array, casting="unsafe")
    if not _is_finite(result):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        raise ValueError(f"{name} overflows {dtype.name}; use bfloat16 or float32")
    return result


def _is_finite(array: np.ndarray) -> bool:
    """True if no number has an exponent of all ones.

    np.isfinite takes ten times as long for bfloat16.
    As integers, NaN and infinity are the largest values of their sign: read as signed numbers, the
    positive ones are the largest of all, and read as unsigned, the negative ones are.
    """
    unsigned = np.dtype(f"u{array.itemsize}")
    signed = np.dtype(f"i{array.itemsize}")
    plus_inf, minus_inf = np.array([np.inf, -np.inf]).astype(array.dtype).view(unsigned)
    bits = array.reshape(-1).view(unsigned)
    for start in range(0, bits.size, BLOCK):
        block = bits[start : start + BLOCK]
        if block.max() >= minus_inf or block.view(signed).max() >= plus_inf:
            return False
    return True

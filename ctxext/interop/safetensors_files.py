"""Safetensors files, read and written one tensor at a time, in numpy and without torch."""

import functools
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ctxext import progress
from ctxext.files import refuse_lfs_pointer, write_json
from ctxext.interop.lazy_tensor import (
    STORAGE_DTYPES,
    FileChunk,
    Index,
    LazyTensor,
    blocks,
    num_values,
    numpy_dtype,
    read_chunk,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER = 1 << 23
"""Bytes; the header of a model with ten thousand tensors has about one million."""
DTYPE_CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The format's dtype codes -> our names."""


def open_file(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file by name, in alphabetical order.

    Only the header is read here, and the file does not stay open. A tensor of another dtype than
    bfloat16, float16 and float32 has the format's code in place of a name, and cannot be read.
    Raises ValueError naming the file for one that is cut off or corrupt.
    """
    header, data_start = _read_header(path)
    return {name: _lazy_tensor(path, name, header[name], data_start) for name in sorted(header)}


def _lazy_tensor(path: Path, name: str, entry: dict[str, Any], data_start: int) -> LazyTensor:
    shape = tuple(entry["shape"])
    code = entry["dtype"]
    if code not in DTYPE_CODES:
        read = functools.partial(_refuse_dtype, path, name, code)
        return LazyTensor(shape, code, read, file=path)
    dtype = DTYPE_CODES[code]
    start, end = entry["data_offsets"]
    chunk = FileChunk(path, data_start + start, end - start)
    read = functools.partial(_read, chunk, name, shape, STORAGE_DTYPES[dtype])
    return LazyTensor(shape, dtype, read, (chunk,), path)


def _refuse_dtype(path: Path, name: str, code: str, index: Index | None = None) -> np.ndarray:
    raise ValueError(f"{name} in {path} has dtype {code}; only BF16, F16 and F32 are supported")


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Name -> dtype, shape and data_offsets, and the byte that the offsets count from.

    The library checks the offsets against the shapes and the size of the file, but does not hand
    them out, so the same bytes are parsed here once they have passed.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if MAX_HEADER < length <= path.stat().st_size:  # a longer one is cut off
            raise ValueError(
                f"{path} has a header of {length:,} bytes, more than any model needs; copy it again"
            )
        with _open(path):
            header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        refuse_lfs_pointer(path)
        raise ValueError(f"{path} is cut off or corrupt ({error}); copy it again") from None


def _read(
    chunk: FileChunk,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    index: Index | None = None,
) -> np.ndarray:
    if index is None:
        return read_chunk(chunk, shape, dtype)
    # Opened again for each slice: mapped pages count as memory in use until the file is closed.
    with _open(chunk.path) as stored:
        return stored.get_slice(name)[index]


def write_tensors(
    directory: Path,
    tensors: dict[str, LazyTensor],
    dtype: str,
    *,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write model.safetensors, or shards of at most `max_shard_size` bytes with their index.

    At most one tensor is in memory; of one that is in a file, at most a block. Raises ValueError
    for values that are not finite, or not finite once in `dtype`.
    """
    itemsize = numpy_dtype(dtype).itemsize
    shards: list[list[str]] = [[]]
    shard_size = 0
    total_size = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * itemsize
        if shards[-1] and shard_size + size > max_shard_size:
            shards.append([])
            shard_size = 0
        shards[-1].append(name)
        shard_size += size
        total_size += size
    if len(shards) == 1:
        write_file(directory / SINGLE_FILE, tensors, dtype)
        return
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with progress.as_part(number - 1, len(shards)):
            write_file(directory / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    write_json(directory / INDEX_FILE, index)


def write_file(path: Path, tensors: dict[str, LazyTensor], dtype: str) -> None:
    """Write one safetensors file in `dtype`: a header that lists all tensors, then the tensors.

    Raises ValueError as `blocks` does.
    """
    numpy_type = numpy_dtype(dtype)
    code = next(code for code, name in DTYPE_CODES.items() if name == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start = end
        end = start + math.prod(tensor.shape) * numpy_type.itemsize
        header[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in progress.each(tensors.items(), num_values):
            for block in blocks(tensor, numpy_type, name):
                file.write(block.reshape(-1).view(np.uint8).data)

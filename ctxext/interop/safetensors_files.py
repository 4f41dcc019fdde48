"""Safetensors files, read and written one tensor at a time, in numpy and without torch."""

import functools
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ctxext.files import read_json, within, write_json
from ctxext.interop.lazy_tensor import (
    STORAGE_DTYPES,
    FileChunk,
    Index,
    LazyTensor,
    blocks,
    numpy_dtype,
    read_chunk,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPE_CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The format's dtype codes -> our names."""


def find_tensors(directory: str | Path, single: str = SINGLE_FILE) -> dict[str, LazyTensor]:
    """The tensors of one file, `single`, or of the shards that an index lists, by name.

    Only headers are read here, and no file stays open. Raises ValueError naming the file for a
    shard that is missing, cut off or outside the directory, and for a dtype other than bfloat16,
    float16 and float32.
    """
    directory = Path(directory)
    tensors: dict[str, LazyTensor] = {}
    for file, names in _shards(directory, single).items():
        tensors.update(_tensors_of(within(directory, file), names))
    return tensors


def _shards(directory: Path, single: str) -> dict[str, list[str] | None]:
    """File name -> names of the tensors in it, None for all of them."""
    index_path = directory / INDEX_FILE
    if single != SINGLE_FILE or not index_path.is_file():
        if not (directory / single).is_file():
            raise ValueError(_nothing_to_read(directory, single))
        return {single: None}
    index = read_json(index_path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index_path} has no weight_map; copy the file again")
    shards: dict[str, list[str] | None] = {}
    for name, file in weight_map.items():
        if not _is_shard_name(file):
            raise ValueError(
                f"{index_path} names the shard {repr(file)[:80]}; shards must be in the same "
                "directory"
            )
        names = shards.setdefault(file, [])
        assert names is not None
        names.append(name)
    return shards


def _nothing_to_read(directory: Path, single: str) -> str:
    missing = f"neither {SINGLE_FILE} nor {INDEX_FILE}" if single == SINGLE_FILE else f"no {single}"
    if any(directory.glob("*.bin")):
        return f"{directory} has {missing}; pickles are not read, convert them to safetensors"
    return f"{directory} has {missing}"


def _is_shard_name(file: Any) -> bool:
    if not isinstance(file, str) or "/" in file or "\\" in file:
        return False
    return file.endswith(".safetensors")


def _tensors_of(path: Path, names: list[str] | None) -> Iterator[tuple[str, LazyTensor]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the shard again")
    header, data_start = _read_header(path)
    for name in sorted(header) if names is None else names:
        if name not in header:
            raise ValueError(
                f"{path} does not hold {name}, which the index lists; copy the checkpoint again"
            )
        code = header[name]["dtype"]
        if code not in DTYPE_CODES:
            raise ValueError(
                f"{name} in {path} has dtype {code}; only BF16, F16 and F32 are supported"
            )
        shape = tuple(header[name]["shape"])
        dtype = STORAGE_DTYPES[DTYPE_CODES[code]]
        start, end = header[name]["data_offsets"]
        chunk = FileChunk(path, data_start + start, end - start)
        read = functools.partial(_read, chunk, name, shape, dtype)
        yield name, LazyTensor(shape, DTYPE_CODES[code], read, (chunk,))


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Name -> dtype, shape and data_offsets, and the byte that the offsets count from.

    The library checks the offsets against the shapes and the size of the file, but does not hand
    them out, so the same bytes are parsed here once they have passed.
    """
    with _open(path), path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
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
        for name, tensor in tensors.items():
            for block in blocks(tensor, numpy_type, name):
                file.write(block.reshape(-1).view(np.uint8).data)

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
from ctxext.interop.tensor_blocks import (
    DTYPES,
    Entry,
    Index,
    Piece,
    blocks,
    numpy_dtype,
    read_piece,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def find_tensors(directory: str | Path, single: str = SINGLE) -> dict[str, Entry]:
    """Name -> Entry of one file, `single`, or of the shards an index names.

    Nothing but headers is read before `Entry.read`, and no file stays open after it. Raises ValueError naming the file
    for a shard that is missing, cut off or outside the directory, and for a dtype other than bfloat16, float16 and
    float32.
    """
    directory = Path(directory)
    shards = _shards(directory, single)
    return {
        name: entry
        for file, names in shards.items()
        for name, entry in _entries(directory, file, names)
    }


def _shards(directory: Path, single: str) -> dict[str, list[str] | None]:
    """File name -> names of tensors in it, None for all."""
    if single != SINGLE or not (directory / INDEX).is_file():
        if not (directory / single).is_file():
            known = f"neither {SINGLE} nor {INDEX}" if single == SINGLE else f"no {single}"
            pickles = "; pickles are not read, convert them to safetensors" * bool(
                [*directory.glob("*.bin")]
            )
            raise ValueError(f"{directory} has {known}{pickles}")
        return {single: None}
    index = read_json(directory / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{directory / INDEX} has no weight_map; copy the file again")
    shards: dict[str, list[str] | None] = {}
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or "/" in file
            or "\\" in file
            or not file.endswith(".safetensors")
        ):
            raise ValueError(
                f"{directory / INDEX} names the shard {repr(file)[:80]}; shards lie in the directory "
                "itself"
            )
        names = shards.setdefault(file, [])
        assert names is not None
        names.append(name)
    return shards


def _entries(directory: Path, file: str, names: list[str] | None) -> Iterator[tuple[str, Entry]]:
    path = within(directory, file)
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the shard again")
    with _opened(path) as stored, path.open("rb") as raw:
        (length,) = struct.unpack("<Q", raw.read(8))
        header = json.loads(raw.read(length))
        present = set(stored.keys())
        for name in sorted(present) if names is None else names:
            if name not in present:
                raise ValueError(
                    f"{path} does not hold {name}, though the index says so; copy the checkpoint again"
                )
            view = stored.get_slice(name)
            if view.get_dtype() not in STORED:
                raise ValueError(
                    f"{name} in {path} has dtype {view.get_dtype()}; only BF16, F16 and F32 are read"
                )
            shape, dtype = tuple(view.get_shape()), STORED[view.get_dtype()]
            start, size = (
                8 + length + header[name]["data_offsets"][0],
                math.prod(shape) * DTYPES[dtype].itemsize,
            )
            piece = Piece(path, start, size)
            yield (
                name,
                Entry(
                    shape,
                    dtype,
                    functools.partial(_read, piece, name, shape, DTYPES[dtype]),
                    (piece,),
                ),
            )


def _opened(path: Path) -> Any:
    try:
        return safe_open(
            path, "numpy"
        )  # checks offsets against shapes, and both against the size of the file
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); copy it again") from None


def _read(
    piece: Piece, name: str, shape: tuple[int, ...], kind: np.dtype, index: Index | None = None
) -> np.ndarray:
    if index is None:
        return read_piece(piece, shape, kind)
    # Opened anew each time: mapped pages count as memory in use until the file is closed.
    with _opened(piece.path) as stored:
        return stored.get_slice(name)[index]


def write_tensors(
    directory: Path, tensors: dict[str, Entry], dtype: str, *, max_shard_size: int = 5 * 10**9
) -> None:
    """Write model.safetensors, or shards of at most `max_shard_size` bytes with their index.

    At most one tensor is in memory, and of one that lies in a file no more than a block.

    Raises ValueError for values that are not finite, or not finite once in `dtype`.
    """
    kind = numpy_dtype(dtype)
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, entry in tensors.items():
        size = math.prod(entry.shape) * kind.itemsize
        if shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled, total = filled + size, total + size
    many = len(shards) > 1
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else SINGLE
        write_file(directory / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    if many:
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_file(path: Path, tensors: dict[str, Entry], dtype: str) -> None:
    """Write one safetensors file in `dtype`, tensor by tensor behind a header that names them all.

    Raises ValueError as `blocks` does.
    """
    kind = numpy_dtype(dtype)
    code = next(code for code, name in STORED.items() if name == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in tensors.items():
        start, end = end, end + math.prod(entry.shape) * kind.itemsize
        header[name] = {"dtype": code, "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in tensors.items():
            for block in blocks(entry, kind, name):
                file.write(block.reshape(-1).view(np.uint8).data)

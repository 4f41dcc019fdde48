"""Safetensors files: read one tensor at a time, write one shard at a time, in numpy and without torch."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ctxext.files import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def numpy_dtype(name: str) -> np.dtype:
    """The numpy form of "float32", "float16" or "bfloat16". Raises ValueError for any other name."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


Index = tuple[slice, ...]


class Entry(NamedTuple):
    """A tensor before it is read: `read()` gives all of it, `read(index)` a part; `dtype` is a name of `DTYPES`."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[..., np.ndarray]


@contextlib.contextmanager
def open_tensors(directory: str | Path, single: str = SINGLE) -> Iterator[dict[str, Entry]]:
    """Name -> Entry of one file, `single`, or of the shards an index names.

    Nothing but headers is read before `Entry.read`. Raises ValueError naming the file for a shard that is missing, cut
    off or outside the directory, and for a dtype other than bfloat16, float16 and float32.
    """
    directory = Path(directory)
    shards = _shards(directory, single)
    with contextlib.ExitStack() as stack:
        yield {name: entry for file, names in shards.items() for name, entry in _open(stack, directory / file, names)}


def _shards(directory: Path, single: str) -> dict[str, list[str] | None]:
    """File name -> names of tensors in it, None for all."""
    if single != SINGLE or not (directory / INDEX).is_file():
        if not (directory / single).is_file():
            known = f"neither {SINGLE} nor {INDEX}" if single == SINGLE else f"no {single}"
            pickles = "; pickles are not read, convert them to safetensors" * bool([*directory.glob("*.bin")])
            raise ValueError(f"{directory} has {known}{pickles}")
        return {single: None}
    index = read_json(directory / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{directory / INDEX} has no weight_map; copy the file again")
    shards: dict[str, list[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise ValueError(f"{directory / INDEX} names the shard {file!r}; shards lie in the directory itself")
        names = shards.setdefault(file, [])
        assert names is not None
        names.append(name)
    return shards


def _open(stack: contextlib.ExitStack, path: Path, names: list[str] | None) -> Iterator[tuple[str, Entry]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the shard again")
    try:
        file: Any = stack.enter_context(safe_open(path, "numpy"))
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); copy it again") from None
    present = set(file.keys())
    for name in present if names is None else names:
        if name not in present:
            raise ValueError(f"{path} does not hold {name}, though the index says so; copy the checkpoint again")
        view = file.get_slice(name)
        if view.get_dtype() not in STORED:
            raise ValueError(f"{name} in {path} has dtype {view.get_dtype()}; only BF16, F16 and F32 are read")
        whole = tuple(slice(0, size) for size in view.get_shape())
        yield name, Entry(tuple(view.get_shape()), STORED[view.get_dtype()], lambda at=whole, view=view: view[at])


def write_tensors(directory: Path, tensors: dict[str, Entry], dtype: str, *, max_shard_size: int = 5 * 10**9) -> None:
    """Write model.safetensors, or shards of at most `max_shard_size` bytes with their index; one shard in memory.

    Raises ValueError for values that are not finite, or not finite once in `dtype`.
    """
    kind = numpy_dtype(dtype)
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, entry in tensors.items():
        size = int(np.prod(entry.shape)) * kind.itemsize
        if shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled, total = filled + size, total + size
    many = len(shards) > 1
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else SINGLE
        arrays = {name: cast(tensors[name].read(), kind, name) for name in names}
        write_file(directory / file, arrays)
        weight_map |= dict.fromkeys(names, file)
    if many:
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_file(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one safetensors file. Raises OSError if it cannot be written."""
    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:  # not an OSError by itself, even when the disk is full
        raise OSError(f"cannot write {path}: {error}") from None


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """`array` in `dtype`, contiguous. Raises ValueError if it holds or becomes NaN or infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.ascontiguousarray(array, dtype=dtype)
    if not np.isfinite(out).all():
        why = "is not finite" if not np.isfinite(array).all() else f"overflows {dtype.name}; use bfloat16 or float32"
        raise ValueError(f"{name} {why}")
    return out

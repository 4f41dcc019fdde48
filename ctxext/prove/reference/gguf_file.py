"""The container of GGUF, version 3 (and 2, whose files do not differ for what is read here)."""

import functools
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
TYPES = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    6: "float32",
    7: "bool",
    STRING: "string",
    ARRAY: "array",
    10: "uint64",
    11: "int64",
    12: "float64",
}
"""The names of the types of values."""
Q8_0 = 8
MAX_METADATA = 1 << 26
"""Bytes of keys and descriptions of tensors; a vocabulary of Llama 3 takes ten million."""
KINDS = {0: "float32", 1: "float16", Q8_0: "q8_0", 30: "bfloat16"}
"""The types of tensors that are read here; the package `gguf` makes numbers of others."""
BLOCK_SIZE = 32
BLOCK = np.dtype([("scale", "<f2"), ("steps", "i1", BLOCK_SIZE)])
"""q8_0: 32 numbers that share a scale."""
DTYPES = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class StoredTensor(NamedTuple):
    """A tensor on disk.

    `kind`: a name of KINDS, or the package's name of another type in lower case. `number`: of the
    type. `shape`: in numpy's order. `start`: the first byte. `block`: how many numbers of a row
    take `block_bytes` together.
    """

    kind: str
    number: int
    shape: tuple[int, ...]
    start: int
    block: int
    block_bytes: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.block * self.block_bytes


class GGUFFile:
    """The `keys` and `tensors` of a file.

    `types`: of the values of the keys, such as "uint32" or "string array". `uses_library`: whether
    the package `gguf` makes its numbers. Raises ValueError naming the file if it is corrupt,
    truncated or of another kind, and for types of numbers that are not read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._data = np.memmap(self.path, np.uint8, "r")
            listed = self._read()
        except (OSError, ValueError, OverflowError, RecursionError, struct.error) as error:
            raise self._incomplete(str(error)) from None
        self.tensors: dict[str, StoredTensor] = {}
        for name, (number, shape, start) in listed.items():
            try:
                kind, block, block_bytes = _layout(number)
            except ValueError as error:
                raise ValueError(f"{name} in {self.path} {error}") from None
            if block > 1 and (not shape or shape[-1] % block):
                raise self._incomplete(f"{name} has rows that are not blocks of {block} numbers")
            tensor = StoredTensor(kind, number, shape, start, block, block_bytes)
            if start + tensor.num_bytes > len(self._data):
                raise self._incomplete(f"{name} is cut off")
            self.tensors[name] = tensor
        own_kinds = set(KINDS.values())
        self.uses_library = any(tensor.kind not in own_kinds for tensor in self.tensors.values())

    def _incomplete(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.path} is not a complete GGUF file; copy or write it again ({reason})"
        )

    def _read(self) -> dict[str, tuple[int, tuple[int, ...], int]]:
        """Read the keys; returns type, shape and first byte of every tensor."""
        if bytes(self._data[:4]) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, num_tensors, num_keys = (self._scalar(kind) for kind in "IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported")
        self.keys: dict[str, Any] = {}
        self.types: dict[str, str] = {}
        for _ in range(num_keys):
            name = self._string()
            if name in self.keys:
                raise ValueError(f"the key {name} is there twice")
            number = self._scalar("I")
            start = self._at
            self.keys[name] = self._value(number)
            self.types[name] = TYPES[number]
            if number == ARRAY:
                item, _ = struct.unpack("<IQ", self._data[start : start + 12].tobytes())
                self.types[name] = f"{TYPES.get(item, item)} array"
        listed: dict[str, tuple[int, tuple[int, ...], int]] = {}
        for _ in range(num_tensors):
            name = self._string()
            if name in listed:
                raise ValueError(f"the tensor {name} is there twice")
            listed[name] = self._tensor(name)
        align = self.keys.get("general.alignment", 32)
        if type(align) is not int or align < 1:
            raise ValueError(f"general.alignment is {align!r}")
        first = -(-self._at // align) * align
        return {
            name: (number, shape, first + offset)
            for name, (number, shape, offset) in listed.items()
        }

    def numbers(self, name: str) -> np.ndarray:
        """A tensor, float32. Raises ValueError if the file does not have it."""
        if name not in self.tensors:
            raise ValueError(f"{self.path} lacks {name}")
        tensor = self.tensors[name]
        raw = self._data[tensor.start : tensor.start + tensor.num_bytes]
        if tensor.kind == "q8_0":
            blocks = raw.view(BLOCK)
            scale = blocks["scale"].astype(np.float32)[:, None]
            values = scale * blocks["steps"].astype(np.float32)
        elif tensor.kind in DTYPES:
            values = raw.view(DTYPES[tensor.kind]).astype(np.float32)
        else:
            library = _library()
            with np.errstate(all="ignore"):  # numbers that are not finite are found when compared
                values = library.dequantize(raw, library.GGMLQuantizationType(tensor.number))
        return values.reshape(tensor.shape)

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError("it is cut off")
        if self._at + count > MAX_METADATA:
            raise ValueError(f"it has more than {MAX_METADATA:,} bytes before its tensors")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def _scalar(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._bytes(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode()

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            item_kind, count = self._scalar("I"), self._scalar("Q")
            if item_kind in SCALARS:
                code = SCALARS[item_kind]
                data = self._bytes(count * struct.calcsize(code))
                return list(struct.unpack(f"<{count}{code}", data))
            return [self._value(item_kind) for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"there is no type {kind}")
        return self._scalar(SCALARS[kind])

    def _tensor(self, name: str) -> tuple[int, tuple[int, ...], int]:
        """Type, shape and offset of a tensor."""
        rank = self._scalar("I")
        if rank > 4:
            raise ValueError(f"{name} has {rank} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(rank))[::-1]
        return self._scalar("I"), shape, self._scalar("Q")


@functools.cache
def _layout(number: int) -> tuple[str, int, int]:
    """(name, numbers per block, bytes per block) of a type of numbers.

    Raises ValueError for a type that neither this file nor the package `gguf` makes numbers of.
    """
    if number == Q8_0:
        return KINDS[number], BLOCK_SIZE, BLOCK.itemsize
    if number in KINDS:
        return KINDS[number], 1, DTYPES[KINDS[number]].itemsize
    library = _library(f"has type {number}, which ")
    try:
        kind = library.GGMLQuantizationType(number)
        block, block_bytes = library.GGML_QUANT_SIZES[kind]
        library.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, NotImplementedError):
        raise ValueError(
            f"has type {number}, which is not read here: neither {', '.join(KINDS.values())} nor "
            "one that the package gguf makes numbers of"
        ) from None
    return kind.name.lower(), block, block_bytes


def _library(reason: str = "") -> Any:
    """The package `gguf`. Raises ValueError, after the `reason`, if it is missing."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError(
            f"{reason}needs the package gguf: pip install 'ctxext[gguf]' (read without it are "
            f"{', '.join(KINDS.values())})"
        ) from None
    return gguf

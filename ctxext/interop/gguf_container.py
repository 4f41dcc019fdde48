"""The container of GGUF, version 2 and 3: its keys, and where its tensors are.

A file is data of whoever wrote it: every count is compared with the bytes that are there before
anything of that size is read.
"""

import dataclasses
import math
import struct
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np

from ctxext.interop.gguf_library import block_layout

MAGIC = b"GGUF"
VERSIONS = (2, 3)
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
"""Number of a type of values -> its code in `struct`."""
FLOAT32 = 6
STRING = 8
ARRAY = 9
MAX_METADATA = 1 << 26
"""Bytes before the tensors; a vocabulary of Llama 3 takes ten million."""
MAX_DIMENSIONS = 4
PLAIN_TYPES = {0: "float32", 1: "float16", 30: "bfloat16"}
"""Number of a type of tensors -> its dtype, for those whose bytes are the numbers themselves."""
ALIGNMENT = "general.alignment"


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """A tensor in the file.

    `shape`: in numpy's order. `type_number`: the format's number of its type, `type_name` the name.
    `start`: of its first byte in the file. `block`: consecutive numbers of a row that are stored
    together, in `block_bytes`.
    """

    shape: tuple[int, ...]
    type_number: int
    type_name: str
    start: int
    block: int
    block_bytes: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, the numbers along the last dimension."""
        return self.shape[-1] // self.block * self.block_bytes

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclasses.dataclass(frozen=True)
class GGUFContents:
    """The keys of a file, and its tensors by the format's own names."""

    keys: dict[str, Any]
    tensors: dict[str, TensorEntry]


def read_contents(path: Path) -> GGUFContents:
    """The keys and the places of the tensors of a file; reads no numbers.

    Raises ValueError naming the file if it is corrupt, cut off, or has a type that is not read.
    """
    try:
        with path.open("rb") as file:
            return _Parser(file, path.stat().st_size).contents()
    except (ValueError, OverflowError, struct.error) as error:
        raise ValueError(f"{path} cannot be read as GGUF: {error}") from None


def quantized_types(path: Path) -> str:
    """The quantized types of the tensors in a file, such as "Q4_1, Q6_K"; "" for none.

    The one that holds most numbers comes first.
    """
    sizes: Counter[str] = Counter()
    for tensor in read_contents(path).tensors.values():
        if tensor.block > 1:
            sizes[tensor.type_name] += math.prod(tensor.shape)
    return ", ".join(name for name, _ in sizes.most_common())


class _Parser:
    """Reads a file from its first byte to the end of the list of tensors."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = min(size, MAX_METADATA)
        self._size = size
        self._at = 0

    def contents(self) -> GGUFContents:
        if self._bytes(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._scalar("I")
        if version not in VERSIONS:
            raise ValueError(
                f"version {version} is not supported, only 2 and 3 in little-endian order; convert "
                "the model again"
            )
        num_tensors = self._scalar("Q")
        num_keys = self._scalar("Q")
        keys: dict[str, Any] = {}
        for _ in range(num_keys):
            name = self._string()
            if name in keys:
                raise ValueError(f"the key {name:.80} is there twice")
            keys[name] = self._value(self._scalar("I"))
        offsets: dict[str, TensorEntry] = {}
        for _ in range(num_tensors):
            name, entry = self._tensor()
            if name in offsets:
                raise ValueError(f"the tensor {name:.80} is there twice")
            offsets[name] = entry
        alignment = keys.get(ALIGNMENT, 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"{ALIGNMENT} must be a positive integer, got {alignment!r:.40}")
        first_byte = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorEntry] = {}
        for name, entry in offsets.items():
            placed = dataclasses.replace(entry, start=first_byte + entry.start)
            if placed.start + placed.num_bytes > self._size:
                raise ValueError(f"{name:.80} is cut off; copy the file again")
            tensors[name] = placed
        return GGUFContents(keys, tensors)

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            if self._size > MAX_METADATA:
                raise ValueError(f"it has more than {MAX_METADATA:,} bytes before its tensors")
            raise ValueError("it is cut off; copy it again")
        self._left -= count
        self._at += count
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("it became shorter while it was being read")
        return data

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode()

    def _value(self, kind: int) -> Any:
        if kind == ARRAY:
            return self._array()
        if kind == STRING:
            return self._string()
        if kind not in SCALARS:
            raise ValueError(f"there is no type {kind} of values")
        value = self._scalar(SCALARS[kind])
        return shortest_decimal(value) if kind == FLOAT32 else value

    def _array(self) -> list[Any]:
        kind = self._scalar("I")
        count = self._scalar("Q")
        if kind == STRING:
            return [self._string() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"there is no type {kind} of the values of an array")
        code = SCALARS[kind]
        data = self._bytes(count * struct.calcsize(f"<{code}"))
        return list(struct.unpack(f"<{count}{code}", data))

    def _tensor(self) -> tuple[str, TensorEntry]:
        name = self._string()
        rank = self._scalar("I")
        if not 1 <= rank <= MAX_DIMENSIONS:
            raise ValueError(f"{name:.80} has {rank} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(rank))[::-1]
        number = self._scalar("I")
        start = self._scalar("Q")
        if number in PLAIN_TYPES:
            type_name = PLAIN_TYPES[number]
            block = 1
            block_bytes = 4 if type_name == "float32" else 2
        else:
            try:
                type_name, block, block_bytes = block_layout(number)
            except ValueError as error:
                raise ValueError(f"{name:.80} is not read: {error}") from None
        if 0 in shape or shape[-1] % block:
            raise ValueError(
                f"{name:.80} has shape {list(shape)}, whose rows are not blocks of {block} numbers"
            )
        return name, TensorEntry(shape, number, type_name, start, block, block_bytes)


def shortest_decimal(value: float) -> float:
    """The number with the fewest digits that float32 rounds to `value`, as 1e-05 was written."""
    return float(str(np.float32(value)))

"""The container of GGUF, version 3 (and 2, whose files do not differ for what is read here)."""

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
Q8_0 = 8
MAX_METADATA = 1 << 26
"""Bytes of keys and descriptions of tensors; a vocabulary of Llama 3 takes ten million."""
KINDS = {0: "float32", 1: "float16", Q8_0: "q8_0", 30: "bfloat16"}
"""The types of tensors that are read here."""
BLOCK_SIZE = 32
BLOCK = np.dtype([("scale", "<f2"), ("steps", "i1", BLOCK_SIZE)])
"""q8_0: 32 numbers that share a scale."""
DTYPES = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class StoredTensor(NamedTuple):
    """A tensor on disk: a name of KINDS, its shape in numpy's order, and its first byte."""

    kind: str
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        count = math.prod(self.shape)
        if self.kind == "q8_0":
            return count // BLOCK_SIZE * BLOCK.itemsize
        return count * DTYPES[self.kind].itemsize


class GGUFFile:
    """The `keys` and `tensors` of a file.

    Raises ValueError naming the file if it is corrupt, truncated or of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._data = np.memmap(self.path, np.uint8, "r")
            self._read()
        except (OSError, ValueError, OverflowError, RecursionError, struct.error) as error:
            raise ValueError(
                f"{self.path} is not a complete GGUF file; copy or write it again ({error})"
            ) from None

    def _read(self) -> None:
        if bytes(self._data[:4]) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, num_tensors, num_keys = (self._scalar(kind) for kind in "IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported")
        self.keys: dict[str, Any] = {}
        for _ in range(num_keys):
            name = self._string()
            if name in self.keys:
                raise ValueError(f"the key {name} is there twice")
            self.keys[name] = self._value(self._scalar("I"))
        relative: dict[str, StoredTensor] = {}
        for _ in range(num_tensors):
            name, tensor = self._tensor()
            if name in relative:
                raise ValueError(f"the tensor {name} is there twice")
            relative[name] = tensor
        align = self.keys.get("general.alignment", 32)
        if type(align) is not int or align < 1:
            raise ValueError(f"general.alignment is {align!r}")
        start = -(-self._at // align) * align
        self.tensors: dict[str, StoredTensor] = {}
        for name, tensor in relative.items():
            self.tensors[name] = tensor._replace(start=start + tensor.start)
            if start + tensor.start + tensor.num_bytes > len(self._data):
                raise ValueError(f"{name} is cut off")

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
        else:
            values = raw.view(DTYPES[tensor.kind]).astype(np.float32)
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

    def _tensor(self) -> tuple[str, StoredTensor]:
        name, rank = self._string(), self._scalar("I")
        if rank > 4:
            raise ValueError(f"{name} has {rank} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(rank))[::-1]
        kind, start = self._scalar("I"), self._scalar("Q")
        if kind not in KINDS:
            raise ValueError(f"{name} has type {kind}; supported are {', '.join(KINDS.values())}")
        if kind == Q8_0 and (not shape or shape[-1] % BLOCK_SIZE):
            raise ValueError(f"{name} has rows that do not divide into blocks of {BLOCK_SIZE}")
        return name, StoredTensor(KINDS[kind], shape, start)

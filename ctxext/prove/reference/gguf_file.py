"""The container of GGUF, version 3 (and 2, which differs in nothing read here): keys, and tensors on disk."""

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
KINDS = {0: "float32", 1: "float16", 8: "q8_0", 30: "bfloat16"}
"""Types of tensors that are read here."""
BLOCK = np.dtype([("scale", "<f2"), ("steps", "i1", 32)])
"""q8_0: 32 numbers that share a scale."""
PLAIN = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Stored(NamedTuple):
    """A tensor on disk: a name of KINDS, its shape in numpy's order, its first byte."""

    kind: str
    shape: tuple[int, ...]
    start: int


class GGUFFile:
    """`keys` and `tensors` of a file. Raises ValueError naming it if it is damaged, cut off or of another kind."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._data = np.memmap(self.path, np.uint8, "r")
            self._read()
        except (OSError, ValueError, OverflowError, RecursionError, struct.error) as error:
            raise ValueError(
                f"{self.path} is no whole GGUF file; copy or write it again ({error})"
            ) from None

    def _read(self) -> None:
        self._at = 0
        if bytes(self._data[:4]) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, keys = (self._scalar(kind) for kind in "IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not read")
        self.keys: dict[str, Any] = {}
        for _ in range(keys):
            name = self._string()
            self.keys[name] = self._value(self._scalar("I"))
        infos = [self._info() for _ in range(tensors)]
        align = self.keys.get("general.alignment", 32)
        if type(align) is not int or align < 1:
            raise ValueError(f"general.alignment is {align!r}")
        base = -(-self._at // align) * align
        self.tensors = {name: found._replace(start=base + found.start) for name, found in infos}
        for name, found in self.tensors.items():
            if found.start + _bytes(found) > len(self._data):
                raise ValueError(f"{name} is cut off")

    def numbers(self, name: str) -> np.ndarray:
        """A tensor, float32. Raises ValueError if it is not there."""
        if name not in self.tensors:
            raise ValueError(f"{self.path} lacks {name}")
        found = self.tensors[name]
        raw = self._data[found.start : found.start + _bytes(found)]
        if found.kind == "q8_0":
            blocks = raw.view(BLOCK)
            values = blocks["scale"].astype(np.float32)[:, None] * blocks["steps"].astype(
                np.float32
            )
        else:
            values = raw.view(PLAIN[found.kind]).astype(np.float32)
        return values.reshape(found.shape)

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError("it is cut off")
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
            of, count = self._scalar("I"), self._scalar("Q")
            if of in SCALARS:
                data = self._bytes(count * struct.calcsize(SCALARS[of]))
                return list(struct.unpack(f"<{count}{SCALARS[of]}", data))
            return [self._value(of) for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"there is no type {kind}")
        return self._scalar(SCALARS[kind])

    def _info(self) -> tuple[str, Stored]:
        name, rank = self._string(), self._scalar("I")
        if rank > 4:
            raise ValueError(f"{name} has {rank} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(rank))[::-1]
        kind, start = self._scalar("I"), self._scalar("Q")
        if kind not in KINDS:
            raise ValueError(f"{name} has type {kind}; read are {', '.join(KINDS.values())}")
        if kind == 8 and (not shape or shape[-1] % 32):
            raise ValueError(f"{name} has rows that are no whole blocks")
        return name, Stored(KINDS[kind], shape, start)


def _bytes(found: Stored) -> int:
    count = math.prod(found.shape)
    return (
        count // 32 * BLOCK.itemsize if found.kind == "q8_0" else count * PLAIN[found.kind].itemsize
    )

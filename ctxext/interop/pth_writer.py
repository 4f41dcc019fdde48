"""PyTorch archives (.pth) written in plain numpy, as torch.load(weights_only=True) reads them."""

import contextlib
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.interop.lazy_tensor import STORAGE_DTYPES
from ctxext.interop.pth import LOCAL_HEADER, ORDERED_DICT, REBUILD_TENSOR, STORAGES

WRITE_SIZE = 1 << 18
"""Bytes; larger writes make the system look for larger pages, which can take ten times as long."""
ALIGNMENT = 64
"""Bytes that records are aligned to, as torch.save does."""
ZIP64_FIELD = 20
"""Bytes of the extra field that zipfile adds to the header of a large record."""


@contextlib.contextmanager
def create(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str
) -> Iterator[Callable[[np.ndarray], None]]:
    """Open a new file for tensors of these names and shapes.

    Yields a function to add the arrays, one by one and in this order. Raises OSError if the file
    cannot be written.
    """
    numpy_type = STORAGE_DTYPES[dtype]
    keys = iter(range(len(shapes)))
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:

        def add_record(name: str, data: Any) -> None:
            size = memoryview(data).nbytes
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            info.file_size = size
            header = file.tell() + LOCAL_HEADER + len(info.filename) + 4
            if size * 1.05 > zipfile.ZIP64_LIMIT:
                header += ZIP64_FIELD
            padding = -header % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(info, "w") as record:
                for start in range(0, size, WRITE_SIZE):
                    record.write(data[start : start + WRITE_SIZE])

        def add_array(array: np.ndarray) -> None:
            contiguous = np.ascontiguousarray(array, numpy_type)
            add_record(f"data/{next(keys)}", contiguous.reshape(-1).view(np.uint8))

        add_record("data.pkl", _pickle(shapes, dtype))
        add_record("byteorder", b"little")
        yield add_array
        add_record("version", b"3\n")


def _pickle(shapes: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    """data.pkl for contiguous tensors, opcode by opcode: pickle protocol 2."""
    storage_class = next(name for name, stored in STORAGES.items() if stored == dtype)
    items = []
    for key, (name, shape) in enumerate(shapes.items()):
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        storage = _tuple(
            _text("storage"),
            _global(storage_class),
            _text(str(key)),
            _text("cpu"),
            _int(math.prod(shape)),
        )
        arguments = _tuple(
            storage + b"Q",  # BINPERSID: load the storage
            _int(0),  # its offset
            _tuple(*map(_int, shape)),
            _tuple(*map(_int, strides)),
            b"\x89",  # NEWFALSE: requires no gradient
            _global(ORDERED_DICT) + b")R",  # no backward hooks
        )
        items.append(_text(name) + _global(REBUILD_TENSOR) + arguments + b"R")
    return b"\x80\x02" + _global(ORDERED_DICT) + b")R(" + b"".join(items) + b"u."


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _int(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"

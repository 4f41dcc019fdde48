"""PyTorch archives (.pth) written in plain numpy: what torch.load(weights_only=True) reads."""

import contextlib
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.interop.pth import DICT, LOCAL_HEADER, STORAGES, TENSOR
from ctxext.interop.tensor_blocks import DTYPES

WRITE = (
    1 << 18
)  # bytes; larger writes make the system look for larger pages, which can take ten times as long
ALIGNMENT = 64  # bytes, as torch.save aligns records


@contextlib.contextmanager
def create(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a file that torch.load(weights_only=True) reads: yields a function to put the arrays, in this order.

    Raises OSError if it cannot be written.
    """
    kind, keys = DTYPES[dtype], iter(range(len(shapes)))
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:

        def put(name: str, data: Any) -> None:
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            info.file_size = size = memoryview(data).nbytes
            header = file.tell() + LOCAL_HEADER + len(info.filename) + 4
            header += 20 * (size * 1.05 > zipfile.ZIP64_LIMIT)  # the field that zipfile then adds
            padding = -header % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(info, "w") as record:
                for start in range(0, size, WRITE):
                    record.write(data[start : start + WRITE])

        def put_array(array: np.ndarray) -> None:
            put(f"data/{next(keys)}", np.ascontiguousarray(array, kind).reshape(-1).view(np.uint8))

        put("data.pkl", _pickle(shapes, dtype))
        put("byteorder", b"little")
        yield put_array
        put("version", b"3\n")


def _pickle(shapes: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    """data.pkl of contiguous tensors, by hand: pickle protocol 2."""
    storage = next(name for name, stored in STORAGES.items() if stored == dtype)
    items = []
    for key, (name, shape) in enumerate(shapes.items()):
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        place = _tuple(
            _text("storage"),
            _global(storage),
            _text(str(key)),
            _text("cpu"),
            _int(math.prod(shape)),
        )
        sizes = (_tuple(*map(_int, numbers)) for numbers in (shape, strides))
        arguments = _tuple(place + b"Q", _int(0), *sizes, b"\x89", _global(DICT) + b")R")
        items.append(_text(name) + _global(TENSOR) + arguments + b"R")
    return b"\x80\x02" + _global(DICT) + b")R(" + b"".join(items) + b"u."


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _int(number: int) -> bytes:
    return (
        b"J" + struct.pack("<i", number)
        if number < 2**31
        else b"\x8a\x08" + struct.pack("<q", number)
    )


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"

"""PyTorch archives (.pth) read in plain numpy. What is pickled in them is never run.

Such a file is a zip of uncompressed records: data.pkl says name, shape and place of every tensor, data/N holds the
numbers. The few opcodes that say a dictionary of tensors are interpreted here one by one; there is no unpickler.
"""

import dataclasses
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ctxext.interop.tensor_blocks import DTYPES, Entry, Piece, read_piece

STORAGES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
}
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
CONSTANTS: dict[str, Any] = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
LOCAL_HEADER = 30  # bytes, before name and extra field


class _Record(NamedTuple):
    start: int
    size: int
    crc: int


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    dtype: str
    start: int
    size: int


def open_archive(path: str | Path) -> dict[str, Entry]:
    """Name -> Entry of the tensors in a file that torch.save wrote; numbers stay on disk until `Entry.read`.

    Raises ValueError naming the file if it is missing, cut off, damaged, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy it again")
    with path.open("rb") as file:
        start = file.read(4)
        if start[:2] == b"\x80\x02":
            raise ValueError(
                f"{path} has the format of torch before 1.6, which is not read; write it again with a "
                "newer one: torch.save(torch.load(FILE, weights_only=True), FILE)"
            )
        if start != b"PK\x03\x04":
            raise ValueError(f"{path} is no file of torch.save; copy it again")
        try:
            records = _records(file)
            if "byteorder" in records and _content(file, records["byteorder"]) != b"little":
                raise ValueError("its byteorder is not little")
            return _tensors(path, _content(file, records["data.pkl"]), records)
        except (ValueError, zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} cannot be read; copy or save it again ({error})") from None
        except (
            KeyError,
            IndexError,
            TypeError,
            OverflowError,
            NotImplementedError,
            struct.error,
        ) as error:
            raise ValueError(
                f"{path} is damaged; copy or save it again ({type(error).__name__}: {error})"
            ) from None


def _records(file: BinaryIO) -> dict[str, _Record]:
    """The records by name, without the directory that all of them lie in."""
    end, found = file.seek(0, 2), {}
    for info in zipfile.ZipFile(file).infolist():
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.compress_size != info.file_size
            or info.flag_bits & 1
        ):
            raise ValueError(
                f"record {info.filename!r} is compressed or encrypted, which torch.save never does"
            )
        if info.header_offset < 0:
            raise ValueError(f"record {info.filename!r} is cut off")
        file.seek(info.header_offset)
        signature, name, extra = struct.unpack("<4s22x2H", file.read(LOCAL_HEADER))
        record = _Record(info.header_offset + LOCAL_HEADER + name + extra, info.file_size, info.CRC)
        if signature != b"PK\x03\x04" or record.start + record.size > end:
            raise ValueError(f"record {info.filename!r} is cut off")
        if found.setdefault(info.filename.partition("/")[2], record) is not record:
            raise ValueError(f"record {info.filename!r} is there twice")
    return found


def _content(file: BinaryIO, record: _Record) -> bytes:
    file.seek(record.start)
    data = file.read(record.size)
    if zlib.crc32(data) != record.crc:
        raise ValueError("a checksum is wrong")
    return data


def _tensors(path: Path, pickled: bytes, records: dict[str, _Record]) -> dict[str, Entry]:
    def storage(kind: Any, of: Any, key: Any, device: Any, numel: Any) -> _Storage:
        if not (
            kind == "storage"
            and isinstance(of, _Global)
            and of.name in STORAGES
            and type(key) is str
        ):
            raise ValueError("a storage is none of float32, float16 and bfloat16")
        dtype, (start, size, _) = STORAGES[of.name], records[f"data/{key}"]
        if type(numel) is not int or numel * DTYPES[dtype].itemsize != size:
            raise ValueError(
                f"data/{key} has {size} bytes, not the {numel} x {dtype} that data.pkl says"
            )
        return _Storage(dtype, start, numel)

    def tensor(of: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Entry:
        if not isinstance(of, _Storage) or any(
            type(n) is not int or n < 0 for n in (offset, *shape, *strides)
        ):
            raise ValueError("a tensor has no storage, or sizes that are no numbers")
        strides = [
            step * (n > 1) for n, step in zip(shape, strides, strict=True)
        ]  # any, where there is but one
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if not 0 < math.prod(shape) <= of.size or last >= of.size or len(shape) > 8:
            raise ValueError(f"a tensor does not lie within its {of.size} numbers")
        kind = DTYPES[of.dtype]
        start, steps = of.start + offset * kind.itemsize, [step * kind.itemsize for step in strides]

        count = math.prod(shape)
        whole = steps == [
            kind.itemsize * math.prod(shape[i + 1 :]) * (n > 1) for i, n in enumerate(shape)
        ]
        pieces = (Piece(path, start, count * kind.itemsize),) * whole

        def read(index: Any = ...) -> np.ndarray:
            everything = index is ... or tuple(map(slice.indices, index, shape)) == tuple(
                (0, n, 1) for n in shape
            )
            if pieces and everything:
                return read_piece(pieces[0], tuple(shape), kind)
            # Mapped anew for each tensor: pages count as memory in use until the file is closed.
            bytes_ = np.memmap(path, np.uint8, "r", start, ((last - offset + 1) * kind.itemsize,))
            return np.array(np.ndarray(shape, kind, bytes_, strides=steps)[index])

        return Entry(tuple(shape), of.dtype, read, pieces)

    found = _interpret(pickled, storage, tensor)
    if wrong := [name for name, value in found.items() if not isinstance(value, Entry)]:
        raise ValueError(f"{wrong[0]!r} is no tensor; a dictionary of names and tensors is read")
    return found


def _interpret(
    pickled: bytes, storage: Callable[..., _Storage], tensor: Callable[..., Entry]
) -> dict[str, Any]:
    """What data.pkl says, by the opcodes that torch.save uses for tensors; any other is refused."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for opcode, arg, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(arg)
            case "NEWTRUE" | "NEWFALSE" | "NONE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "MARK":
                marks.append(stack)
                stack = []
            case "TUPLE":
                top, stack = tuple(stack), marks.pop()
                stack.append(top)
            case "SETITEMS":
                items, stack = stack, marks.pop()
                _update(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [key, value])
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BINPERSID":
                stack.append(storage(*stack.pop()))
            case "GLOBAL":
                if arg not in (DICT, TENSOR, *STORAGES):
                    raise ValueError(
                        f"it asks for {str(arg).replace(' ', '.'):.99}, which no tensor needs; none "
                        "of it was run"
                    )
                stack.append(_Global(str(arg)))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if function == _Global(TENSOR):
                    stack.append(tensor(*arguments))
                elif function == _Global(DICT) and arguments == ():
                    stack.append({})
                else:
                    raise ValueError("it calls what is no tensor; none of it was run")
            case "BUILD":  # the versions of modules, which a state_dict carries
                stack.pop()
            case "STOP":
                (found,) = stack
                if not isinstance(found, dict):
                    raise ValueError("it holds no dictionary of tensors")
                return found
            case _:
                raise ValueError(f"opcode {opcode.name} is no part of a dictionary of tensors")
    raise ValueError("data.pkl is cut off")


def _update(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or any(not isinstance(key, str) for key in items[::2]):
        raise ValueError("it holds something else than names and tensors")
    target.update(zip(items[::2], items[1::2], strict=True))

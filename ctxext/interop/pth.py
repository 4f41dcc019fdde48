"""PyTorch archives (.pth, .bin) read in plain numpy. Nothing that is pickled in them is run.

Such a file is a zip of uncompressed records: data.pkl describes every tensor by name, shape and
place, and data/N holds the numbers. Each record has a checksum, which is compared before the first
of its numbers is used. A pickle is a program; the few opcodes that build a dictionary
of tensors are interpreted here one by one, and any other refuses the file. There is no unpickler.
"""

import dataclasses
import functools
import logging
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ctxext.files import refuse_lfs_pointer
from ctxext.interop.lazy_tensor import STORAGE_DTYPES, FileChunk, LazyTensor, read_chunk

STORAGES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
}
ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
CONSTANTS: dict[str, Any] = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
LOCAL_HEADER = 30
"""Bytes of a zip record's header before its name and extra field."""
MAX_DIMS = 8
MAX_PICKLE = 2**22
"""Bytes; data.pkl of a model with thousands of tensors has less than one million."""
MAX_OPCODES = 2**20
"""A tensor takes about forty."""
LARGEST_INTEGER = 2**63
"""No size or place is as large, and arithmetic with integers of any length takes any time."""
MAX_RECORDS = 2**16
MAX_DIRECTORY = 2**22
"""Bytes of the list of all records, of which each takes about sixty."""
CHECKSUM_BLOCK = 2**22
"""Bytes that are read at once to compute a checksum."""
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"


class _Record(NamedTuple):
    """The bytes of a zip record, and their CRC-32; None in a file that was saved without any."""

    name: str
    start: int
    size: int
    crc: int | None


@dataclasses.dataclass(frozen=True)
class _Global:
    """A class or function that the pickle names; it is compared by name and never imported."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """The numbers of one record; `start` in bytes of the file, `size` in numbers.

    `verify()` raises ValueError if they are not those that were saved.
    """

    dtype: str
    start: int
    size: int
    verify: Callable[[], None]


def open_archive(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a file that torch.save wrote, by name.

    Numbers stay on disk until they are read; then their record's checksum is compared, once.
    Raises ValueError naming the file if it is missing, cut off, corrupt, or holds anything but
    named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy it again")
    with path.open("rb") as file:
        refuse_lfs_pointer(path)
        signature = file.read(4)
        if signature[:2] == b"\x80\x02":
            raise ValueError(
                f"{path} has the format of torch before 1.6, which is not supported; write it "
                "again with a newer one: torch.save(torch.load(FILE, weights_only=True), FILE)"
            )
        if signature != b"PK\x03\x04":
            raise ValueError(f"{path} was not written by torch.save; copy it again")
        try:
            records = _records(file)
            if all(record.crc is None for record in records.values()):
                logging.getLogger("ctxext").warning(
                    "%s was saved without checksums, so that damage to it cannot be noticed", path
                )
            if "byteorder" in records and _content(file, records["byteorder"]) != b"little":
                raise ValueError("its byteorder is not little")
            pickled = records["data.pkl"]
            if pickled.size > MAX_PICKLE:
                raise ValueError(f"data.pkl has {pickled.size} bytes, more than any model needs")
            return _tensors(path, _content(file, pickled), records)
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
                f"{path} is corrupt; copy or save it again ({type(error).__name__}: {error})"
            ) from None


def _records(file: BinaryIO) -> dict[str, _Record]:
    """The records by name, without the directory that all of them are in."""
    file_size = file.seek(0, 2)
    records: dict[str, _Record] = {}
    _check_directory(file, file_size)
    entries = zipfile.ZipFile(file).infolist()
    if len(entries) > MAX_RECORDS:
        raise ValueError(f"it has {len(entries)} records, more than any model needs")
    # As torch.serialization.set_crc32_options(False) leaves them.
    has_checksums = any(info.CRC for info in entries)
    for info in entries:
        compressed = info.compress_type != zipfile.ZIP_STORED
        encrypted = info.flag_bits & 1
        if compressed or encrypted or info.compress_size != info.file_size:
            raise ValueError(
                f"record {info.filename!r} is compressed or encrypted, which torch.save never does"
            )
        if info.header_offset < 0:
            raise ValueError(f"record {info.filename!r} is cut off")
        file.seek(info.header_offset)
        signature, name_size, extra_size = struct.unpack("<4s22x2H", file.read(LOCAL_HEADER))
        start = info.header_offset + LOCAL_HEADER + name_size + extra_size
        if signature != b"PK\x03\x04" or start + info.file_size > file_size:
            raise ValueError(f"record {info.filename!r} is cut off")
        name = info.filename.partition("/")[2]
        if name in records:
            raise ValueError(f"record {info.filename!r} is there twice")
        crc = info.CRC if has_checksums else None
        records[name] = _Record(info.filename, start, info.file_size, crc)
    return records


def _check_directory(file: BinaryIO, file_size: int) -> None:
    """Raise ValueError if the list of records at the end of a zip is too long to be read.

    Its size is in the end record, which 64 KiB of comment may follow, or in the larger one before.
    """
    end_size, locator_size, large_end_size = 22, 20, 56
    start = max(0, file_size - (end_size + 0xFFFF))
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + end_size:
        raise ValueError("it is cut off")
    (size,) = struct.unpack_from("<I", tail, at + 12)
    if size == 0xFFFFFFFF:
        file.seek(max(0, start + at - locator_size))
        signature, place = struct.unpack("<4s4xQ4x", file.read(locator_size))
        for large_end in (start + at - locator_size - large_end_size, place):
            file.seek(min(max(0, large_end), file_size))
            record = file.read(large_end_size)
            if signature == b"PK\x06\x07" and record[:4] == b"PK\x06\x06":
                size = max(size % 0xFFFFFFFF, struct.unpack_from("<Q", record, 40)[0])
    if size > MAX_DIRECTORY:
        raise ValueError(f"its list of records has {size} bytes, more than any model needs")


def _content(file: BinaryIO, record: _Record) -> bytes:
    file.seek(record.start)
    data = file.read(record.size)
    if record.crc is not None and zlib.crc32(data) != record.crc:
        raise ValueError(f"the checksum of record {record.name!r} is wrong")
    return data


def _verifier(path: Path, record: _Record) -> Callable[[], None]:
    """A function that compares the checksum of a record, the first time that it is called."""

    @functools.cache
    def verify() -> None:
        if record.crc is None:
            return
        crc = 0
        left = record.size
        with path.open("rb", buffering=0) as file:
            file.seek(record.start)
            while left:
                block = file.read(min(left, CHECKSUM_BLOCK))
                if not block:
                    break
                crc = zlib.crc32(block, crc)
                left -= len(block)
        if left or crc != record.crc:
            raise ValueError(
                f"{path} is corrupt: the checksum of record {record.name!r} is wrong; copy or save "
                "it again"
            )

    return verify


def _tensors(path: Path, pickled: bytes, records: dict[str, _Record]) -> dict[str, LazyTensor]:
    values = _interpret(
        pickled, functools.partial(_storage, path, records, {}), functools.partial(_tensor, path)
    )
    other = [name for name, value in values.items() if not isinstance(value, LazyTensor)]
    if other:
        hint = ""
        if isinstance(values[other[0]], dict):
            hint = "; if the model is in there, save it by itself: torch.save(state[NAME], FILE)"
        raise ValueError(
            f"{other[0]!r:.99} is not a tensor; only dictionaries of tensors are supported{hint}"
        )
    return values


def _storage(
    path: Path,
    records: dict[str, _Record],
    verifiers: dict[str, Callable[[], None]],
    kind: Any,
    storage_class: Any,
    key: Any,
    device: Any,
    numel: Any,
) -> _Storage:
    """The numbers that a persistent id of the pickle stands for.

    `verifiers`: those of the records met so far, which tensors may share.
    """
    if (
        kind != "storage"
        or not isinstance(storage_class, _Global)
        or storage_class.name not in STORAGES
        or type(key) is not str
    ):
        raise ValueError("a storage is not float32, float16 or bfloat16")
    dtype = STORAGES[storage_class.name]
    record = records[f"data/{key}"]
    if type(numel) is not int or numel * STORAGE_DTYPES[dtype].itemsize != record.size:
        raise ValueError(
            f"data/{key} has {record.size} bytes, not the {numel} x {dtype} that data.pkl describes"
        )
    verify = verifiers.setdefault(key, _verifier(path, record))
    return _Storage(dtype, record.start, numel, verify)


def _tensor(path: Path, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> LazyTensor:
    """A tensor over a storage; offset and strides count numbers."""
    if len(shape) > MAX_DIMS or len(strides) > MAX_DIMS:  # before any arithmetic
        raise ValueError("a tensor is not within its storage: it has too many dimensions")
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError("a tensor has no storage, or sizes that are not numbers")
    # The stride of a dimension of size 1 is arbitrary.
    strides = [step if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if not 0 < count <= storage.size or last >= storage.size:
        raise ValueError(f"a tensor is not within its storage of {storage.size} numbers")
    dtype = STORAGE_DTYPES[storage.dtype]
    start = storage.start + offset * dtype.itemsize
    contiguous = strides == [math.prod(shape[i + 1 :]) if n > 1 else 0 for i, n in enumerate(shape)]
    chunk = None
    if contiguous:
        chunk = FileChunk(path, start, count * dtype.itemsize, storage.verify)
    everything = tuple((0, n, 1) for n in shape)

    def read(index: Any = ...) -> np.ndarray:
        is_whole = index is ... or tuple(map(slice.indices, index, shape)) == everything
        if chunk is not None and is_whole:
            return read_chunk(chunk, tuple(shape), dtype)
        storage.verify()
        # Mapped again for each read: pages count as memory in use until the file is closed.
        size = (last - offset + 1) * dtype.itemsize
        mapped = np.memmap(path, np.uint8, "r", start, (size,))
        byte_strides = [step * dtype.itemsize for step in strides]
        return np.array(np.ndarray(shape, dtype, mapped, strides=byte_strides)[index])

    chunks = () if chunk is None else (chunk,)
    return LazyTensor(tuple(shape), storage.dtype, read, chunks, path)


def _interpret(
    pickled: bytes, storage: Callable[..., _Storage], tensor: Callable[..., LazyTensor]
) -> dict[str, Any]:
    """The dictionary that data.pkl builds, by the opcodes that torch.save uses for tensors."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, arg, _) in enumerate(pickletools.genops(pickled)):
        if count >= MAX_OPCODES:
            raise ValueError(f"data.pkl has more than {MAX_OPCODES} opcodes, as no model has")
        if isinstance(arg, int) and abs(arg) >= LARGEST_INTEGER:
            raise ValueError(f"data.pkl holds an integer of {arg.bit_length()} bits")
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
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "MARK":
                marks.append(stack)
                stack = []
            case "TUPLE":
                items = tuple(stack)
                stack = marks.pop()
                stack.append(items)
            case "SETITEMS":
                items = stack
                stack = marks.pop()
                _update(stack[-1], items[::2], items[1::2])
            case "SETITEM":
                value = stack.pop()
                key = stack.pop()
                _update(stack[-1], [key], [value])
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BINPERSID":
                stack.append(storage(*stack.pop()))
            case "GLOBAL":
                if arg not in (ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *STORAGES):
                    raise ValueError(
                        f"it imports {str(arg).replace(' ', '.'):.99}, which no tensor needs; "
                        "nothing in it was run"
                    )
                stack.append(_Global(str(arg)))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments, tensor))
            case "BUILD":  # the versions of modules, which a state_dict carries
                stack.pop()
            case "STOP":
                (result,) = stack
                if not isinstance(result, dict):
                    raise ValueError("it does not hold a dictionary of tensors")
                return result
            case _:
                raise ValueError(f"opcode {opcode.name} does not belong to a dictionary of tensors")
    raise ValueError("data.pkl is cut off")


def _call(function: Any, arguments: Any, tensor: Callable[..., LazyTensor]) -> Any:
    """The result of one of the three calls that are allowed."""
    if function == _Global(REBUILD_TENSOR):
        return tensor(*arguments)
    if function == _Global(REBUILD_PARAMETER):
        data, *_ = arguments
        if not isinstance(data, LazyTensor):
            raise ValueError("a parameter has no tensor")
        return data
    if function == _Global(ORDERED_DICT) and arguments == ():
        return {}
    raise ValueError("it calls a function that no tensor needs; nothing in it was run")


def _update(target: Any, keys: list[Any], values: Iterable[Any]) -> None:
    if not isinstance(target, dict) or any(not isinstance(key, str) for key in keys):
        raise ValueError("it holds something other than names and tensors")
    target.update(zip(keys, values, strict=True))

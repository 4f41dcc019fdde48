"""Torch archives: we read torch.save's, torch.load reads ours, and no code in one is ever run."""

import collections
import functools
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxext.interop import pth
from ctxext.interop.lazy_tensor import STORAGE_DTYPES, blocks
from ctxext.interop.pth import open_archive
from ctxext.interop.pth_writer import create

WHOLE = torch.arange(60.0).reshape(5, 12)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().numpy()


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_tensors_views_and_shared_storages_of_torch(tmp_path, dtype):
    x = WHOLE.to(getattr(torch, dtype))
    state = {
        "whole": x,
        "transposed": x.t(),
        "part": x[1:4, 3:7],
        "steps": x[::2, ::5],
        "row": x[2],
        "one": x[:1, :1],
        "spread": x[:, :1].expand(5, 3),
        "number": x[4, 11],
    }
    for saved in (state, collections.OrderedDict(state)):
        torch.save(saved, tmp_path / "x.pth")
        tensors = open_archive(tmp_path / "x.pth")
        assert list(tensors) == list(state)
        assert {entry.dtype for entry in tensors.values()} == {dtype}
        for name, tensor in state.items():
            assert tensors[name].shape == tuple(tensor.shape)
            np.testing.assert_array_equal(
                tensors[name].read().astype(np.float32), as_numpy(tensor), name
            )
        transposed = tensors["transposed"]
        np.testing.assert_array_equal(
            transposed.read((slice(2, 5), slice(1, 3))), transposed.read()[2:5, 1:3]
        )


def test_a_state_dict_with_its_versions(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "x.pth")
    tensors = open_archive(tmp_path / "x.pth")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(tensors[name].read(), tensor.numpy())


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_torch_loads_what_we_write(tmp_path, dtype):
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (3, 5), "naïve": (7,), "cube": (2, 3, 4), "number": ()}
    arrays = {
        name: rng.standard_normal(shape).astype(STORAGE_DTYPES[dtype])
        for name, shape in shapes.items()
    }
    with create(tmp_path / "x.00.pth", shapes, dtype) as put:
        for array in arrays.values():
            put(array)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "x.00.pth", weights_only=True, **options)
        assert list(loaded) == list(shapes)
        assert {t.dtype for t in loaded.values()} == {getattr(torch, dtype)}
        for name, array in arrays.items():
            np.testing.assert_array_equal(as_numpy(loaded[name]), array.astype(np.float32))
    for name, entry in open_archive(tmp_path / "x.00.pth").items():
        np.testing.assert_array_equal(entry.read(), arrays[name])
    with zipfile.ZipFile(tmp_path / "x.00.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            start = info.header_offset + 30 + len(info.filename) + len(info.extra)
            assert start % 64 == 0


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path, protocol):
    marker = tmp_path / "was-run"
    for evil in (
        Evil(os.system, f"touch {marker}"),
        Evil(eval, f"open({str(marker)!r}, 'w')"),
        Evil(os.mkdir, str(marker)),
    ):
        for content in (evil, {"x": WHOLE, "y": evil}):
            if protocol == 2:
                torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol)
                message = r"imports (posix\.system|__builtin__\.eval|posix\.mkdir)"
            else:
                archive(tmp_path / "x.pth", pickle.dumps({"y": evil}, protocol))
                message = "imports|opcode [A-Z_0-9]+ does not belong"
            with pytest.raises(ValueError, match=message):
                open_archive(tmp_path / "x.pth")
    assert not marker.exists()


def archive(path: Path, pickled: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", **records}.items():
            file.writestr(f"x/{name}", data)
    return path


def refused(tmp_path: Path, pickled: bytes, message: str, **records: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            open_archive(archive(tmp_path / "x.pth", pickled, **records))
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 2e6, "a size in a header allocated memory"
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert "x.pth" in str(error.value)


class Global:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> None: ...


class Stored(tuple):
    """A persistent id, in the pickles of these tests."""


class Tensor(tuple):
    """The arguments that a tensor is rebuilt from, in the pickles of these tests."""


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return tuple(value) if isinstance(value, Stored) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            return self.write(b"c" + value.name.encode() + b"\n")
        if isinstance(value, Tensor):
            return self.save_reduce(Global("torch._utils\n_rebuild_tensor_v2"), tuple(value))
        return super().save(value, save_persistent_id)


def tensor_pickle(
    kind="BFloat16Storage", key="0", numel=6, offset=0, shape=(2, 3), strides=(3, 1)
) -> bytes:
    """data.pkl of one tensor with the given sizes."""
    stored = Stored(("storage", Global(f"torch\n{kind}"), key, "cpu", numel))
    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Tensor((stored, offset, shape, strides, False, {}))})
    return out.getvalue()


DATA = {"data/0": bytes(12)}


def test_the_pickles_of_these_tests_are_good(tmp_path):
    tensors = open_archive(archive(tmp_path / "x.pth", tensor_pickle(), **DATA))
    np.testing.assert_array_equal(tensors["a"].read(), np.zeros((2, 3)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"numel": 10**12}, r"data/0 has 12 bytes, not the 1000000000000 x bfloat16"),
        ({"numel": -6}, "data/0 has 12 bytes"),
        ({"numel": 5}, "data/0 has 12 bytes"),
        ({"numel": "6"}, "data/0 has 12 bytes"),
        ({"shape": (10**6, 10**6), "strides": (0, 0)}, "is not within its storage of 6 numbers"),
        ({"shape": (3, 3)}, "is not within"),
        ({"shape": (2, 3), "strides": (4, 1)}, "is not within"),
        ({"shape": (2, 3), "strides": (2**62, 1)}, "is not within"),
        ({"shape": (2, 3), "strides": (2**80, 1)}, "holds an integer of 81 bits"),
        ({"shape": (2, 3), "strides": (-3, 1)}, "sizes that are not numbers"),
        ({"shape": (2,)}, "longer than"),
        ({"shape": (0, 3)}, "is not within"),
        ({"shape": (2.0, 3)}, "opcode BINFLOAT does not belong"),
        ({"shape": (True, 3)}, "sizes that are not numbers"),
        ({"shape": 6}, "is corrupt"),
        ({"shape": (1,) * 100, "strides": (1,) * 100}, "is not within"),
        ({"offset": 1}, "is not within"),
        ({"offset": -1}, "sizes that are not numbers"),
        ({"offset": 2**62}, "is not within"),
        ({"offset": 2**70}, "holds an integer of 71 bits"),
        ({"offset": -(2**63)}, "holds an integer of 64 bits"),
        ({"key": "1"}, "is corrupt; .*data/1"),
        ({"key": "../../etc/passwd"}, "is corrupt; .*passwd"),
        ({"key": ("0",)}, "a storage is not float32, float16 or bfloat16"),
        ({"kind": "DoubleStorage"}, r"imports torch\.DoubleStorage, which no tensor needs"),
        ({"kind": "QInt8Storage"}, r"imports torch\.QInt8Storage"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(tmp_path, changes, message):
    refused(tmp_path, tensor_pickle(**changes), message, **DATA)


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"", "cannot be read"),
        (b"\x80\x02}", "cannot be read"),
        (b"\x80\x02N.", "does not hold a dictionary of tensors"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "'a' is not a tensor"),
        (b"\x80\x02}K\x01K\x01s.", "something other than names and tensors"),
        # A text of 2 GB.
        (b"\x80\x02X\xff\xff\xff\x7fa.", "cannot be read"),
        # A memo of 2^31 entries.
        (b"\x80\x02r\xff\xff\xff\x7f.", "is corrupt"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "does not hold a dictionary"),
        # A bytearray of 2^40 bytes.
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "cannot be read"),
        (b"\x80\x02u.", "is corrupt"),
        (b"\x80\x02Q.", "is corrupt"),
        (b"\x80\x02)R.", "is corrupt"),
        (b"\x80\x02))R.", "it calls a function that no tensor needs"),
        (b"\x80\x02h\x05.", "is corrupt"),
        (b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b".", "does not hold a dictionary"),
        # A key nested so deeply that hashing it would crash.
        (
            b"\x80\x02}" + b")" + b"\x85" * 30_000 + b"K\x01s.",
            "something other than names",
        ),
        (b"\x80\x02c__builtin__\nexec\n)R.", r"imports __builtin__\.exec"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "opcode SHORT_BINUNICODE"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path, pickled, message):
    refused(tmp_path, pickled, message, **DATA)


def repeated(value: bytes, count: int) -> bytes:
    """A tuple of `count` references to one value, in a pickle of a few bytes for each."""
    return b"(" + value + b"q\xfe" + b"h\xfe" * (count - 1) + b"t"


GIANT = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
"""The integer 2^2039 - 1, as pickles have it."""


def with_sizes(number: bytes, count: int) -> bytes:
    """data.pkl of a tensor with `count` dimensions of the size `number`."""
    stored = Stored(("storage", Global("torch\nFloatStorage"), "0", "cpu", 3))
    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Tensor((stored, 0, "SIZES", "SIZES", False, {}))})
    sizes = repeated(number, count)
    text = out.getvalue()
    first = text.index(b"X\x05\x00\x00\x00SIZES")
    # The second mention is a reference to the first.
    return text[:first] + sizes + text[first + len(b"X\x05\x00\x00\x00SIZES") :]


@pytest.mark.parametrize(
    ("number", "count", "message"),
    [
        (GIANT, 8, "holds an integer of 2039 bits"),
        (GIANT, 400_000, "holds an integer of 2039 bits"),
        (b"K\x02", 9, "too many dimensions"),
        (b"K\x02", 40_000, "too many dimensions"),
    ],
)
def test_giant_sizes_are_refused_before_any_arithmetic(tmp_path, number, count, message):
    start = time.process_time()
    path = archive(tmp_path / "x.pth", with_sizes(number, count), **DATA)
    with pytest.raises(ValueError, match=message):
        open_archive(path)
    assert time.process_time() - start < 20


def test_a_description_of_very_many_steps_is_not_followed_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pth, "MAX_OPCODES", 1000)
    path = archive(tmp_path / "x.pth", with_sizes(b"K\x02", 1500), **DATA)
    with pytest.raises(ValueError, match="data.pkl has more than 1000 opcodes"):
        open_archive(path)


def test_a_giant_description_is_not_read(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", bytes(2**26 + 1))
    with pytest.raises(ValueError, match="data.pkl has 67108865 bytes, more than any model needs"):
        open_archive(path)


def zip_of_many_records(count: int, *, large_end: bool) -> bytes:
    """A zip whose list, at its end, has `count` records of no bytes."""
    head = b"PK\x03\x04" + bytes(40)
    fields = (b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<4s4B4HL2L5H2L", *fields)
    records = b"".join(entry + b"x/%05x" % number for number in range(count))
    size, start = len(records), len(head)
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, size, start, 0
    )
    if not large_end:
        return head + records + end
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)
    none = 0xFFFFFFFF
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, none, none, 0)
    return head + records + large + locator + end


@pytest.mark.parametrize("large_end", [False, True])
def test_a_giant_list_of_records_is_not_read(tmp_path, monkeypatch, large_end):
    """A list of 100 MB takes the zipfile module half a minute and a gigabyte."""
    path = tmp_path / "x.pth"
    path.write_bytes(zip_of_many_records(100, large_end=large_end))
    with pytest.raises(ValueError, match="KeyError: 'data.pkl'|is cut off"):
        open_archive(path)
    path.write_bytes(zip_of_many_records(100_000, large_end=large_end))
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", lambda file: pytest.fail("the list was read"))
        with pytest.raises(ValueError, match="its list of records has 5300000 bytes, more than"):
            open_archive(path)


def test_parameters_and_nested_dictionaries(tmp_path):
    torch.save({"a": torch.nn.Parameter(WHOLE)}, tmp_path / "x.bin")
    np.testing.assert_array_equal(open_archive(tmp_path / "x.bin")["a"].read(), WHOLE.numpy())
    torch.save({"state_dict": {"a": WHOLE}, "epoch": 3}, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="'state_dict' is not a tensor; .* save it by itself"):
        open_archive(tmp_path / "x.bin")


@functools.cache
def good() -> bytes:
    out = io.BytesIO()
    torch.save({"a": WHOLE[:3].bfloat16(), "b": torch.ones(4)}, out)
    return out.getvalue()


def read_or_refused(path: Path) -> dict[str, np.ndarray] | None:
    """The numbers in an archive, None if it is refused in one line that names it."""
    try:
        return {name: entry.read() for name, entry in open_archive(path).items()}
    except ValueError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error).replace(str(path), "")
        return None


def assert_good_or_refused(path: Path) -> None:
    """As `good` was saved, to the bit."""
    numbers = read_or_refused(path)
    if numbers is not None:
        assert list(numbers) == ["a", "b"]
        np.testing.assert_array_equal(numbers["a"].astype(np.float32), as_numpy(WHOLE[:3]))
        np.testing.assert_array_equal(numbers["b"], np.ones(4, np.float32))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_altered_archives(tmp_path_factory, data):
    whole = bytearray(good())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4)) if whole else 0):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "altered.pth"
    path.write_bytes(whole)
    assert_good_or_refused(path)


def test_changed_numbers_are_refused_wherever_they_are(tmp_path):
    """The standard library's zipfile, which knows the checksums, refuses the same files."""
    path = tmp_path / "x.pth"
    whole = good()
    first = whole.index(WHOLE[:3].bfloat16().view(torch.int16).numpy().tobytes())
    last = whole.index(np.ones(4, np.float32).tobytes())
    for name, at in [("a", first), ("a", first + 71), ("b", last), ("b", last + 15)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with zipfile.ZipFile(path) as file:
            record = file.testzip()
        tensors = open_archive(path)
        other = "b" if name == "a" else "a"
        assert tensors[other].read().size == (4 if other == "b" else 36)
        message = f"x.pth is corrupt: the checksum of record '{record}' is wrong; copy or save"
        for read in (
            tensors[name].read,
            lambda tensor=tensors[name]: tensor.read((slice(0, 1),) * len(tensor.shape)),
            lambda tensor=tensors[name]: list(blocks(tensor, np.dtype(np.float32), "x")),
        ):
            with pytest.raises(ValueError, match=message):
                read()


def test_a_view_is_refused_for_damage_anywhere_in_its_record(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"column": WHOLE[:, 3], "row": WHOLE[1]}, path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(WHOLE.numpy().tobytes()) + 4 * 59] ^= 64
    path.write_bytes(damaged)
    tensors = open_archive(path)
    for name in ("column", "row"):
        with pytest.raises(ValueError, match="checksum of record 'x/data/0' is wrong"):
            tensors[name].read()


def test_a_file_without_checksums_is_read_with_a_warning(tmp_path, caplog):
    path = tmp_path / "x.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": WHOLE}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(open_archive(path)["a"].read(), WHOLE.numpy())
    assert "x.pth was saved without checksums" in caplog.text
    caplog.clear()
    torch.save({"a": WHOLE}, path)
    open_archive(path)
    assert caplog.text == ""


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(st.integers(0, 10**4), min_size=1, max_size=6)))
@example(b"\x80\x02(((((tttttQ.")
def test_altered_pickles(tmp_path_factory, change):
    pickled = bytearray(tensor_pickle())
    if isinstance(change, bytes):
        pickled = b"\x80\x02" + change + b"."
    else:
        for number in change:
            pickled[number % len(pickled)] = number // len(pickled) % 256
    path = tmp_path_factory.getbasetemp() / "pickled.pth"
    numbers = read_or_refused(archive(path, bytes(pickled), **DATA))
    assert sum(array.size for array in (numbers or {}).values()) <= path.stat().st_size


def test_other_kinds_of_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(ValueError, match="x.pth is missing"):
        open_archive(path)
    torch.save({"a": WHOLE}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        ValueError,
        match=r"torch before 1.6, .* torch.save\(torch.load\(FILE, weights_only=True\), FILE\)",
    ):
        open_archive(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="x.pth is a pointer of Git LFS, not the file"):
        open_archive(path)
    for content in (b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.pth was not written by torch.save"):
            open_archive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        # Small on disk.
        file.writestr("x/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match="'x/data.pkl' is compressed or encrypted"):
        open_archive(path)
    archive(path, tensor_pickle(), **DATA, byteorder=b"big")
    with pytest.raises(ValueError, match="its byteorder is not little"):
        open_archive(path)

"""Parquet and Arrow files written by pyarrow as sources of documents; haystacks by name."""

import hashlib
import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ctxext.data import Files, Stdlib, haystack
from ctxext.data.documents.columnar import read_values
from ctxext.data.documents.field import Field
from support.tiny_train import ByteTokenizer

TEXTS = ["erste Zeile\nzweite", "", "naïve 日本", "x" * 5000]


def table(column: str = "text", texts=TEXTS, kind=None) -> pyarrow.Table:
    return pyarrow.table(
        {"id": list(range(len(texts))), column: pyarrow.array(texts, kind or pyarrow.string())}
    )


def write_stream(path, data: pyarrow.Table) -> None:
    with (
        pyarrow.OSFile(str(path), "wb") as file,
        pyarrow.ipc.new_stream(file, data.schema) as writer,
    ):
        writer.write_table(data, max_chunksize=2)


def write_file(path, data: pyarrow.Table) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, data.schema) as writer:
        writer.write_table(data)


def saved(root, *tables: pyarrow.Table) -> None:
    """The files of `datasets.Dataset.save_to_disk`, with a cache next to them."""
    root.mkdir()
    names = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for name, data in zip(names, tables, strict=True):
        write_stream(root / name, data)
    (root / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names]})
    )
    (root / "dataset_info.json").write_text("{}")
    write_stream(root / "cache-0123456789abcdef.arrow", table(texts=["cached, not a document"]))


def read(source) -> list[str]:
    return [
        bytes((ids - 3).astype("u1")).decode() for ids in source.open(ByteTokenizer()).documents()
    ]


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()], ids=str
)
def test_every_row_is_a_document(tmp_path, kind):
    whole = [text for text in TEXTS if text]
    write_stream(tmp_path / "stream.arrow", table(kind=kind))
    write_file(tmp_path / "file.arrow", table(kind=kind))
    names = ["stream.arrow", "file.arrow"]
    if kind != pyarrow.string_view():  # not written to Parquet
        pyarrow.parquet.write_table(table(kind=kind), tmp_path / "one.parquet", row_group_size=2)
        names.append("one.parquet")
    for name in names:
        assert read(Files(str(tmp_path / name))) == whole
    assert read(Files(str(tmp_path))) == whole * len(names)
    files = Files(str(tmp_path)).open(ByteTokenizer()).provenance()["files"]
    assert files == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names
    }


def test_a_saved_dataset_is_its_files_in_order_and_a_split_must_be_named(tmp_path):
    first = table("body", ["a", "b"])
    second = table("body", ["c"])
    saved(tmp_path / "one", first, second)
    assert read(Files(str(tmp_path / "one"), field="body")) == ["a", "b", "c"]
    both = tmp_path / "both"
    both.mkdir()
    saved(both / "train", first)
    saved(both / "test", second)
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="several splits: choose one of .*both/test, .*both/train"):
        read(Files(str(both)))
    assert read(Files(str(both / "test"), field="body")) == ["c"]
    for content in (
        "[]",
        "{}",
        '{"_data_files": [{"name": "a"}]}',
        '{"_data_files": [3]}',
        '{"_data_files": [{"filename": 3}]}',
    ):
        (both / "test" / "state.json").write_text(content)
        with pytest.raises(ValueError, match="state.json does not name the data files"):
            read(Files(str(both / "test")))


def whole_file(root, name: str, data: pyarrow.Table) -> bytes:
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(data, root / name)
    else:
        write_stream(root / name, data)
    return (root / name).read_bytes()


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_broken_files_are_named(tmp_path, name):
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            read(Files(str(tmp_path / name)))
        assert "\n" not in str(error.value)
        assert name in str(error.value)

    content = whole_file(tmp_path, name, table())
    for size in (0, 5, len(content) // 2):
        (tmp_path / name).write_bytes(content[:size])
        refused("cannot be read as (parquet|arrow)")
    (tmp_path / name).unlink()
    refused("does not exist")
    whole_file(tmp_path, name, table("body"))
    refused('no column "text", but "body"; choose one with field')
    whole_file(tmp_path, name, table(texts=["a", None]))
    refused(r'row 2 \(counted from 1\): no text in the column "text"')
    whole_file(tmp_path, name, table(texts=[1, 2], kind=pyarrow.int64()))
    refused("holds int64, not text")
    whole_file(tmp_path, name, table(texts=["", ""]))
    refused("holds no document with text")
    raw = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    whole_file(tmp_path, name, pyarrow.table({"text": raw}))
    refused(r"row 1 \(counted from 1\): not UTF-8 \(byte 0\)")


def array_with_offsets(kind: pyarrow.DataType, offsets: list[int]) -> pyarrow.Array:
    """Texts of 50 bytes, divided by whatever offsets are given."""
    dtype = "<i8" if kind == pyarrow.large_string() else "<i4"
    buffers = [None, pyarrow.py_buffer(np.array(offsets, dtype).tobytes()), pyarrow.py_buffer(DATA)]
    return pyarrow.Array.from_buffers(kind, len(offsets) - 1, buffers)


DATA = b"hello" * 10
HOSTILE = {
    f"{kind}, {offsets}": array_with_offsets(kind, offsets)
    for kind in (pyarrow.string(), pyarrow.large_string())
    for offsets in ([0, 1 << 30, 10], [0, -5_000_000, 10], [0, 20, 10])
} | {
    "dictionary, indices": pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0, 1 << 30], pyarrow.int32()), pyarrow.array(["a"]), safe=False
    ),
    "dictionary, offsets": pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0, 1], pyarrow.int32()),
        array_with_offsets(pyarrow.string(), [0, 1 << 30, 9]),
    ),
}


@pytest.mark.parametrize("column", HOSTILE.values(), ids=HOSTILE.keys())
def test_offsets_that_lead_out_of_a_column_are_refused(tmp_path, column):
    """Read in this process: without the check, the library aborted it, or a signal ended it."""
    write_file(tmp_path / "a.arrow", pyarrow.table({"text": column}))
    for call in (
        lambda: read(Files(str(tmp_path / "a.arrow"))),
        lambda: list(read_values(tmp_path / "a.arrow", Field("text", "field"))),
    ):
        with pytest.raises(ValueError, match=r"a\.arrow cannot be read as arrow: .*(ffset|ndex)"):
            call()


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    whole_file(tmp_path, "a.parquet", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a\.parquet: pip install 'ctxext\[data\]'"):
        read(Files(str(tmp_path)))


def test_a_haystack_by_name(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("A text.")
    (tmp_path / "table").mkdir()
    whole_file(tmp_path / "table", "a.parquet", table("body"))
    saved(tmp_path / "saved", table())
    (tmp_path / "notes.pdf").write_text("no")
    assert haystack("stdlib") == Stdlib("heldout")
    assert haystack(str(tmp_path / "text")) == Files(str(tmp_path / "text"))
    assert haystack(str(tmp_path / "text" / "a.txt")) == Files(str(tmp_path / "text" / "a.txt"))
    table_path = str(tmp_path / "table")
    assert haystack(table_path, field="body") == Files(table_path, "body")
    assert haystack(str(tmp_path / "saved")) == Files(str(tmp_path / "saved"))
    for name, message in (
        ("nowhere", 'there is no haystack .*give "stdlib", or'),
        ("notes.pdf", r"is of no kind that can be read \(\.txt"),
        (".", "saved is a saved dataset: name it alone, or move it"),
    ):
        with pytest.raises(ValueError, match=message):
            haystack(str(tmp_path / name))

"""The same files give the same documents, or the same error, to training, --haystack and prepare.

What is expected is written down here, or comes from the library that wrote the file.
"""

import bz2
import errno
import gzip
import json
import lzma
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.data import Files, Prepared, TextSource, haystack
from ctxext.data.documents import compression, find_files, read
from ctxext.files import read_json
from ctxext.prepare import Recipe, prepare
from ctxext.tokenization.tokenizer import load_tokenizer
from support.tiny_train import ByteTokenizer

RECIPE = str(Path(__file__).parents[2] / "experiments" / "extend.py")
Content = bytes | Callable[[Path], None]


def decoded(ids: np.ndarray) -> str:
    return bytes((np.asarray(ids) - 3).astype("u1")).decode()


def of_training(path: Path, field: str) -> list[str]:
    corpus = Files(str(path), field).open(ByteTokenizer())
    return [decoded(ids) for ids in corpus.documents()]


def of_haystack(path: Path, field: str) -> list[str]:
    corpus = haystack(str(path), field=field).open(ByteTokenizer())
    return [decoded(ids) for ids in corpus.documents()]


def of_prepare(path: Path, field: str) -> list[str]:
    out = path.parent / f"{path.name}-prepared"
    recipe = Recipe(field, bos=False, eos=False)
    prepare([path], out, ByteTokenizer(), recipe=recipe, chunk_bytes=7, progress=False)
    ids = np.fromfile(out / "train.tokens", read_json(out / "index.json")["dtype"])
    offsets = np.fromfile(out / "train.offsets", "<i8")
    return [decoded(ids[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def everywhere(path: Path, field: str = "text") -> list[str] | str:
    """The documents of a path, or the error without the name of the option, in all entry points."""
    outcomes: list[list[str] | str] = []
    for entry in (of_training, of_haystack, of_prepare):
        try:
            outcomes.append(entry(path, field))
        except ValueError as error:
            assert "\n" not in str(error)
            advice = r"; (choose (one|another) with|to train on its answers, give) .*"
            outcomes.append(re.sub(advice, "", str(error)))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    return outcomes[0]


def lines(*values: object, end: str = "\n") -> bytes:
    return "".join(json.dumps(value) + end for value in values).encode()


def zstandard(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet(column: pyarrow.Array, name: str = "text") -> Callable[[Path], None]:
    table = pyarrow.table({"id": list(range(len(column))), name: column})
    return lambda path: pyarrow.parquet.write_table(table, path, row_group_size=2)


def arrow(column: pyarrow.Array) -> Callable[[Path], None]:
    table = pyarrow.table({"text": column})

    def write(path: Path) -> None:
        with pyarrow.OSFile(str(path), "wb") as file:
            with pyarrow.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

    return write


TWO = lines({"text": "one"}, {"text": "two é"})
BOM = b"\xef\xbb\xbf"
DICTIONARY = pyarrow.array(["b", "a", "b", "b"]).dictionary_encode()
GOOD: dict[str, tuple[str, Content, list[str]]] = {
    "plain": ("a.txt", b"a\r\nb\n", ["a\r\nb\n"]),
    "capitals": ("A.TXT", b"a", ["a"]),
    "markdown": ("a.md", b"# a", ["# a"]),
    "plain with BOM": ("a.txt", BOM + b"a", ["a"]),
    "lines": ("a.jsonl", TWO, ["one", "two é"]),
    "capital lines": ("a.JSONL", TWO, ["one", "two é"]),
    "newline-delimited": ("a.ndjson", TWO, ["one", "two é"]),
    "lines with BOM": ("a.jsonl", BOM + TWO, ["one", "two é"]),
    "lines of Windows": ("a.jsonl", TWO.replace(b"\n", b"\r\n"), ["one", "two é"]),
    "blank lines": ("a.jsonl", b"\n" + TWO + b"\n  \n" + TWO, ["one", "two é"] * 2),
    "joined with BOMs": ("a.jsonl", BOM + TWO + BOM + TWO, ["one", "two é"] * 2),
    "texts alone in lines": ("a.jsonl", lines("one", "two"), ["one", "two"]),
    "empty texts": ("a.jsonl", lines({"text": ""}, {"text": " \n"}, {"text": "x"}), ["x"]),
    "a separator that is not a line end": ("a.jsonl", lines({"text": "a\u2028b"}), ["a\u2028b"]),
    "list of texts": ("a.json", b'["one", "two"]', ["one", "two"]),
    "list of objects": ("a.json", b'\n[{"text": "one"},\n {"text": "two"}]\n', ["one", "two"]),
    "one object": ("a.json", b'{"id": 3,\n "text": "one"}', ["one"]),
    "lines in .json": ("a.json", TWO, ["one", "two é"]),
    "JSON with BOM": ("a.json", BOM + b'["one"]', ["one"]),
    "comma-separated": ("a.csv", b'id,text\n1,"a ""b"",\nc"\n2,d\n\n', ['a "b",\nc', "d"]),
    "from Windows": ("a.csv", BOM + b'text,n\r\n"a\r\nb",1\r\nc,2\r\n', ["a\r\nb", "c"]),
    "tab-separated": ("a.tsv", b"id\ttext\n1\ta, b\n", ["a, b"]),
    "gzip": ("a.jsonl.gz", gzip.compress(TWO), ["one", "two é"]),
    "gzip in two parts": ("a.jsonl.gz", gzip.compress(TWO) * 2, ["one", "two é"] * 2),
    "zstandard": ("a.jsonl.zst", zstandard(TWO), ["one", "two é"]),
    "zstandard in two parts": ("a.jsonl.zst", zstandard(TWO) * 2, ["one", "two é"] * 2),
    "bzip2": ("a.ndjson.bz2", bz2.compress(TWO), ["one", "two é"]),
    "xz": ("a.csv.xz", lzma.compress(b"text\na\n"), ["a"]),
    "compressed text": ("a.txt.GZ", gzip.compress(BOM + b"a\nb"), ["a\nb"]),
    "compressed list": ("a.json.zst", zstandard(b'["one", "two"]'), ["one", "two"]),
    "Parquet": ("a.parquet", parquet(pyarrow.array(["a", "", "b"])), ["a", "b"]),
    "Parquet of large texts": (
        "a.PARQUET",
        parquet(pyarrow.array(["a", "b"], pyarrow.large_string())),
        ["a", "b"],
    ),
    "Parquet of a dictionary": ("a.parquet", parquet(DICTIONARY), ["b", "a", "b", "b"]),
    "Arrow of a dictionary": ("a.arrow", arrow(DICTIONARY), ["b", "a", "b", "b"]),
    "Arrow": ("a.arrow", arrow(pyarrow.array(["a", "b"], pyarrow.string_view())), ["a", "b"]),
}


@pytest.mark.parametrize("case", GOOD)
def test_the_same_documents_everywhere(case: str, tmp_path: Path) -> None:
    name, content, expected = GOOD[case]
    write(tmp_path / name, content)
    assert everywhere(tmp_path / name) == expected


def write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


NULLS = pyarrow.array(["a", None])
BAD: dict[str, tuple[str, Content, str]] = {
    "not JSON": ("a.jsonl", TWO + b"{", "line 3: not JSON"),
    "half a surrogate pair": ("a.jsonl", TWO + b'{"text": "\\ud83d"}', "line 3: .*surrogate"),
    "half a pair in .json": ("a.json", b'["a", "\\ud83d"]', "entry 2: .*surrogate"),
    "another key": (
        "a.jsonl",
        lines({"content": "x", "id": 1}),
        'line 1: no key "text", but "content"',
    ),
    "several keys": ("a.jsonl", TWO + lines({"txt": "x"}), 'line 3: no key "text", but "txt"'),
    "several types": ("a.jsonl", TWO + lines({"text": ["x"]}), 'line 3: "text" is a list'),
    "null": ("a.jsonl", lines({"text": None}), 'line 1: "text" is null'),
    "a list in a line": ("a.jsonl", lines([1]), "line 1: neither a text nor a JSON object but a l"),
    "not UTF-8 in a line": ("a.jsonl", TWO + b'{"text": "\xe9"}', r"line 3: not UTF-8 \(byte 10\)"),
    "not UTF-8": ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8 \(byte 3\)"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), ": UTF-16 or UTF-32.*iconv"),
    "UTF-16 lines": ("a.jsonl", TWO.decode().encode("utf-16"), ": UTF-16 or UTF-32.*iconv"),
    "UTF-16 without BOM": ("a.txt", "text".encode("utf-16-le"), r"not text: it holds a zero byte"),
    "no key with text": (
        "nested.json",
        b'[{"parts": [{"content": "x"}], "id": 1}]',
        'entry 1: no key "text", and no text in "parts", "id"; write the text of each document '
        'to a key "text"',
    ),
    "a chat": (
        "a.jsonl",
        TWO + lines({"messages": [{"role": "user", "content": "x"}]}),
        'line 3: no key "text": this is a chat or instruction record',
    ),
    "columns of instructions": (
        "a.csv",
        b"instruction,input,output\na,b,c\n",
        'a.csv: no column "text": this is a chat or instruction record',
    ),
    "a column of chats": (
        "a.parquet",
        parquet(pyarrow.array([[{"role": "user", "content": "x"}]]), "messages"),
        'a.parquet: no column "text": this is a chat or instruction record',
    ),
    "a list called lines": (
        "array.jsonl",
        b'[{"text": "a"}, {"text": "b"}]',
        "line 1: .* a list; if the whole file is one JSON value, call it .json$",
    ),
    "a long list called lines": (
        "a.jsonl.gz",
        gzip.compress(b'[\n{"text": "a"},\n{"text": "b"}\n]\n'),
        r"line 1: .*; if the whole file is one JSON value, call it .json.gz$",
    ),
    "columns of JSON": ("a.json", b'{"text": ["a", "b"]}', 'entry 1: "text" is a list, not text'),
    "wrapped list": (
        "a.json",
        b'{"data": [{"text": "a"}]}',
        'entry 1: no key "text", and no text in "data"; write',
    ),
    "half a .json": ("a.json", b'["a", ', "entry 1: not JSON"),
    "no such column": ("a.csv", b"id,body\n1,a\n", 'no column "text", but "id", "body"'),
    "semicolons": ("a.csv", b"id;text\n1;a\n", 'no column "text", but "id;text"'),
    "a value too many": ("a.csv", b"id,text\n1,a\n2,b,c\n", r"row 2 \(counted from 1\): 3 val"),
    "an open quote": ("a.tsv", b'id\ttext\n1\t"a\n2\tb\n', r"row 1 \(.*: unexpected end of data"),
    "a quote inside": ("a.csv", b'text\n"a"b\n', r"row 1 \(.*: ',' expected after '\"'"),
    "a quote in the header": ("a.csv", b'"te"xt\na\n', "a.csv, the header: ',' expected"),
    "not UTF-8 in a row": ("a.csv", b"text\na\n\xe9\n", "line 3: not UTF-8"),
    "empty": ("a.txt", b"", r"a\.txt holds no document with text"),
    "blank": ("a.txt", b" \n", "holds no document with text"),
    "empty lines": ("a.jsonl", b"\n", "holds no document with text"),
    "empty list": ("a.json", b"[]", "holds no document with text"),
    "header alone": ("a.csv", b"text\n", "holds no document with text"),
    "empty gzip": ("a.jsonl.gz", b"", "holds no document with text"),
    "empty Parquet": ("a.parquet", b"", "cannot be read as parquet"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(TWO)[:-9], r"a\.jsonl\.gz cannot be decompressed"),
    "cut zstandard": ("a.jsonl.zst", zstandard(TWO)[:-3], "cannot be decompressed.*[Tt]runcated"),
    "not gzip": ("a.txt.gz", b"text", "cannot be decompressed"),
    "not zstandard": ("a.txt.zst", b"text", "cannot be decompressed"),
    "not xz": ("a.txt.xz", b"text", "cannot be decompressed"),
    "gzip inside .txt": ("a.txt", gzip.compress(b"text", mtime=0), "not text|not UTF-8"),
    "nested": (
        "a.parquet",
        parquet(pyarrow.array([{"x": "a"}])),
        'the column "text" holds struct<x: string>, not text',
    ),
    "list in Parquet": ("a.parquet", parquet(pyarrow.array([["a"]])), "holds list<.*>, not text"),
    "bytes": ("a.parquet", parquet(pyarrow.array([b"a"])), "holds binary, not text"),
    "numbers in a dictionary": (
        "a.parquet",
        parquet(pyarrow.array([1, 2]).dictionary_encode()),
        "holds .*int64.*, not text",
    ),
    "null in Parquet": ("a.parquet", parquet(NULLS), r'row 2 \(.*: no text in the column "text"'),
    "null in a dictionary": (
        "a.arrow",
        arrow(NULLS.dictionary_encode()),
        r"row 2 \(.*: no text in",
    ),
    "not UTF-8 in Parquet": (
        "a.parquet",
        parquet(pyarrow.array([b"a", b"\xe9"]).view(pyarrow.string())),
        r"row 2 \(counted from 1\): not UTF-8",
    ),
    "another column": (
        "a.parquet",
        parquet(pyarrow.array(["a"]), "body"),
        'no column "text", but "body"',
    ),
    "only numbers": (
        "a.parquet",
        parquet(pyarrow.array([1.5]), "score"),
        'no column "text", and no text in "id", "score"; write the text of each document to a col',
    ),
    "unknown": ("a.pdf", b"%PDF", r"is of no kind that can be read \(\.txt"),
    "no suffix": ("README", b"text", "is of no kind that can be read"),
    "archive": ("a.tar.gz", b"", "is an archive: unpack it"),
    "zip": ("a.zip", b"", "is an archive: unpack it"),
    "compressed what": ("a.gz", gzip.compress(TWO), r"does not say which text .* \.jsonl\.gz"),
    "compressed table": ("a.parquet.gz", b"", r"does not say .* \(tables are compressed inside"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_same_error_everywhere(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    write(tmp_path / name, content)
    error = everywhere(tmp_path / name)
    assert isinstance(error, str)
    assert re.search(message, error), error
    assert name in error
    assert not list(tmp_path.glob("*-prepared/train*"))


def test_a_directory_is_its_files_of_every_kind(tmp_path: Path) -> None:
    root = tmp_path / "texts"
    write(root / "b.txt", b"b")
    write(root / "a" / "x.jsonl.gz", gzip.compress(TWO))
    write(root / "a" / "y.parquet", parquet(pyarrow.array(["table"])))
    write(root / "c.csv", b"text\nrow\n")
    write(root / "empty.txt", b"")
    write(root / "d.json", b'["entry"]')
    about = (
        "README.md",
        "picture.png",
        "LICENSE",
        "README_zh.md",
        "LICENSE-2.0.txt",
        "Changelog.md",
    )
    for ignored in (".hidden.txt", ".git/a.txt", *about):
        write(root / ignored, b"not a document")
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "z.txt", b"linked")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "m.txt").symlink_to(tmp_path / "elsewhere" / "z.txt")
    expected = ["one", "two é", "table", "b", "row", "entry", "linked", "linked"]
    assert everywhere(root) == expected
    found = find_files(root)
    assert list(found.files)[:3] == ["a/x.jsonl.gz", "a/y.parquet", "b.txt"]
    assert found.note == f"{root}: not read are 6 files (.md: 3, no suffix: 1, .txt: 1, .png: 1)"
    assert of_training(root / "README.md", "text") == ["not a document"]  # if it is meant
    # One broken file is the error of all.
    write(root / "c.csv", b"body\nrow\n")
    assert everywhere(root) == f'{root / "c.csv"}: no column "text", but "body"'


@pytest.mark.parametrize(
    "names", [("a.txt", "a.txt.gz"), ("s/a.txt.bz2", "s/a.txt.zst"), ("b.jsonl", "b.jsonl.GZ")]
)
def test_a_text_and_its_compressed_copy_are_not_read_twice(tmp_path: Path, names) -> None:
    root = tmp_path / "texts"
    for name in (*names, "other.txt"):
        write(root / name, b"a")
    assert everywhere(root) == (
        f"{root} holds {names[0]} and {names[1]}, which are the same text twice by their names: "
        "move one of them away, or rename it if it is another text"
    )
    (root / names[1]).unlink()
    assert len(find_files(root).files) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.txt", "data/dev-0.txt"),
        ("wiki.train.txt", "wiki.valid.txt"),
        ("data-train-00000-of-00002.txt", "data-test-00000-of-00001.txt"),
        ("my_data.train.jsonl", "my_data.val.jsonl"),
        ("mydata_train.jsonl", "mydata_valid.jsonl"),
    ],
)
def test_splits_of_a_dataset_are_not_read_as_one(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in (*names, "training-plan.txt", "a.txt"):
        write(tmp_path / "d" / name, b'{"text": "a"}')
    assert "d holds several splits (" in everywhere(tmp_path / "d")
    (tmp_path / "d" / names[1]).unlink()
    assert len(find_files(tmp_path / "d").files) == 3


def test_words_that_are_no_splits_are_read(tmp_path: Path) -> None:
    for name in ("the-last-train.txt", "val-d-isere.txt", "a-test-b.txt", "x_dev_y.txt"):
        write(tmp_path / "d" / name, b"text")
    assert everywhere(tmp_path / "d") == ["text"] * 4


def test_entries_that_are_not_files_of_text_are_named(tmp_path: Path) -> None:
    root = tmp_path / "texts"
    write(root / "sub" / "a.txt", b"a")
    (root / "sub" / "up").symlink_to(root)
    assert everywhere(root) == (
        f"{root / 'sub' / 'up'} is a link to a directory that it is in: remove the link"
    )
    (root / "sub" / "up").unlink()
    (root / "itself.txt").symlink_to(root / "itself.txt")
    broken = "is a link to nothing, or not a regular file: remove or replace it"
    assert everywhere(root) == f"{root / 'itself.txt'} {broken}"
    (root / "itself.txt").unlink()
    of_prepare(root / "sub", "text")
    assert everywhere(root) == (
        f"{root / 'sub-prepared'} holds tokens, not text: move it to another place"
    )
    shutil.rmtree(root / "sub-prepared")
    os.mkfifo(root / "pipe.txt")
    assert everywhere(root) == f"{root / 'pipe.txt'} {broken}"
    error = everywhere(root / "pipe.txt")
    assert (
        error == f"{root / 'pipe.txt'} is neither a file nor a directory: write its text to a file"
    )
    (tmp_path / "other").mkdir()
    assert "holds no file that can be read: give .txt" in everywhere(tmp_path / "other")
    write(tmp_path / "other" / "a.pdf", b"%PDF")
    assert "holds no file that can be read but a.pdf: give" in everywhere(tmp_path / "other")
    for entry in (of_training, of_haystack, of_prepare):
        with pytest.raises(ValueError, match="(there is no|does not exist).*"):
            entry(tmp_path / "nowhere", "text")


def test_without_permission_the_place_is_named(tmp_path: Path, monkeypatch) -> None:
    def denied(path: Path, *args: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write(tmp_path / "a" / "a.txt", b"a")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", denied)
        message = f"{tmp_path / 'a'} cannot be read (Permission denied)"
        assert everywhere(tmp_path / "a") == message
    monkeypatch.setattr(Path, "open", denied)
    message = f"{tmp_path / 'a' / 'a.txt'} cannot be read (Permission denied)"
    assert everywhere(tmp_path / "a" / "a.txt") == message


def test_another_key_is_read_and_the_option_to_choose_it_is_named(tmp_path: Path, capsys) -> None:
    write(tmp_path / "a.jsonl", lines({"body": "x", "id": 1}))
    assert everywhere(tmp_path / "a.jsonl", "body") == ["x"]
    path = str(tmp_path / "a.jsonl")
    error = f'ctxext: {path}, line 1: no key "text", but "body"; choose one with'
    tokenizer = str(TINY_LLAMA)
    for argv, option in (
        (["prepare", path, "--out", str(tmp_path / "x"), "--tokenizer", tokenizer], "--field"),
        (["eval", tokenizer, "--haystack", path, "--evals", "ppl"], "--haystack-field"),
        (["run", RECIPE, "--init", tokenizer, "--data.path", path], "--data.field"),
        (["train", RECIPE, "--init", tokenizer, "--data.path", path], "--data.field"),
    ):
        assert main([*argv]) == 2
        assert capsys.readouterr().err == f"{error} {option}\n"
    argv = ["run", RECIPE, "--init", tokenizer, "--data.path", path, "--dry-run"]
    assert main(argv) == 0
    assert "unreadable     " + error.removeprefix("ctxext: ") in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl-prepared"]


def test_files_that_expand_without_end_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(compression, "ALWAYS_ALLOWED", 1 << 20)
    bomb = lines({"text": "x" * 1000}) * 10_000
    for name, data in (
        ("a.jsonl.gz", gzip.compress(bomb)),
        ("a.jsonl.zst", zstandard(bomb)),
        ("a.txt.xz", lzma.compress(bomb)),
    ):
        write(tmp_path / name, data)
        error = everywhere(tmp_path / name)
        assert error == (
            f"{tmp_path / name} expands to more than 200 times its size, as no text does: "
            "decompress it yourself if it is meant"
        )


def test_documents_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(read, "MAX_DOCUMENT_BYTES", 100)
    for name, content, place in (
        ("a.jsonl", lines({"text": "a"}, {"text": "b" * 500}), ", line 2: a line"),
        ("a.jsonl.gz", gzip.compress(lines({"text": "b" * 500})), ", line 1: a line"),
        ("a.txt", b"b" * 101, ": a text"),
        ("a.csv", b"text\n" + b"b" * 101 + b"\n", ", line 2: a line"),
        (
            "a.json",
            b'["' + b"b" * 101 + b'"]',
            ", entry 1: a file of JSON, which has to be read at once,",
        ),
    ):
        write(tmp_path / name, content)
        error = everywhere(tmp_path / name)
        assert error == f"{tmp_path / name}{place} of more than 100 bytes"


def test_special_tokens_written_out_are_text_unless_asked_for(tmp_path: Path, capsys) -> None:
    tokenizer = load_tokenizer(TINY_LLAMA)
    text = "the end</s>of it"
    write(tmp_path / "a.jsonl", lines({"text": text}))
    path = str(tmp_path / "a.jsonl")
    as_text = tokenizer.encode(text)
    as_tokens = tokenizer.encode(text, special=True)
    assert (2 in as_text, 2 in as_tokens) == (False, True)

    def read_from(source: TextSource) -> list[int]:
        return source.open(tokenizer).documents()[0].tolist()

    for parse_special, expected in ((False, as_text), (True, as_tokens)):
        assert read_from(Files(path, parse_special=parse_special)) == expected
        assert read_from(haystack(path, parse_special=parse_special)) == expected
        out = tmp_path / f"out-{parse_special}"
        argv = ["prepare", path, "--out", str(out), "--tokenizer", str(TINY_LLAMA)]
        assert main([*argv, *(["--parse-special"] if parse_special else [])]) == 0
        assert read_from(Prepared(str(out))) == expected
        index = read_json(out / "index.json")
        assert index["parse_special"] is parse_special
        assert index["sources"][0]["special_as_text"] == (0 if parse_special else 1)
        note = "1 documents spell special tokens, which are text there; --parse-special"
        assert (note in capsys.readouterr().out) is not parse_special
    assert main([*argv]) == 2  # the directory is of another request
    assert "was started with other parse-special" in capsys.readouterr().err
    # A BOS and an EOS that the text has are not put there again.
    write(tmp_path / "b.jsonl", lines({"text": "<s>the end</s>"}))
    corpus = Files(str(tmp_path / "b.jsonl"), parse_special=True).open(tokenizer)
    ids = tokenizer.encode("<s>the end</s>", special=True)
    assert corpus.ids.tolist() == ids
    assert corpus.documents()[0].tolist() == ids[1:-1]
    argv = ["prepare", str(tmp_path / "b.jsonl"), "--parse-special", "--out", str(tmp_path / "b")]
    assert main([*argv, "--tokenizer", str(TINY_LLAMA)]) == 0
    assert Prepared(str(tmp_path / "b")).open(tokenizer).ids.tolist() == ids
    for name in ("stdlib", str(tmp_path / "out-True")):
        with pytest.raises(ValueError, match="has no parse_special to choose: files of text do"):
            haystack(name, parse_special=True)


def test_an_empty_name_is_not_the_current_directory(tmp_path: Path, monkeypatch, capsys) -> None:
    write(tmp_path / "a.txt", b"not meant")
    monkeypatch.chdir(tmp_path)
    tokenizer = str(TINY_LLAMA)
    for argv, message in (
        (["prepare", "", "--out", "x", "--tokenizer", tokenizer], "the name of a source is empty"),
        (["eval", tokenizer, "--haystack", "", "--evals", "ppl"], "there is no haystack ''"),
        (["run", RECIPE, "--init", tokenizer, "--data.path", ""], "the path of the text is empty"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "name", ["a.tar.xz", "a.txz", "A.TAR.bz2", "a.tbz2", "a.tar.zst", "a.tzst"]
)
def test_archives_of_every_compression_are_called_archives(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="is an archive: unpack it and name the directory"):
        find_files(tmp_path / name)

"""`ctxext prepare` against a literal reading of its sources; killed, corrupted, many workers."""

import hashlib
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.data.documents import find_files, read
from ctxext.files import read_json, read_jsonl
from ctxext.prepare import Recipe, describe, prepare, request, run, workers
from ctxext.prepare.chunks import cut
from ctxext.prepare.sources import option
from ctxext.tokenization.tokenizer import load_tokenizer
from support.hostile import imported
from support.tiny_train import ByteTokenizer

TOKENIZER = load_tokenizer(TINY_LLAMA)
WORDS = "the window of a model is stretched, naïve 日本 🙂 def f(x):\n    return x\n".split(" ")


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 120)))) for _ in range(count)]


def write_sources(root: Path, documents: int = 60) -> list[Path]:
    """JSONL with CRLF and blank lines, a directory of text and JSONL, Parquet, a saved dataset."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0)
        for i, text in enumerate(texts(documents, 0))
    ]
    (root / "a.jsonl").write_bytes("\r\n".join([*lines, "", "  "]).encode())
    (root / "b" / "sub").mkdir(parents=True)
    for i, text in enumerate(texts(8, 1)):
        (root / "b" / f"{i}.txt").write_text(text)
    (root / "b" / "8.txt").write_text("")
    (root / "b" / "sub" / "c.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ["", *texts(9, 2)])
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"n": range(30), "text": texts(30, 3)}), root / "d.parquet", row_group_size=7
    )
    (root / "e").mkdir()
    table = pyarrow.table({"text": texts(20, 4)})
    with (
        pyarrow.OSFile(str(root / "e" / "x.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as to,
    ):
        to.write_table(table, max_chunksize=6)
    (root / "e" / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    return [root / name for name in ("a.jsonl", "b", "d.parquet", "e")]


def all_texts(documents: int = 60) -> list[list[str]]:
    """The texts of `write_sources`, by source."""
    return [texts(documents, 0), texts(8, 1) + texts(9, 2), texts(30, 3), texts(20, 4)]


def held_out(text: str, share: float) -> bool:
    words = " ".join(text.split())
    return int(hashlib.sha256(words.encode()).hexdigest()[:16], 16) / 2**64 < share


def stored(root: Path, split: str) -> list[list[int]]:
    ids = np.fromfile(root / f"{split}.tokens", read_json(root / "index.json")["dtype"])
    offsets = np.fromfile(root / f"{split}.offsets", "<i8")
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    assert (np.diff(offsets) > 0).all()
    return [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def run_prepare(
    sources,
    out: Path,
    *,
    chunk_bytes: int = 2000,
    tokenizer=TOKENIZER,
    workers: int = 1,
    max_rejects: float = 0.01,
    held_out: float = 0.0,
    **recipe,
) -> dict:
    return prepare(
        sources,
        out,
        tokenizer,
        recipe=Recipe(held_out=held_out, **recipe),
        workers=workers,
        max_rejects=max_rejects,
        chunk_bytes=chunk_bytes,
        progress=False,
    )


def lines_file(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    return write_sources(tmp_path_factory.mktemp("sources") / "in")


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run_prepare(sources, out, held_out=0.2)
    return out


def test_every_document_is_as_the_tokenizer_encodes_it(sources, whole):
    every = [text for source in all_texts() for text in source]
    for split, is_held_out in (("train", False), ("heldout", True)):
        chosen = [text for text in every if held_out(text, 0.2) == is_held_out]
        assert chosen
        assert stored(whole, split) == [[1, *TOKENIZER.encode(text), 2] for text in chosen]
    index = read_json(whole / "index.json")
    assert index["complete"] is True
    assert index["dtype"] == "uint16"
    assert index["tokenizer"] == {
        "sha256": TOKENIZER.sha256,
        "vocab_size": 1024,
        "bos_id": 1,
        "eos_id": 2,
    }
    for source, here, path in zip(index["sources"], all_texts(), sources, strict=True):
        kept = [text for text in here if not held_out(text, 0.2)]
        tokens = sum(len(TOKENIZER.encode(text)) + 2 for text in kept)
        assert source["name"] == path.name
        assert source["train"] == {"documents": len(kept), "tokens": tokens}
        assert source["rejected"] == source["shorter"] == source["longer"] == 0
    # Two blank lines; a file and a text.
    assert [source["empty"] for source in index["sources"]] == [2, 2, 0, 0]
    assert sorted(index["sources"][1]["files"])[-1] == "sub/c.jsonl"
    size = sources[0].stat().st_size
    digest = hashlib.sha256(sources[0].read_bytes()).hexdigest()
    assert index["sources"][0]["files"]["a.jsonl"] == {"bytes": size, "sha256": digest}
    assert (whole / "rejects.jsonl").read_bytes() == b""
    for split in ("train", "heldout"):
        digest = hashlib.sha256((whole / f"{split}.tokens").read_bytes()).hexdigest()
        assert index["splits"][split]["tokens_sha256"] == digest


@pytest.mark.parametrize(("workers", "chunk_bytes"), [(1, 97), (1, 10**9), (2, 3000), (3, 700)])
def test_the_bytes_do_not_depend_on_workers_or_chunks(
    sources, whole, tmp_path, hostile_directory, workers, chunk_bytes
):
    run_prepare(sources, tmp_path / "out", workers=workers, chunk_bytes=chunk_bytes, held_out=0.2)
    assert contents(tmp_path / "out") == contents(whole)
    assert imported(hostile_directory) == []


def test_the_split_does_not_depend_on_the_order_and_shares_are_kept(tmp_path):
    rows = [f"document {i}" for i in range(3000)]
    forward = lines_file(tmp_path / "a.jsonl", rows)
    backward = lines_file(tmp_path / "b.jsonl", rows[::-1])
    options = {"tokenizer": ByteTokenizer(), "held_out": 0.1}
    index = run_prepare([forward], tmp_path / "one", **options)
    run_prepare([backward], tmp_path / "two", **options)
    assert stored(tmp_path / "one", "heldout") == stored(tmp_path / "two", "heldout")[::-1]
    num_held_out = index["splits"]["heldout"]["documents"]
    assert abs(num_held_out - 300) < 4 * np.sqrt(3000 * 0.1 * 0.9)


def test_length_filters_and_special_tokens(tmp_path):
    source = lines_file(tmp_path / "a.jsonl", ["x" * n for n in range(1, 21)])
    options = {"tokenizer": ByteTokenizer(), "min_tokens": 5, "max_tokens": 10}
    counts = run_prepare([source], tmp_path / "both", **options)["sources"][0]
    # BOS and EOS are counted.
    assert [len(ids) for ids in stored(tmp_path / "both", "train")] == list(range(5, 11))
    assert (counts["shorter"], counts["longer"]) == (2, 12)
    index = run_prepare([source], tmp_path / "none", bos=False, eos=False, **options)
    assert [ids[0] for ids in stored(tmp_path / "none", "train")] == [ord("x") + 3] * 6
    assert index["tokenizer"]["bos_id"] is index["tokenizer"]["eos_id"] is None
    with pytest.raises(ValueError, match="nothing is left"):
        run_prepare([source], tmp_path / "nothing", tokenizer=ByteTokenizer(), min_tokens=100)
    with pytest.raises(ValueError, match="leaves nothing"):
        run_prepare([source], tmp_path / "x", min_tokens=9, max_tokens=8)


def test_large_vocabularies_take_four_bytes(tmp_path):
    class Large(ByteTokenizer):
        num_ids = (1 << 16) + 1  # the last one is an added token

        def encode(self, text, *, bos=False):
            return [self.bos_id] * bos + [1 << 16]

    source = lines_file(tmp_path / "a.jsonl", "ab")
    index = run_prepare([source], tmp_path / "out", tokenizer=Large())
    assert index["dtype"] == "uint32"
    assert stored(tmp_path / "out", "train") == [[1, 1 << 16, 2]] * 2


BAD = {
    b'{"text": "x"': "not JSON",
    b"x\xff\xfe": "not UTF-8",
    b'{"txt": "y"}': 'no key "text"',
    b'{"text": 3}': '"text" is a number',
    b'{"text": null}': '"text" is null',
    b"[1]": "neither a text nor a JSON object but a list",
    b'{"text": "\\ud800"}': "surrogate",
    b"[" * 100_000: "not JSON",
    b'{"n": ' + b"9" * 5000 + b"}": "not JSON",
    b'{"text": ["a"]}': '"text" is a list',
    b"\xef\xbb\xbf{}": 'no key "text"',
    b"null": "neither a text nor a JSON object but null",
}


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            st.sampled_from(sorted(BAD)),
        ),
        min_size=1,
        max_size=12,
    ),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    num_chunks=st.integers(1, 30),
    escape=st.booleans(),
)
def test_good_lines_are_kept_in_order_and_bad_ones_are_named(
    tmp_path_factory, lines, end, last, num_chunks, escape
):
    root = tmp_path_factory.mktemp("fuzz")

    def to_bytes(line: str | bytes) -> bytes:
        if isinstance(line, bytes):
            return line
        return json.dumps({"text": line}, ensure_ascii=escape).encode()

    data = [to_bytes(line) for line in lines]
    (root / "a.jsonl").write_bytes(end.join(data) + end * last)
    texts = [line for line in lines if isinstance(line, str)]
    good = [[1, *(byte + 3 for byte in text.encode()), 2] for text in texts if text.strip()]
    bad = [(number, line) for number, line in enumerate(lines, 1) if isinstance(line, bytes)]
    options = {
        "tokenizer": ByteTokenizer(),
        "max_rejects": 1,
        "chunk_bytes": 1 + len(end.join(data)) // num_chunks,
    }
    if not good:
        message = "a.jsonl holds no document with text"
        if bad:
            number, line = bad[0]
            message = rf"a\.jsonl, line {number}: .*{re.escape(BAD[line])}"
        with pytest.raises(ValueError, match=message):
            run_prepare([root / "a.jsonl"], root / "out", **options)
        assert not (root / "out").exists()
        return
    run_prepare([root / "a.jsonl"], root / "out", **options)
    assert stored(root / "out", "train") == good
    rejects = read_jsonl(root / "out" / "rejects.jsonl")
    assert len(rejects) == len(bad)
    for reject, (number, line) in zip(rejects, bad, strict=True):
        assert (reject["file"], reject["line"]) == ("a.jsonl", number)
        assert BAD[line] in reject["reason"]


def test_too_many_rejects_are_an_error_and_are_listed(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(
        "".join('{"text": "x"}\n' if i % 50 else "{\n" for i in range(100))
    )
    raw = pyarrow.array([b"ok", b"\xff", None, b"", b"ok"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(
        pyarrow.table({"text": raw}), tmp_path / "b.parquet", row_group_size=2
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.txt").write_bytes(b"ab\xff")
    sources = [tmp_path / "a.jsonl", tmp_path / "b.parquet", tmp_path / "c"]
    out = tmp_path / "out"
    message = r"a\.jsonl, line 1: not JSON .*5 of 106 documents are .*larger --max-rejects"
    with pytest.raises(ValueError, match=message):
        run_prepare(sources, out)
    rejects = read_jsonl(out / "rejects.jsonl")
    assert [(r["source"], r["file"], r.get("line", r.get("row"))) for r in rejects] == [
        (0, "a.jsonl", 1),
        (0, "a.jsonl", 51),
        (1, "b.parquet", 2),
        (1, "b.parquet", 3),
        (2, "1.txt", None),
    ]
    assert [r["reason"] for r in rejects[2:]] == [
        "not UTF-8 (byte 0)",
        'no text in the column "text"',
        "not UTF-8 (byte 2)",
    ]
    index = run_prepare(sources, out, max_rejects=5 / 106)
    assert [source["rejected"] for source in index["sources"]] == [2, 2, 1]
    assert index["splits"]["train"]["documents"] == 98 + 2
    assert read_jsonl(out / "rejects.jsonl") == rejects


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_DOCUMENT_BYTES", 100)
    lines_file(tmp_path / "a.jsonl", ["a", "b" * 500, "c", "d" * 80, "e" * 200_000])
    run_prepare([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer=ByteTokenizer(), max_rejects=1)
    assert [len(ids) for ids in stored(tmp_path / "out", "train")] == [3, 3, 82]
    assert [row["line"] for row in read_jsonl(tmp_path / "out" / "rejects.jsonl")] == [2, 5]


def test_files_are_streamed(tmp_path):
    source = lines_file(tmp_path / "a.jsonl", ["word " * 400] * 8000)  # 16 MB
    (chunk,) = cut([find_files(source).files], option("text"), 10**9)
    tracemalloc.start()
    documents = chunk.ranges[0].documents(option("text"))
    assert sum(len(document.text) for document in documents) == 8000 * 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


KILLED = """
import sys
from pathlib import Path
from ctxext.prepare import Recipe, prepare
from ctxext.tokenization.tokenizer import load_tokenizer
sources, out, tokenizer, workers = sys.argv[1].split(":"), *sys.argv[2:]
prepare(
    [Path(s) for s in sources], Path(out), load_tokenizer(tokenizer),
    recipe=Recipe(held_out=0.2), workers=int(workers), chunk_bytes=500,
)
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.check
@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="the children of a process are read from /proc"
)
def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path):
    sources = write_sources(tmp_path / "in", 3000)
    out = tmp_path / "out"
    argv = [sys.executable, "-c", KILLED, ":".join(map(str, sources)), str(out), str(TINY_LLAMA)]
    process = subprocess.Popen([*argv, "2"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("work/0*.npz"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(out.glob("work/0*.npz")))
    assert 20 <= done < len(cut([find_files(s).files for s in sources], option("text"), 500))
    assert not (out / "index.json").exists()
    with pytest.raises(ValueError, match="is not finished: run the same"):
        run.read_index(out)
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(workers) >= 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "orphans"
    with pytest.raises(ValueError, match="was started with other held-out"):
        run_prepare(sources, out, chunk_bytes=500, held_out=0.1)
    assert request.REQUEST in {path.name for path in (out / "work").iterdir()}
    resumed = subprocess.run([*argv, "1"], stderr=subprocess.PIPE, text=True, check=True)
    assert "prepare: resumed: " in resumed.stderr
    run_prepare(sources, tmp_path / "undisturbed", chunk_bytes=10**6, held_out=0.2)
    assert contents(out) == contents(tmp_path / "undisturbed")
    every = [text for source in all_texts(3000) for text in source if not held_out(text, 0.2)]
    assert len(stored(out, "train")) == len(every)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": np.zeros(4, "<f2")}, "other numbers than its index says"),
        ({"train_lengths": np.array([2.0, 2.0])}, "other numbers"),
        ({"train_lengths": np.array([2**62, 2**62, 0, 4])}, "other numbers"),
        ({"train": np.array([None, "a", 2, 3], object)}, "other numbers|allow_pickle"),
        ({"train": None}, "train is not a file in the archive"),
    ],
)
def test_a_shard_that_is_not_what_was_encoded_is_named(tmp_path, monkeypatch, change, message):
    """It was in an unfinished directory, of which another may be the author."""
    source = lines_file(tmp_path / "a.jsonl", "ab")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "join", stop)
        run_prepare([source], tmp_path / "out", tokenizer=ByteTokenizer())
    (shard,) = (tmp_path / "out" / "work").glob("*.npz")
    with np.load(shard) as archive:
        arrays = {name: array for name, array in archive.items()} | change
    np.savez(shard, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message):
        run_prepare([source], tmp_path / "out", tokenizer=ByteTokenizer())
    shard.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"000000\.npz is corrupt \("):
        run_prepare([source], tmp_path / "out", tokenizer=ByteTokenizer())
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize("step", ["rejects", "join", "index"])
def test_stopped_at_the_end_it_can_be_resumed(sources, whole, tmp_path, monkeypatch, step):
    def stop(*args):
        raise KeyboardInterrupt

    name = {"rejects": "Tally", "join": "join", "index": "write_json"}[step]
    wrapped = getattr(run, name)
    with monkeypatch.context() as patched:
        patched.setattr(
            run, name, lambda *args: stop() if "request" not in str(args[0]) else wrapped(*args)
        )
        with pytest.raises(KeyboardInterrupt):
            run_prepare(sources, tmp_path / "out", held_out=0.2)
    (tmp_path / "out" / ".train.tokens.torn").write_bytes(b"half of it")
    run_prepare(sources, tmp_path / "out", held_out=0.2)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_killed_worker_is_an_error_and_nothing_is_lost(sources, whole, tmp_path, monkeypatch):
    def kill_a_worker_first(futures):
        # Workers take longer to start than this: none has finished, so there is work to lose.
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        return as_completed(futures)

    with monkeypatch.context() as patched:
        patched.setattr(workers, "as_completed", kill_a_worker_first)
        with pytest.raises(ValueError, match="a worker was killed.*run the same command again"):
            run_prepare(sources, tmp_path / "out", workers=2, chunk_bytes=300, held_out=0.2)
    run_prepare(sources, tmp_path / "out", chunk_bytes=300, held_out=0.2)
    assert contents(tmp_path / "out") == contents(whole)


def test_workers_need_no_jax():
    code = (
        "import sys, ctxext.prepare.workers\n"
        "print(sorted({'jax', 'flax', 'orbax'} & set(sys.modules)))"
    )
    argv = [sys.executable, "-c", code]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_request_that_failed_at_once_does_not_stand_in_the_way_of_the_next(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("id,content\n1,abc\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"t\.csv: no column"):
        run_prepare([table], out)
    index = run_prepare([lines_file(tmp_path / "a.jsonl", "abc")], out)
    assert index["splits"]["train"]["documents"] == 3


def test_an_existing_directory_is_not_overwritten(tmp_path):
    source = lines_file(tmp_path / "a.jsonl", "abc")
    out = tmp_path / "out"
    first = run_prepare([source], out)
    assert run_prepare([source], out) == first  # finished: checked, not written again
    for change in ({"eos": False}, {"min_tokens": 2}, {"tokenizer": ByteTokenizer()}):
        with pytest.raises(ValueError, match="was started with other (tokenizer|min-tokens)"):
            run_prepare([source], out, **change)
    data = bytearray((out / "train.tokens").read_bytes())
    data[0] ^= 1
    (out / "train.tokens").write_bytes(data)
    with pytest.raises(ValueError, match=r"train\.tokens is corrupt"):
        run_prepare([source], out)
    lines_file(source, "abcd")
    with pytest.raises(ValueError, match="was started with other sources"):
        run_prepare([source], out)
    with pytest.raises(ValueError, match="already exists"):
        run_prepare([source], tmp_path)
    with pytest.raises(ValueError, match="is inside .*, which is read"):
        run_prepare([tmp_path], tmp_path / "x")
    with pytest.raises(ValueError, match="--no-bos"):
        run_prepare(
            [source], tmp_path / "x", tokenizer=type("NoBos", (ByteTokenizer,), {"bos_id": None})()
        )
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        run_prepare([tmp_path / "nowhere"], tmp_path / "x")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read as parquet"):
        run_prepare([tmp_path / "b.parquet"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_changing_source_and_a_second_process_are_refused(tmp_path):
    source = lines_file(tmp_path / "a.jsonl", "abc")
    out = tmp_path / "out"

    class Writes(ByteTokenizer):
        def encode(self, text, *, bos=False):
            if text == "a":
                with pytest.raises(ValueError, match="out is being prepared by process"):
                    run_prepare([source], out, tokenizer=ByteTokenizer())
                lines_file(source, "abcd")
            return super().encode(text, bos=bos)

    with pytest.raises(ValueError, match="changed while they were read"):
        run_prepare([source], out, tokenizer=Writes())
    assert not (out / "index.json").exists()


def test_a_printed_command_runs_nothing_that_a_directory_is_called(whole):
    printed = describe(read_json(whole / "index.json"), Path("$(touch x); '\"`id`"))
    command = printed.splitlines()[-1].partition("train on it with ")[2]
    words = shlex.split(command.partition(", or data=")[0])
    assert words == ["--data.path", "$(touch x); '\"`id`"]
    assert eval(command.partition(", or data=")[2], {"Prepared": str}) == "$(touch x); '\"`id`"


def test_the_command(sources, whole, tmp_path, capsys):
    argv = [
        "prepare",
        *map(str, sources),
        "--out",
        str(tmp_path / "out"),
        "--tokenizer",
        str(TINY_LLAMA),
    ]
    assert main([*argv, "--held-out", "0.2", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    index = read_json(whole / "index.json")
    tokens = sum(index["splits"][split]["tokens"] for split in ("train", "heldout"))
    assert abs(sum(source["tokens"] for source in plan["sources"]) / tokens - 1) < 0.1
    assert plan["sources"][0]["files"] == {"a.jsonl": sources[0].stat().st_size}
    assert main([*argv, "--dry-run"]) == 0
    assert "nothing has been written" in capsys.readouterr().out
    assert main([*argv, "--held-out", "0.2", "--workers", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == index
    assert contents(tmp_path / "out") == contents(whole)
    # The same tokenizer by its file: everything is already there.
    model = ["--tokenizer", str(TINY_LLAMA / "tokenizer.model")]
    assert main([*argv[:-2], *model, "--held-out", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert f"--data.path {tmp_path / 'out'}" in printed
    assert "a.jsonl: " in printed
    assert main([*argv, "--held-out", "2"]) == 2
    assert "--held-out is a share" in capsys.readouterr().err
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert main(["prepare", str(empty), "--out", str(tmp_path / "x"), *argv[-2:]]) == 2
    assert "empty.txt holds no document with text" in capsys.readouterr().err
    assert main(["prepare", "no-such-file", *argv[-4:]]) == 2
    assert "no-such-file does not exist; give a data file" in capsys.readouterr().err

"""Coverage-guided fuzzing of the readers of foreign files; needs the extra `fuzz`.

PYTHONPATH=tests python tests/support/fuzz_interop.py READER -max_total_time=60

Whatever the bytes, a reader raises one clear error or returns what an independent reader returns.
"""

import functools
import json
import math
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["ctxext"]):
    from ctxext.interop import hf, meta, pth, pth_writer, safetensors_files
    from ctxext.interop.hf_weights import StoredModel, WriteOptions
    from ctxext.interop.lazy_tensor import LazyTensor
    from ctxext.interop.stored_weights import find_weights
    from ctxext.methods.yarn import Yarn
    from ctxext.model.config import LlamaConfig
    from ctxext.tokenization import tokenizer

from safetensors.numpy import load_file  # noqa: E402

from support.hf_files import write_hf  # noqa: E402
from support.llamas import LENGTH, TINY, random_params  # noqa: E402
from support.llamas import tokenizer as tiny_tokenizer  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))
GOOD = FOLDER / "good"
BAD = FOLDER / "bad"
TEXTS = ("", "a b", "def f(x):\n    return 1", "<s>naïve 日本語")


def outcome(work: Callable[[], Any]) -> Any:
    """The result of `work`, or None if it raises one clear error; any other error is a bug."""
    try:
        return work()
    except ValueError as error:
        line = " ".join(str(error).split())
        assert 20 < len(line) < 2000, line
        return None


def read_all(find: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray] | None:
    tensors = outcome(find)
    if tensors is None:
        return None
    return outcome(lambda: {name: entry.read() for name, entry in tensors.items()})


def header(data: bytes) -> None:
    """model.safetensors, compared with what the safetensors library reads."""
    (BAD / safetensors_files.SINGLE_FILE).write_bytes(data)
    tensors = read_all(lambda: safetensors_files.open_file(BAD / safetensors_files.SINGLE_FILE))
    if tensors is not None:
        stored = load_file(BAD / safetensors_files.SINGLE_FILE)
        assert tensors.keys() == stored.keys()
        assert all(tensors[n].tobytes() == x.tobytes() for n, x in stored.items())


def index(data: bytes) -> None:
    (GOOD / safetensors_files.INDEX_FILE).write_bytes(data)
    result = outcome(lambda: find_weights(GOOD, TINY))
    assert result is None or len(result) == len(random_tensors())


def config(data: bytes) -> None:
    """config.json: the fields of the file, and valid frequencies."""
    (BAD / "config.json").write_bytes(data)
    result = outcome(lambda: (*hf.read_config(BAD), hf.window(BAD)))
    if result is not None:
        shape, scaling, window = result
        assert isinstance(shape, LlamaConfig)
        assert type(window) is int
        assert window >= shape.max_position_embeddings
        assert shape.vocab_size == json.loads(data)["vocab_size"]
        rope = scaling.rope(shape.rope_base(), window)
        assert np.isfinite(rope.inv_freq).all()
        assert (rope.inv_freq >= 0).all()
        assert math.isfinite(rope.attention_factor)


def _tokens(files: dict[str, bytes]) -> None:
    result = outcome(lambda: tokenizer.Tokenizer(files))
    if result is not None:
        for text in TEXTS:
            ids = outcome(functools.partial(result.encode, text))
            assert ids is None or all(0 <= i < result.vocab_size for i in ids)
        outcome(lambda: result.export_files(LENGTH))


def tokenizer_json(data: bytes) -> None:
    _tokens({tokenizer.JSON: data})


def tokenizer_config(data: bytes) -> None:
    _tokens({tokenizer.JSON: good()["tokenizer_json"], tokenizer.CONFIG: data})


def sentencepiece(data: bytes) -> None:
    _tokens({tokenizer.MODEL: data})


def archive(data: bytes) -> None:
    """A .pth archive; it never yields more numbers than it has bytes."""
    (BAD / "x.pth").write_bytes(data)
    tensors = read_all(lambda: pth.open_archive(BAD / "x.pth"))
    assert tensors is None or all(x.size <= len(data) for x in tensors.values())


def pickled(data: bytes) -> None:
    """data.pkl, in an archive with correct checksums."""
    with zipfile.ZipFile(BAD / "x.pth", "w") as file:
        for name, content in {"data.pkl": data, "data/0": bytes(12), "data/1": bytes(52)}.items():
            file.writestr(f"x/{name}", content)
    tensors = read_all(lambda: pth.open_archive(BAD / "x.pth"))
    assert tensors is None or all(x.size <= 64 for x in tensors.values())


def params(data: bytes) -> None:
    """params.json of Meta's format, next to good shards."""
    (FOLDER / "meta" / "params.json").write_bytes(data)
    outcome(lambda: meta.read(FOLDER / "meta", original=64))


READERS = {
    f.__name__: f
    for f in (
        header,
        index,
        config,
        tokenizer_json,
        tokenizer_config,
        sentencepiece,
        archive,
        pickled,
        params,
    )
}


def random_tensors() -> dict[str, Any]:
    return find_weights(FOLDER / "one", TINY)


@functools.cache
def good() -> dict[str, bytes]:
    """A valid file for each reader, from which the fuzzer starts."""
    small = {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    entries = {name: LazyTensor(x.shape, "float32", lambda x=x: x) for name, x in small.items()}
    safetensors_files.write_file(FOLDER / "small.safetensors", entries, "float32")
    with pth_writer.create(
        FOLDER / "small.pth", {name: x.shape for name, x in small.items()}, "float32"
    ) as put:
        for x in small.values():
            put(x)
    files = tiny_tokenizer().export_files(LENGTH)
    return {
        "header": (FOLDER / "small.safetensors").read_bytes(),
        "index": (GOOD / safetensors_files.INDEX_FILE).read_bytes(),
        "config": (GOOD / "config.json").read_bytes(),
        "tokenizer_json": files[tokenizer.JSON],
        "tokenizer_config": files[tokenizer.CONFIG],
        "sentencepiece": files[tokenizer.MODEL],
        "archive": (FOLDER / "small.pth").read_bytes(),
        "pickled": pth_writer._pickle({"a": (2, 3)}, "bfloat16"),
        "params": (FOLDER / "meta" / "params.json").read_bytes(),
    }


def main() -> None:
    name = sys.argv.pop(1)
    BAD.mkdir()
    write_hf(
        GOOD,
        TINY,
        random_params(),
        Yarn(4.0),
        tiny_tokenizer(),
        dtype="float32",
        max_shard_size=60_000,
    )
    write_hf(FOLDER / "one", TINY, random_params(), Yarn(4.0), tiny_tokenizer(), dtype="float32")
    window = TINY.max_position_embeddings
    model = StoredModel(TINY, Yarn(4.0), window, random_tensors(), tiny_tokenizer())
    meta.write(FOLDER / "meta", model, WriteOptions("float32"))
    (FOLDER / "corpus").mkdir()
    (FOLDER / "corpus" / "good").write_bytes(good()[name])
    atheris.Setup(
        [*sys.argv, "-timeout=20", "-rss_limit_mb=4096", str(FOLDER / "corpus")], READERS[name]
    )
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()

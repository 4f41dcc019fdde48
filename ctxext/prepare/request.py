"""The request that a preparation serves, and the locked directory of its unfinished work."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext.data.corpus import id_dtype
from ctxext.data.token_files import ANSWERS_VERSION, FORMAT, VERSION, WORK, file_hash
from ctxext.files import (
    check_free,
    check_places,
    exclusive_lock,
    make_parent,
    read_json,
    write_json,
)
from ctxext.prepare.encode import Recipe
from ctxext.tokenization.tokenizer import Tokenizer

REQUEST = "request.json"
SHARDS = "*.npz"
"""The finished shards in the directory of unfinished work."""


def make_request(
    sources: Sequence[Path], files: list[dict[str, Path]], tokenizer: Tokenizer, recipe: Recipe
) -> dict[str, Any]:
    """Everything that decides the bytes, in the form of the index."""
    described = [
        {
            "name": root.resolve().name,
            "files": {
                name: {"bytes": path.stat().st_size, "sha256": file_hash(path)}
                for name, path in source.items()
            },
        }
        for root, source in zip(sources, files, strict=True)
    ]
    return {
        "format": FORMAT,
        "version": VERSION if recipe.chat_template is None else ANSWERS_VERSION,
        "complete": False,
        "dtype": id_dtype(tokenizer.num_ids).name,
        "tokenizer": {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id if recipe.adds_bos(tokenizer) else None,
            "eos_id": tokenizer.eos_id if recipe.eos else None,
        },
        **recipe.facts(),
        "sources": described,
    }


def plain_sources(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sources of an index as a request has them, without counts."""
    return [{"name": source["name"], "files": source["files"]} for source in sources]


def check_same_request(out: Path, stored: Any, request: dict[str, Any]) -> None:
    """Raise ValueError that names the first difference from the request that `out` is of."""
    if not isinstance(stored, dict):
        raise ValueError(f"{out} does not say what it was started with; remove it, and start again")
    for name, value in request.items():
        if name != "complete" and stored.get(name) != value:
            raise ValueError(
                f"{out} was started with other {name.replace('_', '-')}: repeat the command it was "
                "started with, choose another --out, or remove it"
            )


def file_stamps(files: list[dict[str, Path]]) -> list[tuple[int, int]]:
    """Size and modification time of every file, which show whether one was written to."""
    return [
        (path.stat().st_size, path.stat().st_mtime_ns)
        for source in files
        for path in source.values()
    ]


@contextlib.contextmanager
def lock_work(out: Path, request: dict[str, Any]) -> Iterator[Path]:
    """The directory of shards, locked.

    Raises ValueError if it holds finished shards of another request, or belongs to a process that
    is running, and if it is a link.
    """
    work = out / WORK
    check_places(out, WORK)
    if not work.is_dir():
        check_free(out)
        make_parent(work / REQUEST)
    advice = "wait for it, stop it, or choose another --out"
    with exclusive_lock(work / "lock", f"{out} is being prepared", advice):
        if not any(work.glob(SHARDS)):  # nothing is lost by another request
            write_json(work / REQUEST, request)
        check_same_request(out, read_json(work / REQUEST), request)
        for torn in (*work.glob(".*"), *out.glob(".*")):  # temporary files of a killed run
            torn.unlink()
        yield work

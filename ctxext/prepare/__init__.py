"""Text, JSONL, Parquet or datasets to token files with document offsets: many workers, resumable, one result.

The result is a pure function of the files, the tokenizer and the recipe. A unit of work becomes a part under OUT/work,
whole or absent; when all parts are there they are joined in order. So the bytes are the same for any number of workers
and however often a run was killed. The disk holds the tokens twice while they are joined.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext.data.corpus import id_dtype
from ctxext.data.prepared import FORMAT, INDEX, VERSION, WORK, check_hashes, file_hash, read_index
from ctxext.files import check_free, read_json, write_json
from ctxext.prepare.chunks import cut, source_files
from ctxext.prepare.encode import Recipe as Recipe
from ctxext.prepare.progress import Progress
from ctxext.prepare.workers import encode_all
from ctxext.prepare.write import REJECTS, Tally, join
from ctxext.tokenization.tokenizer import Tokenizer

REQUEST = "request.json"


def prepare(
    sources: Sequence[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    recipe: Recipe,
    workers: int = 1,
    max_rejects: float = 0.01,
    unit_bytes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write `out`, or go on where a run of the same request was stopped; returns the index.

    Each source is a domain. max_rejects: the share of lines or rows that may be broken; they are listed in
    rejects.jsonl. Raises ValueError if `out` holds something else, a file changes meanwhile, too much is rejected or
    nothing is left.
    """
    check(recipe, tokenizer, workers, max_rejects)
    for root in sources:
        if out.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{out} lies within {root}, which is read: choose another --out")
    files = [source_files(root) for root in sources]
    stamps = _stamps(files)
    units = cut(files, recipe.field, unit_bytes)
    request = _request(sources, files, tokenizer, recipe)
    if (out / INDEX).is_file():
        index = read_index(out)
        _same(out, index | {"sources": _plain(index["sources"])}, request)
        check_hashes(out, index)
        shutil.rmtree(
            out / WORK, ignore_errors=True
        )  # left by a run that was killed at the very end
        return index
    with _working(out, request | {"units": [unit.size for unit in units]}) as work:
        parts = [work / f"{number:06}.npz" for number in range(len(units))]
        todo = {part: unit for part, unit in zip(parts, units, strict=True) if not part.exists()}
        shown = Progress(units, list(todo.values()), enabled=progress)
        for unit, tokens in encode_all(todo, recipe, tokenizer, workers):
            shown.update(unit, tokens)
        if _stamps(files) != stamps:
            raise ValueError(
                f"the files of {', '.join(map(str, sources))} changed while they were read: remove {out} "
                "and prepare again"
            )
        tally = Tally(units, parts, len(files))
        tally.write(out)
        if len(tally.rejects) > max_rejects * tally.records:
            first = tally.rejects[0]
            where = ":".join(str(first[name]) for name in ("file", "line", "row") if name in first)
            raise ValueError(
                f"{len(tally.rejects):,} of {tally.records:,} lines or rows are rejected, more than --max-rejects "
                f"{max_rejects:g}; the first is {where}, {first['reason']}; see {out / REJECTS}, then repair"
                " them, or give the same command a larger --max-rejects: nothing is encoded again"
            )
        splits, counts = join(out, id_dtype(tokenizer.vocab_size), units, parts, len(files))
        if not sum(split["documents"] for split in splits.values()):
            raise ValueError(
                f"nothing is left of {', '.join(map(str, sources))}: look at {out / REJECTS}, --min-tokens"
                " and --max-tokens"
            )
        told = [
            a | b | c for a, b, c in zip(request["sources"], counts, tally.left_out, strict=True)
        ]
        index = request | {"complete": True, "sources": told, "splits": splits}
        write_json(out / INDEX, index)  # last: its presence says that the rest is whole
        shutil.rmtree(work)
    return index


def check(recipe: Recipe, tokenizer: Tokenizer, workers: int, max_rejects: float) -> None:
    """Raise ValueError for what cannot be done, before any file is read."""
    if workers < 1 or not 0 <= max_rejects <= 1:
        raise ValueError(
            f"--workers is at least 1 and --max-rejects from 0 to 1, got {workers} and {max_rejects}"
        )
    for wanted, name, found in (
        (recipe.bos, "bos", tokenizer.bos_id),
        (recipe.eos, "eos", tokenizer.eos_id),
    ):
        if wanted and found is None:
            raise ValueError(
                f"this tokenizer names no {name} token: give --no-{name}, or a directory whose "
                f"tokenizer_config.json names it"
            )


def _stamps(files: list[dict[str, Path]]) -> list[tuple[int, int]]:
    """Size and time of every file, which show that one was written to."""
    return [
        (path.stat().st_size, path.stat().st_mtime_ns) for there in files for path in there.values()
    ]


def _request(
    sources: Sequence[Path], files: list[dict[str, Path]], tokenizer: Tokenizer, recipe: Recipe
) -> dict:
    """Everything that decides the bytes, as the index tells it."""
    made = {
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id if recipe.bos else None,
        "eos_id": tokenizer.eos_id if recipe.eos else None,
    }
    told = [
        {
            "name": root.resolve().name,
            "files": {
                name: {"bytes": path.stat().st_size, "sha256": file_hash(path)}
                for name, path in there.items()
            },
        }
        for root, there in zip(sources, files, strict=True)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "dtype": id_dtype(tokenizer.vocab_size).name,
        "tokenizer": made,
        **recipe.facts(),
        "sources": told,
    }


def _plain(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": source["name"], "files": source["files"]} for source in sources]


def _same(out: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise ValueError naming what differs between two requests."""
    for name, value in here.items():
        if name != "complete" and there.get(name) != value:
            raise ValueError(
                f"{out} was begun with other {name.replace('_', '-')}: give what it was begun with, or "
                "choose another --out, or remove it"
            )


@contextlib.contextmanager
def _working(out: Path, request: dict[str, Any]) -> Iterator[Path]:
    """The directory of parts, held locked. Raises ValueError if it belongs to another request, or to a running one."""
    work = out / WORK
    if not (work / REQUEST).is_file():
        if not work.is_dir():
            check_free(out)
        write_json(work / REQUEST, request)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is preparing {out}; wait for it or stop it"
            ) from None
        _same(out, read_json(work / REQUEST), request)
        for torn in (*work.glob(".*"), *out.glob(".*")):  # of a run that was killed
            torn.unlink()
        yield work


def describe(index: dict[str, Any], out: Path) -> str:
    """Counts of every source and split, to read."""
    lines = []
    for source in index["sources"]:
        kept = [
            f"{source[split]['documents']:,} documents, {source[split]['tokens']:,} tokens {name}"
            for split, name in (("train", "to train"), ("heldout", "held out"))
            if source[split]["documents"]
        ]
        lost = [
            f"{source[name]:,} {name}"
            for name in ("rejected", "empty", "shorter", "longer")
            if source[name]
        ]
        lines.append(f"{source['name']}: {'; '.join([*kept, *lost])}")
    made = index["tokenizer"]
    lines += [
        f"{index['dtype']} ids of tokenizer {made['sha256'][:12]}, BOS {made['bos_id']}, EOS {made['eos_id']}"
    ]
    return "\n".join(
        [*lines, f'wrote {out}; train on it with --data.path {out}, or data=Prepared("{out}")']
    )

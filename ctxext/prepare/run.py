"""A preparation from start to end: cut, encode, join, write the index."""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxext.data.corpus import id_dtype
from ctxext.data.documents import cite
from ctxext.data.token_files import INDEX, WORK, check_hashes, read_index
from ctxext.files import write_json
from ctxext.prepare.chunks import cut
from ctxext.prepare.encode import LITERAL, Recipe
from ctxext.prepare.join import REJECTS, Tally, join, join_answers
from ctxext.prepare.progress import Progress
from ctxext.prepare.request import (
    check_same_request,
    file_stamps,
    lock_work,
    make_request,
    plain_sources,
)
from ctxext.prepare.sources import find_sources
from ctxext.prepare.workers import encode_all
from ctxext.tokenization.tokenizer import Tokenizer


def prepare(
    sources: Sequence[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    recipe: Recipe,
    workers: int = 1,
    max_rejects: float = 0.0,
    chunk_bytes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write `out`, or resume where a run of the same request was stopped; returns the index.

    Each source is a domain. max_rejects: the share of lines or rows that may be broken; they are
    listed in rejects.jsonl. Raises ValueError if `out` holds something else, a file changes
    meanwhile, too much is rejected or nothing is left.
    """
    check(recipe, tokenizer, workers, max_rejects)
    for root in sources:
        if out.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{out} is inside {root}, which is read: choose another --out")
    files = find_sources(sources, recipe.reader, max_rejects=max_rejects, quiet=not progress)
    stamps = file_stamps(files)
    chunks = cut(files, recipe.reader, chunk_bytes)
    request = make_request(sources, files, tokenizer, recipe)
    if (out / INDEX).is_file():
        index = read_index(out)
        check_same_request(out, index | {"sources": plain_sources(index["sources"])}, request)
        check_hashes(out, index)
        # Left by a run that was killed at the very end.
        shutil.rmtree(out / WORK, ignore_errors=True)
        return index
    with lock_work(out, request | {"chunks": [chunk.size for chunk in chunks]}) as work:
        shards = [work / f"{number:06}.npz" for number in range(len(chunks))]
        missing = {
            shard: chunk for shard, chunk in zip(shards, chunks, strict=True) if not shard.exists()
        }
        bar = Progress(chunks, list(missing.values()), enabled=progress)
        for chunk, num_tokens in encode_all(missing, recipe, tokenizer, workers):
            bar.update(chunk, num_tokens)
        names = ", ".join(map(str, sources))
        if file_stamps(files) != stamps:
            raise ValueError(
                f"the files of {names} changed while they were read: remove {out} and prepare again"
            )
        tally = Tally(chunks, shards, len(files))
        tally.write(out)
        _check_rejects(tally, out, max_rejects)
        dtype = id_dtype(tokenizer.num_ids)
        splits, counts = join(out, dtype, chunks, shards, len(files))
        if recipe.chat_template is not None:
            for split, facts in splits.items():
                facts |= join_answers(out, shards, split, facts["tokens"])
        if not sum(split["documents"] for split in splits.values()):
            raise ValueError(
                f"nothing is left of {names}: look at {out / REJECTS}, --min-tokens and "
                "--max-tokens"
            )
        if not splits["train"]["documents"]:
            raise ValueError(
                f"all documents of {names} ({splits['heldout']['documents']:,}) are held out of "
                f"training by --held-out {recipe.held_out:g}: remove {out}, and prepare again with "
                "more documents or with --held-out 0"
            )
        described = [
            source | count | left_out | {LITERAL: num_literal}
            for source, count, left_out, num_literal in zip(
                request["sources"], counts, tally.left_out, tally.num_literal, strict=True
            )
        ]
        index = request | {"complete": True, "sources": described, "splits": splits}
        write_json(out / INDEX, index)  # last: its presence means that the rest is whole
        shutil.rmtree(work)
    return index


def check(recipe: Recipe, tokenizer: Tokenizer, workers: int, max_rejects: float) -> None:
    """Raise ValueError for impossible options, before any file is read."""
    if workers < 1 or not 0 <= max_rejects <= 1:
        raise ValueError(
            "--workers is at least 1 and --max-rejects from 0 to 1, "
            f"got {workers} and {max_rejects}"
        )
    for is_required, name, token_id in (
        (recipe.adds_bos(tokenizer), "bos", tokenizer.bos_id),
        (recipe.eos, "eos", tokenizer.eos_id),
    ):
        if is_required and token_id is None:
            raise ValueError(
                f"this tokenizer names no {name} token: give --no-{name}, or a directory whose "
                f"tokenizer_config.json names it"
            )


def _check_rejects(tally: Tally, out: Path, max_rejects: float) -> None:
    if len(tally.rejects) <= max_rejects * tally.num_read:
        return
    first = tally.rejects[0]
    place = cite(first)
    cited = f", {place}" if place else ""
    raise ValueError(
        f"{first['file']}{cited}: {first['reason']}; {len(tally.rejects):,} of {tally.num_read:,} "
        f"documents are rejected, more than --max-rejects {max_rejects:g}: see {out / REJECTS}, "
        "then repair them, or repeat the command with a larger --max-rejects: nothing is encoded "
        "again"
    )


def describe(index: dict[str, Any], out: Path) -> str:
    """The counts of every source and split as text."""
    lines = []
    for source in index["sources"]:
        kept = [
            f"{source[split]['documents']:,} documents, {source[split]['tokens']:,} tokens {name}"
            for split, name in (("train", "to train"), ("heldout", "held out"))
            if source[split]["documents"]
        ]
        left_out = [
            f"{source[name]:,} {name}"
            for name in ("rejected", "empty", "shorter", "longer")
            if source[name]
        ]
        lines.append(f"{source['name']}: {'; '.join([*kept, *left_out])}")
        if source[LITERAL]:
            lines.append(
                f"{source['name']}: {source[LITERAL]:,} documents spell special tokens, which are "
                "text there; --parse-special makes them tokens"
            )
    trained = index["splits"]["train"]
    if "answer_tokens" in trained:
        lines.append(
            f"{trained['answer_tokens']:,} of the {trained['tokens']:,} tokens to train on are of "
            "answers, whose loss alone counts"
        )
    num_documents = trained["documents"]
    if index["held_out"] and not index["splits"]["heldout"]["documents"]:
        lines.append(
            f"none of {num_documents:,} documents is held out: --held-out {index['held_out']:g} "
            "comes to nothing here; for text to evaluate on, give a larger share or more documents"
        )
    made_by = index["tokenizer"]
    lines += [
        f"{index['dtype']} ids of tokenizer {made_by['sha256'][:12]}, "
        f"{_marker('BOS', made_by['bos_id'])} and {_marker('EOS', made_by['eos_id'])}",
        f"wrote {out}; train on it with --data.path {shlex.quote(str(out))}, or "
        f"data=Prepared({json.dumps(str(out))})",
    ]
    return "\n".join(lines)


def _marker(name: str, token_id: int | None) -> str:
    """Whether each document has it."""
    return f"no {name}" if token_id is None else f"{name} {token_id}"

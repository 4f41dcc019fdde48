"""What would be done, and about how much would come of it: a few documents are encoded, nothing is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxext.data.corpus import id_dtype
from ctxext.data.prepared import OFFSETS
from ctxext.prepare.chunks import Unit, cut, source_files
from ctxext.prepare.encode import Recipe
from ctxext.prepare.records import records
from ctxext.tokenization.tokenizer import Tokenizer

SAMPLES, SAMPLE_BYTES = 8, 1 << 20
"""Units of a source that are looked into, and how much of them in all."""


def estimate(sources: Sequence[Path], tokenizer: Tokenizer, recipe: Recipe) -> dict[str, Any]:
    """Files, sizes and units of every source, and tokens and documents guessed from samples; no filter is applied.

    Raises ValueError for sources that are not there or cannot be read.
    """
    files = [source_files(root) for root in sources]
    units = cut(files, recipe.field)
    itemsize, told = id_dtype(tokenizer.vocab_size).itemsize, []
    for number, (root, there) in enumerate(zip(sources, files, strict=True)):
        mine = [unit for unit in units if unit.source == number]
        documents, tokens = _guess(mine, tokenizer, recipe)
        told.append(
            {
                "name": root.resolve().name,
                "files": {name: path.stat().st_size for name, path in there.items()},
                "units": len(mine),
                "documents": documents,
                "tokens": tokens,
                "bytes": tokens * itemsize + documents * OFFSETS.itemsize,
            }
        )
    return {"dry_run": True, "dtype": id_dtype(tokenizer.vocab_size).name, "sources": told}


def _guess(units: Sequence[Unit], tokenizer: Tokenizer, recipe: Recipe) -> tuple[int, int]:
    """(documents, tokens) of all units by what a few of them hold per byte."""
    seen, documents, tokens = 0, 0.0, 0.0
    chosen = (
        {round(i * (len(units) - 1) / max(SAMPLES - 1, 1)) for i in range(SAMPLES)}
        if units
        else set()
    )
    for unit in (units[i] for i in sorted(chosen)):
        stop = seen + SAMPLE_BYTES // len(chosen)
        for _, text, _, size in (
            record for piece in unit.pieces for record in records(piece, recipe.field)
        ):
            if text:
                head = text[: SAMPLE_BYTES // len(chosen)]
                tokens += (
                    len(tokenizer.encode(head)) * len(text) / len(head) + recipe.bos + recipe.eos
                )
                documents += 1
            seen += size
            if seen >= stop:
                break
    total = sum(unit.size for unit in units)
    return round(documents * total / max(seen, 1)), round(tokens * total / max(seen, 1))


def describe(plan: dict[str, Any]) -> str:
    """The same to read."""
    lines = []
    for source in plan["sources"]:
        size = sum(source["files"].values())
        lines.append(
            f"{source['name']}: {len(source['files']):,} files, {size / 1e6:,.1f} MB, {source['units']:,} "
            f"units; about {source['documents']:,} documents, {source['tokens']:,} tokens"
        )
    need = sum(source["bytes"] for source in plan["sources"])
    return "\n".join(
        [
            *lines,
            f"about {need / 1e6:,.1f} MB of {plan['dtype']} ids and offsets, twice that while it is "
            "written; nothing has been written",
        ]
    )

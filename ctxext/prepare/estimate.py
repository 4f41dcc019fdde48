"""An estimate of the result of a preparation: a few documents are encoded, nothing is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxext.data.corpus import id_dtype
from ctxext.data.documents import messages_of
from ctxext.data.token_files import OFFSETS
from ctxext.prepare.chunks import Chunk, cut
from ctxext.prepare.encode import Recipe
from ctxext.prepare.sources import find_sources
from ctxext.tokenization.tokenizer import Tokenizer

SAMPLES = 8
"""Chunks of each source that are sampled."""
SAMPLE_BYTES = 1 << 20
"""Bytes that are read of them in all."""


def estimate(
    sources: Sequence[Path], tokenizer: Tokenizer, recipe: Recipe, *, max_rejects: float = 0.0
) -> dict[str, Any]:
    """Files, sizes and chunks of every source, and tokens and documents estimated from samples.

    Length filters are not applied. Raises ValueError for sources that do not exist or cannot be
    read.
    """
    files = find_sources(sources, recipe.reader, max_rejects=max_rejects)
    chunks = cut(files, recipe.reader)
    dtype = id_dtype(tokenizer.num_ids)
    described = []
    for number, (root, paths) in enumerate(zip(sources, files, strict=True)):
        own = [chunk for chunk in chunks if chunk.source == number]
        documents, tokens = _estimate_source(own, tokenizer, recipe)
        described.append(
            {
                "name": root.resolve().name,
                "files": {name: path.stat().st_size for name, path in paths.items()},
                "chunks": len(own),
                "documents": documents,
                "tokens": tokens,
                "bytes": tokens * dtype.itemsize + documents * OFFSETS.itemsize,
            }
        )
    return {"dry_run": True, "dtype": dtype.name, "sources": described}


def _estimate_source(
    chunks: Sequence[Chunk], tokenizer: Tokenizer, recipe: Recipe
) -> tuple[int, int]:
    """(documents, tokens) of all chunks by what a few of them hold per byte."""
    if not chunks:
        return 0, 0
    last = len(chunks) - 1
    sampled = sorted({round(i * last / max(SAMPLES - 1, 1)) for i in range(SAMPLES)})
    bytes_each = SAMPLE_BYTES // len(sampled)
    markers = recipe.adds_bos(tokenizer) + recipe.eos
    bytes_read = 0
    documents = 0.0
    tokens = 0.0
    for index in sampled:
        stop = bytes_read + bytes_each
        for file_range in chunks[index].ranges:
            for _, text, _, size in file_range.documents(recipe.reader):
                if text and recipe.chat_template is not None:
                    # Without what the template writes around them.
                    text = "\n".join(message["content"] for message in messages_of(text))
                if text:
                    head = text[:bytes_each]
                    head_tokens = len(tokenizer.encode(head))
                    tokens += head_tokens * len(text) / len(head) + markers
                    documents += 1
                bytes_read += size
                if bytes_read >= stop:
                    break
            if bytes_read >= stop:
                break
    total = sum(chunk.size for chunk in chunks)
    bytes_read = max(bytes_read, 1)
    return round(documents * total / bytes_read), round(tokens * total / bytes_read)


def describe(plan: dict[str, Any]) -> str:
    """The estimate as text."""
    lines = []
    for source in plan["sources"]:
        size = sum(source["files"].values())
        lines.append(
            f"{source['name']}: {len(source['files']):,} files, {size / 1e6:,.1f} MB, "
            f"{source['chunks']:,} chunks; about {source['documents']:,} documents, "
            f"{source['tokens']:,} tokens"
        )
    needed = sum(source["bytes"] for source in plan["sources"])
    lines.append(
        f"about {needed / 1e6:,.1f} MB of {plan['dtype']} ids and offsets, twice that while it is "
        "written; nothing has been written"
    )
    return "\n".join(lines)

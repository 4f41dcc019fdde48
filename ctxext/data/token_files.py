"""The format that `ctxext prepare` writes: token files, document offsets and an index."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.data.corpus import Corpus
from ctxext.files import read_json
from ctxext.tokenization.protocol import TokenizerLike

FORMAT = "ctxext tokens"
VERSION = 1
INDEX = "index.json"
WORK = "work"
"""In a directory that is not finished: what has been done so far."""
SPLITS = ("train", "heldout")
OFFSETS = np.dtype("<i8")


def token_file(root: Path, split: str) -> Path:
    """The ids of all documents of a split one after another, of the index's dtype."""
    return root / f"{split}.tokens"


def offset_file(root: Path, split: str) -> Path:
    """int64[documents + 1]: where each document begins in the token file, and the last one ends."""
    return root / f"{split}.offsets"


def is_prepared(root: Path) -> bool:
    """Whether this is a directory that `ctxext prepare` wrote."""
    return (root / INDEX).is_file()


def read_index(root: Path) -> dict[str, Any]:
    """The index of a prepared directory.

    Raises ValueError if it is of another format, unfinished, or its files are missing or of another
    size.
    """
    if not is_prepared(root) and (root / WORK).is_dir():
        raise ValueError(f"{root} is not finished: run the same ctxext prepare again to resume it")
    if not is_prepared(root):
        raise ValueError(f"{root} is not a directory that `ctxext prepare` wrote")
    index = read_json(root / INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(
            f"{root / INDEX} is not an index of tokens: prepare the data with ctxext prepare"
        )
    if index.get("version") != VERSION or index.get("complete") is not True:
        raise ValueError(
            f"{root} is of version {index.get('version')} of the format, this is {VERSION}, or it "
            "is not complete: prepare it again"
        )
    try:
        sizes = _file_sizes(root, index)
    except (KeyError, TypeError):
        raise ValueError(f"{root / INDEX} is corrupt: prepare the data again") from None
    for path, size in sizes.items():
        if not path.is_file():
            raise ValueError(f"{path} is missing: copy it again, or prepare the data again")
        actual = path.stat().st_size
        if actual != size:
            raise ValueError(
                f"{path} has {actual:,} bytes, its index says {size:,}: "
                "copy it again, or prepare the data again"
            )
    return index


def _file_sizes(root: Path, index: dict[str, Any]) -> dict[Path, int]:
    """Bytes of the token and offset files, by the index."""
    itemsize = np.dtype(index["dtype"]).itemsize
    sizes = {}
    for split in SPLITS:
        counts = index["splits"][split]
        sizes[token_file(root, split)] = counts["tokens"] * itemsize
        sizes[offset_file(root, split)] = (counts["documents"] + 1) * OFFSETS.itemsize
    return sizes


def check_hashes(root: Path, index: dict[str, Any]) -> None:
    """Read every file. Raises ValueError that names the first whose sha256 is not the index's."""
    for split, facts in index["splits"].items():
        for path, sha256 in (
            (token_file(root, split), facts["tokens_sha256"]),
            (offset_file(root, split), facts["offsets_sha256"]),
        ):
            if file_hash(path) != sha256:
                raise ValueError(
                    f"{path} is corrupt: its sha256 is not the index's; "
                    f"remove {root} and prepare again"
                )


def file_hash(path: Path) -> str:
    """The sha256 of a file, read a block at a time. Raises ValueError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def open_prepared(root: Path, split: str, tokenizer: TokenizerLike) -> Corpus:
    """The documents of a split, mapped into memory.

    The sizes of the files are compared with the index, their hashes are not. Raises ValueError if
    another tokenizer made them, or if the split has no documents.
    """
    index = read_index(root)
    made_by = index["tokenizer"]
    if made_by["sha256"] != tokenizer.sha256:
        raise ValueError(
            f"{root} was prepared with another tokenizer ({made_by['sha256'][:12]}) than the "
            f"model's ({tokenizer.sha256[:12]}): prepare the text again with the model's"
        )
    bos_id = made_by["bos_id"]
    eos_id = made_by["eos_id"]
    model_bos_id = tokenizer.bos_id if tokenizer.adds_bos else None
    if bos_id != model_bos_id or eos_id not in (None, tokenizer.eos_id):
        raise ValueError(
            f"{root} was prepared with BOS {bos_id} and EOS {eos_id}, the model's texts have "
            f"{model_bos_id} and {tokenizer.eos_id}: prepare the text again, or begin the model's "
            "texts in the same way with --bos or --no-bos"
        )
    facts = index["splits"][split]
    if not facts["documents"]:
        raise ValueError(f"{root} holds no {split} documents; prepare with another --held-out")
    provenance = {"kind": "prepared", "split": split, **facts, "bos_id": bos_id, "eos_id": eos_id}
    return Corpus(
        np.memmap(token_file(root, split), index["dtype"], "r"),
        np.memmap(offset_file(root, split), OFFSETS, "r"),
        bos_id=bos_id,
        eos_id=eos_id,
        facts=provenance,
        domains=[source[split]["documents"] for source in index["sources"]],
    )

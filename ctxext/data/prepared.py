"""What `ctxext prepare` writes and training maps into memory: token files, document offsets and an index."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.data.corpus import Corpus
from ctxext.files import read_json
from ctxext.tokenization.protocol import TokenizerLike

FORMAT, VERSION = "ctxext tokens", 1
INDEX = "index.json"
WORK = "work"
"""Of a directory that is not finished: what has been done so far."""
SPLITS = ("train", "heldout")
OFFSETS = np.dtype("<i8")


def token_file(root: Path, split: str) -> Path:
    """The ids of all documents of a split one after another, of the index's dtype."""
    return root / f"{split}.tokens"


def offset_file(root: Path, split: str) -> Path:
    """int64[documents + 1]: where each document begins in the token file, and where the last one ends."""
    return root / f"{split}.offsets"


def is_prepared(root: Path) -> bool:
    """True for a directory that `ctxext prepare` wrote."""
    return (root / INDEX).is_file()


def read_index(root: Path) -> dict[str, Any]:
    """The index of a prepared directory. Raises ValueError if it is of something else, or the files are not whole."""
    if not is_prepared(root) and (root / WORK).is_dir():
        raise ValueError(
            f"{root} is not finished: run the same ctxext prepare again, it goes on where it was"
        )
    index = read_json(root / INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(
            f"{root / INDEX} is not an index of tokens: prepare the data with ctxext prepare"
        )
    if index.get("version") != VERSION or index.get("complete") is not True:
        raise ValueError(
            f"{root} is of version {index.get('version')} of the format, this is {VERSION}, or it is not "
            "complete: prepare it again"
        )
    try:
        size = np.dtype(index["dtype"]).itemsize
        sizes = {
            token_file(root, split): index["splits"][split]["tokens"] * size for split in SPLITS
        }
        sizes |= {
            offset_file(root, split): (index["splits"][split]["documents"] + 1) * OFFSETS.itemsize
            for split in SPLITS
        }
    except (KeyError, TypeError):
        raise ValueError(f"{root / INDEX} is damaged: prepare the data again") from None
    for path, wanted in sizes.items():
        found = path.stat().st_size if path.is_file() else None
        if found != wanted:
            state = (
                "is missing" if found is None else f"has {found:,} bytes, its index says {wanted:,}"
            )
            raise ValueError(f"{path} {state}: copy it again, or prepare the data again")
    return index


def check_hashes(root: Path, index: dict[str, Any]) -> None:
    """Read every file through. Raises ValueError that names the first one whose sha256 is not the index's."""
    for split, facts in index["splits"].items():
        for path, wanted in (
            (token_file(root, split), facts["tokens_sha256"]),
            (offset_file(root, split), facts["offsets_sha256"]),
        ):
            if file_hash(path) != wanted:
                raise ValueError(
                    f"{path} is damaged: its sha256 is not the index's; remove {root} and prepare again"
                )


def file_hash(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_prepared(root: Path, split: str, tokenizer: TokenizerLike) -> Corpus:
    """The documents of a split, mapped, not read. Raises ValueError if another tokenizer made them, or there are none.

    The sizes of the files are compared with the index; their hashes are not computed here.
    """
    index = read_index(root)
    made = index["tokenizer"]
    if made["sha256"] != tokenizer.sha256:
        raise ValueError(
            f"{root} was prepared with another tokenizer ({made['sha256'][:12]}) than the model's "
            f"({tokenizer.sha256[:12]}): prepare the text again with the model's"
        )
    if made["bos_id"] not in (None, tokenizer.bos_id) or made["eos_id"] not in (
        None,
        tokenizer.eos_id,
    ):
        raise ValueError(
            f"{root} was prepared with BOS {made['bos_id']} and EOS {made['eos_id']}, the model's are "
            f"{tokenizer.bos_id} and {tokenizer.eos_id}: prepare the text again"
        )
    facts = index["splits"][split]
    if not facts["documents"]:
        raise ValueError(f"{root} holds no {split} documents; prepare with another --held-out")
    ids = np.memmap(token_file(root, split), index["dtype"], "r")
    offsets = np.memmap(offset_file(root, split), OFFSETS, "r")
    said = {
        "kind": "prepared",
        "split": split,
        **facts,
        "bos_id": made["bos_id"],
        "eos_id": made["eos_id"],
    }
    domains = [source[split]["documents"] for source in index["sources"]]
    return Corpus(
        ids, offsets, bos_id=made["bos_id"], eos_id=made["eos_id"], domains=domains, facts=said
    )

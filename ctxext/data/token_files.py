"""The format that `ctxext prepare` writes: token files, document offsets and an index.

Of chat and instruction records there are also files that mark the tokens of answers.

A directory may come from a stranger: what its index says is compared with its files before one is
mapped into memory.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.data.corpus import Corpus
from ctxext.data.held_out import HeldOut
from ctxext.files import read_json
from ctxext.tokenization.protocol import TokenizerLike

FORMAT = "ctxext tokens"
VERSION = 1
"""Of texts, all of whose tokens are trained."""
ANSWERS_VERSION = 2
"""Of chat and instruction records, with files of answers."""
INDEX = "index.json"
WORK = "work"
"""In a directory that is not finished: what has been done so far."""
SPLITS = ("train", "heldout")
OFFSETS = np.dtype("<i8")
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
"""The types of token ids, by the index's name. No other is read: one of them is object pointers."""
OFFSETS_AT_ONCE = 1 << 20
"""Offsets that are checked at a time, 8 MiB."""


def token_file(root: Path, split: str) -> Path:
    """The ids of all documents of a split one after another, of the index's dtype."""
    return root / f"{split}.tokens"


def offset_file(root: Path, split: str) -> Path:
    """int64[documents + 1]: where each document begins in the token file, and the last one ends."""
    return root / f"{split}.offsets"


def answer_file(root: Path, split: str) -> Path:
    """A byte for each token of the token file: 1 for a token of an answer, which is trained."""
    return root / f"{split}.answers"


def is_prepared(root: Path) -> bool:
    """Whether this is a directory that `ctxext prepare` wrote."""
    return (root / INDEX).is_file()


def read_index(root: Path) -> dict[str, Any]:
    """The index of a prepared directory.

    Raises ValueError if it is of another format, unfinished or malformed, or its files are missing
    or of another size.
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
    if index.get("version") not in (VERSION, ANSWERS_VERSION):
        raise ValueError(
            f"{root} is of version {index.get('version')!s:.20} of the format, and this ctxext "
            f"reads versions {VERSION} and {ANSWERS_VERSION}: prepare it again"
        )
    if index.get("complete") is not True:
        raise ValueError(f"{root} is not complete: prepare it again")
    try:
        _check_index(index)
    except (KeyError, TypeError, AttributeError, _Corrupt) as error:
        raise ValueError(
            f"{root / INDEX} is corrupt ({_reason(error):.80}): prepare the data again"
        ) from None
    sizes = _file_sizes(root, index)
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


class _Corrupt(Exception):
    """A value of the index that no prepared data has, in words."""


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) if isinstance(error, _Corrupt) else "a value is of another type"


def _check_index(index: dict[str, Any]) -> None:
    """Raise _Corrupt, KeyError, TypeError or AttributeError for what is wrong or missing."""
    if index["dtype"] not in DTYPES:
        raise _Corrupt(f"dtype is {index['dtype']!r}, not {' or '.join(DTYPES)}")
    made_by = index["tokenizer"]
    _check_type(made_by, "sha256", str)
    _check_count(made_by, "vocab_size")
    for name in ("bos_id", "eos_id"):
        if made_by[name] is not None:
            _check_count(made_by, name)
    for split in SPLITS:
        facts = index["splits"][split]
        for name in ("documents", "tokens"):
            _check_count(facts, name)
        for name in _hashes(index):
            _check_type(facts, name, str)
        if (facts["documents"] == 0) != (facts["tokens"] == 0):
            raise _Corrupt(f"{split} has {facts['documents']} documents, {facts['tokens']} tokens")
        for name in ("documents", "tokens"):
            counts = [source[split] for source in index["sources"]]
            for count in counts:
                _check_count(count, name)
            if sum(count[name] for count in counts) != facts[name]:
                raise _Corrupt(f"the sources do not have {facts[name]} {name} of {split}")
    for source in index["sources"]:
        _check_type(source, "name", str)
        _check_type(source, "files", dict)


def _hashes(index: dict[str, Any]) -> dict[str, Callable[[Path, str], Path]]:
    """The hashes that the index has of the files of a split, and where these are."""
    hashes = {"tokens_sha256": token_file, "offsets_sha256": offset_file}
    if index["version"] == ANSWERS_VERSION:
        hashes["answers_sha256"] = answer_file
    return hashes


def _check_type(facts: dict[str, Any], name: str, kind: type) -> None:
    if type(facts[name]) is not kind:
        raise _Corrupt(f"{name} is {facts[name]!r:.40}")


def _check_count(facts: dict[str, Any], name: str) -> None:
    _check_type(facts, name, int)
    if facts[name] < 0:
        raise _Corrupt(f"{name} is {facts[name]}")


def _file_sizes(root: Path, index: dict[str, Any]) -> dict[Path, int]:
    """Bytes of the files of both splits, by the index."""
    itemsize = DTYPES[index["dtype"]].itemsize
    sizes = {}
    for split in SPLITS:
        counts = index["splits"][split]
        sizes[token_file(root, split)] = counts["tokens"] * itemsize
        sizes[offset_file(root, split)] = (counts["documents"] + 1) * OFFSETS.itemsize
        if index["version"] == ANSWERS_VERSION:
            sizes[answer_file(root, split)] = counts["tokens"]
    return sizes


def check_hashes(root: Path, index: dict[str, Any]) -> None:
    """Read every file. Raises ValueError that names the first whose sha256 is not the index's."""
    for split in SPLITS:
        facts = index["splits"][split]
        for name, file_of in _hashes(index).items():
            path = file_of(root, split)
            if file_hash(path) != facts[name]:
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

    The index is compared with the files, the offsets with the tokens; hashes are not. An id that
    the tokenizer does not have is refused when it is read. Raises ValueError if another tokenizer
    made them, or if the split has no documents.
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
    check_offsets(offset_file(root, split), facts["documents"], facts["tokens"])
    is_answer = None
    if index["version"] == ANSWERS_VERSION:
        is_answer = np.memmap(answer_file(root, split), np.uint8, "r")
        provenance["kind"] = "prepared answers"
        provenance["chat_template_sha256"] = index.get("chat_template_sha256")
    num_held_out = index["splits"]["heldout"]["documents"]
    total = sum(index["splits"][name]["documents"] for name in SPLITS)
    return Corpus(
        np.memmap(token_file(root, split), DTYPES[index["dtype"]], "r"),
        np.memmap(offset_file(root, split), OFFSETS, "r"),
        bos_id=bos_id,
        eos_id=eos_id,
        facts=provenance,
        domains=[source[split]["documents"] for source in index["sources"]],
        num_ids=tokenizer.num_ids,
        held_out=HeldOut(
            str(root), num_held_out, total, "`ctxext prepare --held-out SHARE` holds a share out"
        ),
        is_answer=is_answer,
    )


def check_offsets(path: Path, num_documents: int, num_tokens: int) -> None:
    """Raise ValueError unless a file of offsets divides `num_tokens` tokens into documents."""
    corrupt = ValueError(
        f"{path} is corrupt: it does not divide {num_tokens:,} tokens into {num_documents:,} "
        "documents; copy it again, or prepare the data again"
    )
    last = np.zeros(0, OFFSETS)
    for start in range(0, num_documents + 1, OFFSETS_AT_ONCE):
        count = min(OFFSETS_AT_ONCE, num_documents + 1 - start)
        block = np.fromfile(path, OFFSETS, count, offset=start * OFFSETS.itemsize)
        if len(block) < count or (start == 0 and block[0] != 0):
            raise corrupt
        joined = np.concatenate([last, block])
        # Compared with the bounds first: a difference of two numbers far apart would overflow.
        if joined.min() < 0 or joined.max() > num_tokens or (np.diff(joined) < 0).any():
            raise corrupt
        last = block[-1:]
    if last[0] != num_tokens:
        raise corrupt

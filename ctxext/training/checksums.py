"""Checksums: of the files of a checkpoint, and of a parameter tree."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.files import read_json, write_json
from ctxext.model.decoder import Params
from ctxext.parallel import distributed

NAME = "sha256.json"


def write_checksums(directory: Path, facts: dict[str, Any]) -> None:
    """Sync every file of a complete directory to disk, then write the SHA-256 of each.

    They go to sha256.json with `facts`, which are plain JSON. Raises OSError.
    """
    files = [path for path in directory.rglob("*") if path.is_file()]
    names = sorted(path.relative_to(directory).as_posix() for path in files)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: _file_sha256(directory / name, sync=True), names)
        by_name = dict(zip(names, digests, strict=True))
    content = {"facts": facts, "files": by_name, "sha256": _json_sha256(facts, by_name)}
    write_json(directory / NAME, content)


def has_checksums(directory: Path) -> bool:
    """True if the directory has checksums, right or wrong."""
    return (directory / NAME).exists()


def recorded_facts(directory: Path) -> dict[str, Any]:
    """The facts written with the checksums; empty if sha256.json is missing or corrupt."""
    content = _read(directory)
    return {} if content is None else content["facts"]


def find_corruption(directory: Path, *, part: str = "") -> str | None:
    """Say which file of a directory differs from its checksum; None if they all match.

    part: check only the files whose names start with it, and those at the top. Every process reads
    its share of the files, and all return the same.
    """
    content = distributed.broadcast_from_primary(lambda: _read(directory))
    if content is None:
        return f"{NAME} is not what was written"
    digests = content["files"]
    names = [name for name in digests if name.startswith(part) or "/" not in name]
    own = range(distributed.process_index(), len(names), distributed.process_count())
    last_corrupt = int(
        distributed.all_reduce_max(1 + _last_corrupt(directory, digests, names, own))
    )
    return f"{names[last_corrupt - 1]} is not what was written" if last_corrupt else None


def _read(directory: Path) -> dict[str, Any] | None:
    """The content of sha256.json, None if it is missing or itself corrupt."""
    try:
        content = read_json(directory / NAME)
        is_intact = content["sha256"] == _json_sha256(content["facts"], content["files"])
    except (ValueError, KeyError, TypeError):
        return None
    return content if is_intact else None


def _last_corrupt(
    directory: Path, digests: dict[str, str], names: Sequence[str], indices: Sequence[int]
) -> int:
    """The largest of `indices` whose file differs from its digest, -1 if there is none."""

    def index_if_corrupt(index: int) -> int:
        try:
            is_intact = _file_sha256(directory / names[index]) == digests[names[index]]
        except OSError:  # the file is missing, or the disk cannot read it
            is_intact = False
        return -1 if is_intact else index

    with ThreadPoolExecutor() as pool:
        return max(pool.map(index_if_corrupt, indices), default=-1)


def _file_sha256(path: Path, *, sync: bool = False) -> str:
    if not path.is_file():  # a device or a pipe would never end
        raise OSError(f"{path} is not a file")
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha256(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def parameter_checksum(tree: Params) -> str:
    """Sixteen hex digits over every bit of every leaf, with its index, name, dtype and shape.

    Equal on any mesh, because whole numbers add up in any order.
    """
    names = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    sums = [int(value) for value in _leaf_sums(tree)]
    return hashlib.sha256(repr((names, sums)).encode()).hexdigest()[:16]


@jax.jit
def _leaf_sums(tree: Params) -> list[jax.Array]:
    return [_leaf_sum(leaf) for leaf in jax.tree.leaves(tree)]


def _leaf_sum(leaf: jax.Array) -> jax.Array:
    """The sum over all entries of a hash of their bits and their index, modulo 2^32."""
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for dim, size in enumerate(leaf.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim)
    as_integer = {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, as_integer).astype(jnp.uint32)
    bits = bits + index * np.uint32(0x9E3779B9)
    # The finaliser of MurmurHash3 is a bijection, so that no single change goes unnoticed.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits.sum(dtype=jnp.uint32)

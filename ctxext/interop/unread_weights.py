"""Files of weights that are in a directory and are not read: named, not passed over silently."""

import logging
import re
from collections.abc import Collection
from pathlib import Path

from ctxext.interop.weight_files import is_weights
from ctxext.terminal import printable_line

MOST_NAMES = 4
"""More are counted."""
META_SHARD = re.compile(r"consolidated\.\d\d\.pth")
AS_A_MODEL = (
    "with config.json and the tokenizer, as model.safetensors or pytorch_model.bin (shards with "
    "their index)"
)
AS_AN_ADAPTER = "with adapter_config.json, as adapter_model.safetensors"


def warn_of_unread(
    directory: Path, taken: str, others: Collection[str], *, as_in: str, usable: str = AS_A_MODEL
) -> None:
    """Warn of weights in a directory that were not read, and say how to use them.

    Such are variants (model.fp16.safetensors), averages (ema.safetensors), and the same model in
    the format of its authors (consolidated.safetensors, consolidated.00.pth). Links to files that
    were read are none. `taken`: the file or index that was read; `others` were read or compared
    too. `as_in`: who takes the same file. `usable`: what makes a file readable in its own
    directory.
    """
    places = {(directory / name).resolve() for name in (taken, *others)}
    unread = [
        path
        for path in sorted(directory.iterdir())
        if is_weights(path) and path.is_file() and path.resolve() not in places
    ]
    if not unread:
        return
    names = [path.name + _format(path) for path in unread]
    if len(names) > MOST_NAMES:
        names[MOST_NAMES:] = [f"{len(names) - MOST_NAMES} more"]
    ways = []
    if any(path.suffix != ".gguf" and not META_SHARD.fullmatch(path.name) for path in unread):
        ways.append(f"move it to a directory of its own {usable}")
    if any(META_SHARD.fullmatch(path.name) for path in unread):
        ways.append("move Meta's shards, params.json and tokenizer.model to their own directory")
    if any(path.suffix == ".gguf" for path in unread):
        ways.append("give the GGUF file itself")
    logging.getLogger("ctxext").warning(
        "%s: %s is read, as in %s; not read: %s. To use another one, %s",
        directory,
        taken,
        as_in,
        printable_line(", ".join(names)),
        "; or ".join(ways),
    )


def _format(path: Path) -> str:
    """The format of a file that is not Hugging Face's, in brackets."""
    if META_SHARD.fullmatch(path.name):
        return " (Meta's format)"
    return " (GGUF)" if path.suffix == ".gguf" else ""

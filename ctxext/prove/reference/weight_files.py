"""The weights of a Hugging Face directory by name, whatever files they are in."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

CANDIDATES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them."""
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that training tools add."""
OpenArchive = Callable[[Path], Mapping[str, Any]]
"""Opens a file of torch.save: name -> an object whose `read()` gives the numbers."""
Read = Callable[[], np.ndarray]


def stored_tensors(
    directory: Path, open_archive: OpenArchive, candidates: Sequence[str] = CANDIDATES
) -> dict[str, Read]:
    """Name, without what training tools add -> what reads the tensor."""
    chosen = next(name for name in candidates if (directory / name).is_file())
    files = {chosen}
    if chosen.endswith(".json"):
        files = set(json.loads((directory / chosen).read_text())["weight_map"].values())
    tensors = {}
    for file in sorted(files):
        for name, read in _open(directory / file, open_archive).items():
            tensors[".".join(part for part in name.split(".") if part not in WRAPPERS)] = read
    return tensors


def _open(path: Path, open_archive: OpenArchive) -> dict[str, Read]:
    if path.suffix != ".safetensors":
        return {name: entry.read for name, entry in open_archive(path).items()}
    with safe_open(path, "numpy") as file:
        return {name: _reader(path, name) for name in file.keys()}  # noqa: SIM118


def _reader(path: Path, name: str) -> Read:
    def read() -> np.ndarray:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    return read

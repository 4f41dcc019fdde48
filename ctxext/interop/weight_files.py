"""The files of a directory that hold its weights: one file, or the shards that an index lists."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxext.files import read_json, within
from ctxext.interop import pth, safetensors_files
from ctxext.interop.lazy_tensor import LazyTensor

INDEX_SUFFIX = ".index.json"
MODEL_FILES = (
    safetensors_files.SINGLE_FILE,
    safetensors_files.INDEX_FILE,
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
"""The files that stand for the weights of a model, in the order in which transformers looks."""
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""The weight files of an adapter, in the order in which PEFT looks."""
TRAINABLE_PARAMS = "trainable_params.bin"
"""LongLoRA's file of the embedding and the norms that it trains next to an adapter."""
STATE = re.compile(
    r"(training_args|training_state|optimizer|scheduler|scaler|sampler|rng_state)[\w.-]*"
    r"|[\w.-]*optim_states[\w.-]*"
)
"""Files that training tools save next to weights."""
READERS = {
    ".safetensors": safetensors_files.open_file,
    ".bin": pth.open_archive,
    ".pth": pth.open_archive,
}
"""The reader for each suffix."""


def find_sets(directory: str | Path, candidates: Sequence[str]) -> list[str]:
    """Those of the `candidates` that a directory has, each a complete set of weights.

    An index of which no shard is left is none. Raises ValueError, naming what is there instead, if
    there is no set.
    """
    directory = Path(directory)
    found = [name for name in candidates if (directory / name).is_file()]
    with_weights = [name for name in found if not _is_leftover(directory, name)]
    if not found:
        raise ValueError(_nothing_to_read(directory, candidates))
    return with_weights or found[:1]  # the shards of the only index are named when it is opened


def _is_leftover(directory: Path, name: str) -> bool:
    """True for an index without any of its shards."""
    if not name.endswith(INDEX_SUFFIX):
        return False
    return not any((directory / shard).is_file() for shard in _shards(directory / name))


def open_set(directory: str | Path, name: str) -> dict[str, LazyTensor]:
    """The tensors of a file, or of all shards of an index, by name; their numbers stay on disk.

    Raises ValueError naming the file for one that is missing, cut off, corrupt or outside the
    directory, and for an index that does not belong to its shards.
    """
    directory = Path(directory)
    path = within(directory, name)
    if name.endswith(INDEX_SUFFIX):
        return _open_shards(directory, path)
    return READERS[path.suffix](path)


def _open_shards(directory: Path, index: Path) -> dict[str, LazyTensor]:
    shards = _shards(index)
    unlisted = sorted(
        path.name
        for path in directory.glob(f"*{_file_suffix(index)}")
        if path.name not in shards and path.stem.partition("-")[2]
    )
    tensors: dict[str, LazyTensor] = {}
    files: dict[str, str] = {}
    for file, names in shards.items():
        path = within(directory, file)
        if not path.is_file():
            if unlisted:
                raise ValueError(
                    f"{index} is stale: it lists {file}, which is missing, while {unlisted[0]} is "
                    "there, which it does not list; copy the index that belongs to the shards"
                )
            raise ValueError(f"{path} is missing; copy the shard again")
        shard = READERS[path.suffix](path)
        for name in names:
            if name not in shard:
                raise ValueError(
                    f"{index} is stale: {file} does not hold {name}, which the index lists there; "
                    "copy the index and its shards again, all from the same place"
                )
        for name in shard:
            if name in tensors:
                raise ValueError(
                    f"{name} is in two shards of {index}, {files[name]} and {file}; copy the index "
                    "and its shards again, all from the same place"
                )
            files[name] = file
        tensors |= shard
    return tensors


def _file_suffix(index: Path) -> str:
    """The end of the names of an index's shards."""
    return Path(index.name.removesuffix(INDEX_SUFFIX)).suffix


def _shards(index: Path) -> dict[str, list[str]]:
    """File name -> names of the tensors that the index lists in it."""
    data = read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map; copy the file again")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not _is_shard_name(file, _file_suffix(index)):
            raise ValueError(
                f"{index} names the shard {repr(file)[:80]}; shards must be in the same directory"
            )
        shards.setdefault(file, []).append(name)
    return shards


def _is_shard_name(file: Any, suffix: str) -> bool:
    if not isinstance(file, str) or "/" in file or "\\" in file:
        return False
    return file.endswith(suffix)


def set_files(directory: str | Path, name: str) -> list[str]:
    """The names of the files of a set: the file itself, or the shards that an index lists."""
    return list(_shards(Path(directory) / name)) if name.endswith(INDEX_SUFFIX) else [name]


def is_weights(path: Path) -> bool:
    """True for a file that may hold weights by its name; False for the state of a training."""
    return path.suffix in (*READERS, ".pt", ".ckpt", ".gguf") and not STATE.fullmatch(path.name)


def _nothing_to_read(directory: Path, candidates: Sequence[str]) -> str:
    """The error for a directory without weights, which says what is there instead."""
    single, other, *_ = candidates
    missing = f"{directory} has neither {single} nor {other}"
    if not directory.is_dir():
        return missing
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and not path.exists():
            return f"{missing}: {path.name} is a link to {path.readlink()}, which does not exist"
        advice = _advice(path, single)
        if advice:
            return f"{missing}, but {path.name}; {advice}"
    return f"{missing}, and no other weights; copy the checkpoint again"


def _advice(path: Path, single: str) -> str:
    """Advice on a file of weights that cannot be read as it is; empty for other files."""
    if path.suffix == ".gguf":
        return f"to open the GGUF file, give the file itself, {path}"
    if path.suffix in (".h5", ".msgpack", ".onnx"):
        return "save the model with transformers as safetensors"
    if path.name.startswith("consolidated.") and path.suffix == ".pth":
        return "these are Meta's weights; to have them read, remove config.json"
    if path.name == TRAINABLE_PARAMS:
        return "that is only what LongLoRA trains next to an adapter; copy the adapter too"
    if not is_weights(path):
        return ""
    name = single if path.suffix == Path(single).suffix else _torch_name(single)
    if "-of-" in path.name:
        return f"if these are shards of the weights, copy {name}{INDEX_SUFFIX} too"
    return f"if these are the weights, rename them to {name}"


def _torch_name(single: str) -> str:
    """The name of torch's file for the weights that `single` holds as safetensors."""
    return "pytorch_model.bin" if single == "model.safetensors" else f"{Path(single).stem}.bin"

"""The formats that a whole model is written in: one entry each.

What `ctxext.export` and `Export.to` of an experiment accept, the choices of the command line, the
columns of the support matrix, what `ctxext.load` opens and what `prove` recognises are derived from
this table.
The independent reader that a format is proven with is in `ctxext/prove/reference/`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ctxext.interop import gguf, gguf_reader, hf, meta
from ctxext.interop.gguf_metadata import rope_keys
from ctxext.interop.gguf_names import architecture_of
from ctxext.interop.hf_weights import StoredModel, WriteOptions
from ctxext.interop.meta_rope import rope_json
from ctxext.interop.ropespec import rope_spec
from ctxext.model.config import LlamaConfig
from ctxext.nearest import hint
from ctxext.rope import Plain, RopeScaling, Unscaled


class Check(Protocol):
    """Raises ValueError, with the reason, for a model that a format cannot represent."""

    def __call__(
        self, config: LlamaConfig, scaling: RopeScaling, *, window: int, dtype: str
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    `encode_rope`: a short name for the way in which frequencies are stored, for the support matrix;
    raises ValueError for frequencies that the format cannot represent.
    `rope_legend` explains those names. `recognize`: whether a path holds this format. `read`: opens
    a checkpoint without reading its numbers, given the window of pre-training where the format does
    not declare it. `suffix`: of the one file that is written, empty where it is a directory.
    """

    check: Check
    write: Callable[[Path, StoredModel, WriteOptions], None]
    encode_rope: Callable[[RopeScaling, LlamaConfig, int], str]
    rope_legend: str
    recognize: Callable[[Path], bool]
    read: Callable[[Path, int | None], StoredModel]
    suffix: str = ""
    takes_shards: bool = False


def encode_rope_hf(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """The rope_type that transformers 4 and 5 read; "generic" for longrope with two equal lists."""
    spec = rope_spec(scaling, config, seq_len)
    return "generic" if spec.generic else spec.rope_type


def _read_hf(directory: Path, original: int | None) -> StoredModel:
    if original is not None:
        raise ValueError(
            f"--original is for Meta's format and GGUF; config.json in {directory} declares the "
            "window of pre-training"
        )
    return hf.read(directory)


def _encode_rope_meta(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    rope_json(config, scaling, seq_len)
    return "plain" if isinstance(scaling, Unscaled | Plain) else "rope.json"


def _encode_rope_gguf(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    keys, divisors = rope_keys(config, scaling, seq_len)
    if divisors is not None:
        return "divisors"
    return keys.get(f"{architecture_of(config).name}.rope.scaling.type", "default")


FORMATS: dict[str, Format] = {
    "hf": Format(
        check=hf.check,
        write=hf.write,
        encode_rope=encode_rope_hf,
        rope_legend="the rope_type in config.json, for transformers 4 and 5; generic: longrope "
        "with equal lists, which represents any fixed frequencies",
        recognize=lambda path: (path / "config.json").is_file(),
        read=_read_hf,
    ),
    "meta": Format(
        check=meta.check,
        write=meta.write,
        encode_rope=_encode_rope_meta,
        rope_legend="rope.json: its own file of frequencies, which Meta's unpatched code ignores",
        recognize=meta.is_meta,
        read=meta.read,
        takes_shards=True,
    ),
    "gguf": Format(
        check=gguf.check,
        write=gguf.write,
        encode_rope=_encode_rope_gguf,
        rope_legend="the scaling type of llama.cpp; divisors: one per frequency; no flags needed",
        recognize=gguf.is_gguf,
        read=gguf_reader.read,
        suffix=".gguf",
    ),
}


def find_format(name: str) -> Format:
    """The format called `name`. Raises ValueError, listing the known ones, if there is none."""
    if name not in FORMATS:
        raise ValueError(f"there is no format {name!r}; {hint(name, FORMATS)}")
    return FORMATS[name]


def recognize(path: Path) -> str:
    """The format of `path`, by name; "hf" if none, because its reader says what is missing.

    Raises ValueError for a file that is not a checkpoint by itself, and for a directory of GGUF
    files, which are.
    """
    if path.is_file() and not gguf.is_gguf(path):
        raise ValueError(
            f"{path} is a file; a checkpoint is a directory: give the one that it is in, "
            f"{path.parent}"
        )
    for name, entry in FORMATS.items():
        if entry.recognize(path):
            return name
    gguf.refuse_directory(path)
    return "hf"

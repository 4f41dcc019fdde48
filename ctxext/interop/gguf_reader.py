"""A GGUF file as a base: its shape, frequencies, weights and tokenizer, without reading numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.interop import hf
from ctxext.interop.families import FAMILIES
from ctxext.interop.families.base import Family
from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.interop.gguf_config import config_json, shape_keys
from ctxext.interop.gguf_container import GGUFContents, read_contents
from ctxext.interop.gguf_names import (
    EMBEDDING,
    OUTPUT,
    architecture_of,
    from_gguf,
    to_gguf,
)
from ctxext.interop.gguf_tensors import lazy_tensor
from ctxext.interop.gguf_tokenizer import GGUFVocabulary, open_tokenizer
from ctxext.interop.hf_weights import StoredModel, slots
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.meta_layout import join_shards, rotary_heads
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes

FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors of divisors of frequencies, without ".weight"."""
LONGEST_FACT = 500
"""Characters that are kept of a text in `general.*`."""
OF_THE_FILE = ("alignment", "architecture", "file_type", "quantization_version")
"""Keys of `general.*` that describe the file, not the model."""


def read(path: str | Path, original: int | None = None) -> StoredModel:
    """A GGUF file of a known architecture; numbers stay on disk until a tensor is read.

    `original`: the window of pre-training in tokens, for a scaling in a file that does not declare
    it. Raises ValueError naming the file for one that is corrupt, contradictory, of another
    architecture, or has a tokenizer that is not read.
    """
    path = Path(path)
    contents = read_contents(path)
    try:
        return _read(path, contents, original)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path, contents: GGUFContents, original: int | None) -> StoredModel:
    keys = contents.keys
    family, architecture = _family(keys)
    if keys.get("split.count", 1) not in (0, 1):
        raise ValueError(
            f"it is one of {keys['split.count']} parts; join them first: llama-gguf-split --merge"
        )
    own = shape_keys(keys, architecture)
    if own.get("block_count", 1) > len(contents.tensors):  # before anything is built for each layer
        raise ValueError(
            f"it declares {own['block_count']} layers, but has {len(contents.tensors)} tensors"
        )
    tensors = {name: lazy_tensor(path, entry) for name, entry in contents.tensors.items()}
    factors = {
        name: _factors(name, tensors.pop(f"{name}.weight"))
        for name in FACTORS
        if f"{name}.weight" in tensors
    }
    vocabulary = GGUFVocabulary(keys)
    data = {
        **config_json(own, architecture, factors, original),
        **_vocabulary_settings(own, tensors, vocabulary),
    }
    data = {"model_type": family.model_type, **architecture.to_config_json(data, own, tensors)}
    config, scaling, window = hf.read_settings(data)
    tokenizer = open_tokenizer(vocabulary)
    tokenizer.check_fits(config.vocab_size)
    stops = vocabulary.stop_ids
    generation_config = None
    if stops not in ((), (vocabulary.ids["eos"],)):
        generation_config = {"bos_token_id": data["bos_token_id"], "eos_token_id": list(stops)}
    return StoredModel(
        config,
        scaling,
        window,
        _named_tensors(config, tensors),
        tokenizer,
        generation_config,
        _about(keys),
    )


def _family(keys: Mapping[str, Any]) -> tuple[Family, GGUFArchitecture]:
    """What the file is read as: the first family that its architecture runs."""
    name = keys.get("general.architecture")
    known: dict[str, tuple[Family, GGUFArchitecture]] = {}
    for family in FAMILIES.values():
        if family.gguf is not None:
            known.setdefault(family.gguf.name, (family, family.gguf))
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"general.architecture {name!r:.60} is not supported, only "
            f"{', '.join(map(repr, known))}; use the Hugging Face version of the model"
        )
    return known[name]


def _factors(name: str, tensor: LazyTensor) -> np.ndarray:
    values = np.asarray(tensor.read(), np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(f"{name}.weight must be a list of positive numbers")
    return values


def _vocabulary_settings(
    own: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    vocabulary: GGUFVocabulary,
) -> dict[str, Any]:
    """The keys of config.json for the embedding and the special tokens."""
    if EMBEDDING not in tensors:
        raise ValueError(f"it lacks {EMBEDDING}")
    rows = tensors[EMBEDDING].shape[0]
    if own.get("vocab_size", rows) != rows:
        raise ValueError(f"it declares {own['vocab_size']} tokens, but {EMBEDDING} has {rows} rows")
    return {
        "vocab_size": rows,
        "tie_word_embeddings": OUTPUT not in tensors,
        "bos_token_id": vocabulary.ids["bos"],
        "eos_token_id": vocabulary.ids["eos"],
        "pad_token_id": vocabulary.ids["padding"],
    }


def _named_tensors(config: LlamaConfig, stored: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors by HF's names and in its order of rows. Raises ValueError for other ones."""
    named = slots(param_shapes(config))
    shapes = {name: LazyTensor(slot.shape, "", np.empty) for name, slot in named.items()}
    expected = {name: tensor.shape for name, tensor in to_gguf(shapes, config).items()}
    for name, shape in expected.items():
        if name not in stored:
            raise ValueError(f"it lacks {name}")
        if stored[name].shape != shape:
            raise ValueError(
                f"{name} has shape {list(stored[name].shape)}, but the keys require {list(shape)}"
            )
    others = stored.keys() - expected.keys()
    if others:
        raise ValueError(
            f"it has {len(others)} tensors that model_type {config.family} does not have, "
            f"first {min(others):.80}"
        )
    neighbours = architecture_of(config).neighbours
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in from_gguf(stored, list(named), config).items():
        heads = rotary_heads(name, config) if neighbours else None
        tensors[name] = join_shards(name, [tensor], 0, heads)
    return tensors


def _about(keys: Mapping[str, Any]) -> dict[str, str]:
    """The texts of `general.*`, such as name, author and license."""
    facts: dict[str, str] = {}
    for key, value in keys.items():
        name = key.removeprefix("general.")
        if name == key or name in OF_THE_FILE:
            continue
        values = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) for item in values):
            facts[name.replace("_", " ")] = ", ".join(values)[:LONGEST_FACT]
    return facts

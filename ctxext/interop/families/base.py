"""The description of a family of models that reading and writing its formats needs."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling

DERIVED_TENSORS = re.compile(
    r"(.*\.)?(\w*rotary\w*|rope)\.\w+"
    r"|(.*\.)?(original_inv_freq|inv_freq|freqs_cis|cos_sin_cache|(cos|sin)_cached?)"
)
"""Buffers that follow from the configuration, which older files hold; they are not read."""


@dataclasses.dataclass(frozen=True)
class FusedProjection:
    """Queries, keys and values as one matrix in a file."""

    name: str
    """The module within a layer."""
    grouped: bool
    """Its rows go by key-value head: the queries of its group, its key, its value. Otherwise all
    queries come first, then all keys, then all values."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models: its configuration keys and tensor names in published files.

    Everywhere else tensors have Llama's names, within a layer those of the parameter tree; a family
    names what its files call otherwise.
    """

    model_type: str
    """`model_type` in config.json."""
    architecture: str
    """The class name under `architectures` in config.json."""
    read_config: Callable[[dict[str, Any]], tuple[LlamaConfig, RopeScaling]]
    """Shape and scaling of what `translate` made of a config.json. Raises ValueError naming the key
    that it cannot represent."""
    write_config: Callable[[LlamaConfig], dict[str, Any]]
    """The keys of config.json, apart from those of the rotary embedding."""
    rope_keys: Callable[[LlamaConfig], dict[str, Any]] = lambda config: {}
    """Keys of `rope_parameters` in config.json that are not of the rotary embedding."""
    translate: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """A config.json with the keys of Llama's, next to its own, where the family has other names."""
    window_key: str | None = None
    """The key of the window, where nothing else is written of a rotary embedding: with ALiBi."""

    embedding: str = "model.embed_tokens.weight"
    layers: str = "model.layers"
    """The prefix of all layers, which the number of the layer follows."""
    norm: str = "model.norm.weight"
    lm_head: str = "lm_head.weight"
    modules: Callable[[LlamaConfig], Mapping[str, str]] = lambda config: {}
    """Llama's name of a module within a layer -> the family's, where it is another."""
    fused: FusedProjection | None = None
    derived_tensors: re.Pattern[str] = DERIVED_TENSORS
    """Buffers that follow from the configuration; see `DERIVED_TENSORS`."""

    gguf: GGUFArchitecture | None = None
    """The architecture that runs it in llama.cpp; None: GGUF files are not supported. A file is
    read as the first family with its architecture."""
    meta: bool = False
    """Meta's format can hold it."""

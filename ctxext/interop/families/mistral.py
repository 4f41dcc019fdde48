"""Mistral, and Ministral with windows in some layers: a Llama with a sliding window."""

from typing import Any

from ctxext.interop.families import layer_types
from ctxext.interop.families.base import Family
from ctxext.interop.families.llama import (
    GGUF_LLAMA,
    read_llama_like,
    write_config,
)
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts
from ctxext.rope import RopeScaling

DEFAULT_WINDOW = 4096
"""`sliding_window` of files that leave it out; null means none (Mistral 7B from v0.2 on)."""
NO_KEYS = ("attention_bias", "mlp_bias")
"""Keys of Llama that transformers does not read for these families."""


def _parts(data: dict[str, Any], length: int) -> Parts:
    refuse_keys(data, NO_KEYS, "mistral")
    window = data.get("sliding_window", DEFAULT_WINDOW)
    default = (window is not None,) * data["num_hidden_layers"]
    window, windowed = layer_types.windows(data, window, default)
    return Parts(sliding_window=window, windowed=windowed)


def refuse_keys(data: dict[str, Any], keys: tuple[str, ...], family: str) -> None:
    """Raise ValueError for a key that the family does not have, unless it is switched off."""
    for key in keys:
        if data.get(key):
            raise ValueError(f"{key} is no key of model_type {family}; transformers ignores it")


def _read_mistral(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    # As transformers 5 does: a file that gives each layer its type is read as a Ministral.
    family = "ministral" if data.get("layer_types") is not None else "mistral"
    return read_llama_like(data, family, _parts)


def _read_ministral(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    return read_llama_like(data, "ministral", _parts)


def without_keys(config: LlamaConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    """The keys of Llama's config.json but for some."""
    return {key: value for key, value in write_config(config).items() if key not in keys}


def _write_mistral(config: LlamaConfig) -> dict[str, Any]:
    return without_keys(config, NO_KEYS) | {"sliding_window": config.parts.sliding_window}


def _write_ministral(config: LlamaConfig) -> dict[str, Any]:
    parts = config.parts
    types = layer_types.names(config.num_hidden_layers, parts.sliding_window, parts.windowed)
    return _write_mistral(config) | {"layer_types": types}


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read_config=_read_mistral,
    write_config=_write_mistral,
    gguf=GGUF_LLAMA,
)
MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    read_config=_read_ministral,
    write_config=_write_ministral,
    gguf=GGUF_LLAMA,
)

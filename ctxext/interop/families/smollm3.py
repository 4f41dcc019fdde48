"""SmolLM3: a Llama with layers that do not rotate (NoPE)."""

from typing import Any

from ctxext.interop.families import layer_types
from ctxext.interop.families.base import Family
from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.interop.families.llama import read_llama_like, token_ids, write_config
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts
from ctxext.rope import RopeScaling

DEFAULT_THETA = 2e6
DEFAULT_INTERVAL = 4
"""Of files that leave `no_rope_layers` out, every fourth layer does not rotate."""


def _rotary(data: dict[str, Any]) -> tuple[bool, ...]:
    """The layers that rotate: those with a 1 under `no_rope_layers`, whatever its name says."""
    num_layers = data["num_hidden_layers"]
    flags = data.get("no_rope_layers")
    if flags is None:
        interval = data.get("no_rope_layer_interval", DEFAULT_INTERVAL)
        if type(interval) is not int or interval < 1:
            raise ValueError(
                f"no_rope_layer_interval must be a positive number, got {str(interval)[:50]!r}"
            )
        return tuple((layer + 1) % interval != 0 for layer in range(num_layers))
    if not isinstance(flags, list) or len(flags) < num_layers or set(flags) - {0, 1}:
        raise ValueError(f"no_rope_layers must have a 0 or a 1 for each of {num_layers} layers")
    return tuple(bool(flag) for flag in flags[:num_layers])


def _parts(data: dict[str, Any], length: int) -> Parts:
    rotary = _rotary(data)
    window = data.get("sliding_window") if data.get("use_sliding_window") else None
    default = tuple(window is not None and not rotates for rotates in rotary)
    window, windowed = layer_types.windows(data, window, default)
    return Parts(rotary=() if all(rotary) else rotary, sliding_window=window, windowed=windowed)


def _read(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    ids = token_ids(data, bos_token_id=128000, eos_token_id=128001, pad_token_id=128004)
    data = {"tie_word_embeddings": True} | data | ids
    parameters = data.get("rope_parameters") or {}
    if data.get("rope_theta") is None and "rope_theta" not in parameters:
        data["rope_theta"] = DEFAULT_THETA
    return read_llama_like(data, "smollm3", _parts)


def _write(config: LlamaConfig) -> dict[str, Any]:
    parts = config.parts
    num_layers = config.num_hidden_layers
    return write_config(config) | {
        "no_rope_layers": [int(rotates) for rotates in parts.rotary or (True,) * num_layers],
        "use_sliding_window": parts.sliding_window is not None,
        "sliding_window": parts.sliding_window,
        "layer_types": layer_types.names(num_layers, parts.sliding_window, parts.windowed),
    }


def _every_fourth(config: LlamaConfig) -> tuple[bool, ...]:
    """The pattern of llama.cpp, for which GGUF has no key."""
    layers = range(config.num_hidden_layers)
    rotary = tuple((layer + 1) % DEFAULT_INTERVAL != 0 for layer in layers)
    return () if all(rotary) else rotary


SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    read_config=_read,
    write_config=_write,
    gguf=GGUFArchitecture(
        "smollm3",
        computes=lambda config: Parts(rotary=_every_fourth(config)),
        limits={"rotary": "rotates all layers but every fourth (no_rope_layer_interval 4)"},
    ),
)

"""Qwen2, Qwen2.5 and Qwen3: a Llama with biases on q, k and v, or with norms on q and k.

From layer `max_window_layers` on, layers may have a sliding window.
"""

import functools
from typing import Any

from ctxext.interop.families import layer_types
from ctxext.interop.families.base import Family
from ctxext.interop.families.gguf_architecture import LLAMA_NAMES, GGUFArchitecture
from ctxext.interop.families.llama import read_llama_like, token_ids
from ctxext.interop.families.mistral import NO_KEYS, refuse_keys, without_keys
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts
from ctxext.rope import RopeScaling

DEFAULT_WINDOW = 4096
DEFAULT_FULL_LAYERS = 28
"""`max_window_layers` of files that leave it out: the layers before it see everything."""
QWEN3_HEAD_DIM = 128
"""`head_dim` of files of Qwen3 that leave it out, whatever the width of the model."""


def _windows(data: dict[str, Any]) -> tuple[int | None, tuple[bool, ...]]:
    window = None
    if data.get("use_sliding_window"):
        window = data.get("sliding_window", DEFAULT_WINDOW)
    full_layers = data.get("max_window_layers", DEFAULT_FULL_LAYERS)
    if type(full_layers) is not int or full_layers < 0:
        raise ValueError(f"max_window_layers must be a whole number, got {str(full_layers)[:50]!r}")
    layers = range(data["num_hidden_layers"])
    default = tuple(window is not None and layer >= full_layers for layer in layers)
    return layer_types.windows(data, window, default)


def _qwen2_parts(data: dict[str, Any], length: int) -> Parts:
    refuse_keys(data, NO_KEYS, "qwen2")
    window, windowed = _windows(data)
    return Parts(qkv_bias=True, sliding_window=window, windowed=windowed)


def _qwen3_parts(data: dict[str, Any], length: int) -> Parts:
    refuse_keys(data, ("mlp_bias",), "qwen3")
    window, windowed = _windows(data)
    return Parts(qk_norm=True, sliding_window=window, windowed=windowed)


def _read_qwen2(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    data = data | token_ids(data, bos_token_id=None, eos_token_id=None)
    return read_llama_like(data, "qwen2", _qwen2_parts)


def _read_qwen3(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    data = data | token_ids(data, bos_token_id=None, eos_token_id=None)
    if data.get("head_dim") is None:
        data["head_dim"] = QWEN3_HEAD_DIM
    return read_llama_like(data, "qwen3", _qwen3_parts)


def _write(config: LlamaConfig, absent: tuple[str, ...]) -> dict[str, Any]:
    parts = config.parts
    types = layer_types.names(config.num_hidden_layers, parts.sliding_window, parts.windowed)
    is_sliding = [name == layer_types.SLIDING for name in types]
    return without_keys(config, absent) | {
        "use_sliding_window": parts.sliding_window is not None,
        "sliding_window": parts.sliding_window,
        "max_window_layers": [*is_sliding, True].index(True),
        "layer_types": types,
    }


QWEN3_NAMES = LLAMA_NAMES | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read_config=_read_qwen2,
    write_config=functools.partial(_write, absent=NO_KEYS),
    gguf=GGUFArchitecture(
        "qwen2",
        computes=lambda config: Parts(qkv_bias=True),
        neighbours=False,
        free_head_dim=False,
    ),
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read_config=_read_qwen3,
    write_config=functools.partial(_write, absent=("mlp_bias",)),
    gguf=GGUFArchitecture(
        "qwen3",
        computes=lambda config: Parts(qk_norm=True),
        layer_names=lambda config: QWEN3_NAMES,
        neighbours=False,
    ),
)

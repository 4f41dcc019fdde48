"""The architectures of llama.cpp, and how their GGUF files differ from a Llama's, as data."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ctxext.interop import validation
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts

Keys = Mapping[str, Any]

LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Llama's name of a module within a layer -> the name in a GGUF file."""
FUSED_NAMES = LLAMA_NAMES | dict.fromkeys(
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attn_qkv"
)
"""The same where queries, keys and values are one matrix: all queries, all keys, all values."""


@dataclasses.dataclass(frozen=True)
class GGUFArchitecture:
    """One architecture of llama.cpp, which several families may share."""

    name: str
    """`general.architecture` of a file, and the prefix of its keys."""
    computes: Callable[[LlamaConfig], Parts]
    """The parts of the decoder that llama.cpp runs for a configuration. A model with other ones is
    refused; sliding windows, which no architecture here has, may hide nothing."""
    limits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By the name of a field of `Parts`: the only behaviour that llama.cpp has for it, in words."""
    layer_names: Callable[[LlamaConfig], Mapping[str, str]] = lambda config: LLAMA_NAMES
    """Llama's name of a module within a layer -> the name in a file. Modules with one name are one
    matrix."""
    neighbours: bool = True
    """Rows 2j and 2j + 1 of a head are rotated together, not j and j + d / 2."""
    reads_divisors: bool = False
    """llama.cpp reads one divisor for each frequency, from `rope_freqs.weight`."""
    free_head_dim: bool = True
    """Heads may have another size than the width of the model over their number."""
    epsilon: str = "attention.layer_norm_rms_epsilon"
    activation: str = "silu"
    """The only function of the MLP, by config.json's name."""
    rules: Mapping[str, validation.Rule] = dataclasses.field(default_factory=dict)
    """Further keys, after the name of the architecture, that `to_config_json` reads."""
    keys: Callable[[LlamaConfig], dict[str, Any]] = lambda config: {}
    """These keys for a configuration."""
    to_config_json: Callable[[dict[str, Any], Keys, Collection[str]], dict[str, Any]] = (
        lambda data, own, tensors: data
    )
    """A config.json of the family, of one with Llama's keys, the file's keys and the names of its
    tensors."""

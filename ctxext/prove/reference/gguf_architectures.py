"""The architectures of llama.cpp whose GGUF files are read, as its code loads and runs them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ctxext.prove.reference.llama import Decoder

Keys = Mapping[str, Any]

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
SEPARATE = {
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
FUSED = SEPARATE | {f"self_attn.{part}_proj": "attn_qkv" for part in "qkv"}
"""Llama's name of a module within a layer -> the file's; `attn_qkv` has all rows of the queries,
then all of the keys, then all of the values."""
TWO_NORMS = "blk.0.attn_norm_2.weight"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How files of one architecture differ from Llama's.

    `neighbours`: rows 2j and 2j + 1 are rotated together. `divisors`: it has a tensor of divisors
    of frequencies. `decoder`: for its keys without prefix, the names of its tensors and the number
    of its layers.
    """

    names: Callable[[Collection[str]], dict[str, str]] = lambda tensors: SEPARATE
    neighbours: bool = False
    divisors: bool = False
    epsilon: str = "attention.layer_norm_rms_epsilon"
    activation: str = "silu"
    decoder: Callable[[Keys, Collection[str], int], Decoder] = lambda keys, tensors, layers: (
        Decoder()
    )


def _smollm3(keys: Keys, tensors: Collection[str], layers: int) -> Decoder:
    """The step of 4 is in llama.cpp's code; there is no key."""
    return Decoder(rotates=[(layer + 1) % 4 != 0 for layer in range(layers)])


def _falcon_names(tensors: Collection[str]) -> dict[str, str]:
    """With two norms, the second one is that of attention."""
    if TWO_NORMS not in tensors:
        return FUSED
    swapped = {"input_layernorm": "attn_norm_2", "post_attention_layernorm": "attn_norm"}
    return FUSED | swapped


def _falcon(keys: Keys, tensors: Collection[str], layers: int) -> Decoder:
    one_norm = TWO_NORMS not in tensors
    return Decoder(layer_norm=True, gated=False, parallel=True, one_norm=one_norm)


def _mpt(keys: Keys, tensors: Collection[str], layers: int) -> Decoder:
    exponent = keys.get("attention.max_alibi_bias")
    clip = keys.get("attention.clamp_kqv")
    for key, value in (("max_alibi_bias", exponent), ("clamp_kqv", clip or 1.0)):
        if not isinstance(value, float) or not 0 < value < 1e30:
            raise ValueError(f"mpt.attention.{key} {value!r} is not read here: it must be positive")
    return Decoder(layer_norm=True, gated=False, alibi=exponent, clip=clip or None)


QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
ARCHITECTURES = {
    "llama": Architecture(neighbours=True, divisors=True),
    "qwen2": Architecture(),
    "qwen3": Architecture(
        names=lambda tensors: SEPARATE | QK_NORMS,
        decoder=lambda keys, tensors, layers: Decoder(qk_norm=True),
    ),
    "smollm3": Architecture(neighbours=True, decoder=_smollm3),
    "falcon": Architecture(
        names=_falcon_names,
        epsilon="attention.layer_norm_epsilon",
        activation="gelu",
        decoder=_falcon,
    ),
    "mpt": Architecture(
        names=lambda tensors: FUSED,
        epsilon="attention.layer_norm_epsilon",
        activation="gelu",
        decoder=_mpt,
    ),
}
"""`general.architecture` -> how it is read.

GELU is the exact one that the models were trained with; llama.cpp takes its approximation by tanh,
from a table in float16."""

"""The metadata of a GGUF file: the shape of the model, and the frequencies in the forms that llama.cpp reads."""

from typing import Any

import numpy as np

from ctxext.interop.rope_types import ROPE_TYPES
from ctxext.interop.ropespec import RopeSpec, frequency_divisors, rope_spec
from ctxext.methods import label
from ctxext.methods.yarn import Yarn
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling, rope_at

DTYPES = ("float32", "float16", "bfloat16", "q8_0")
Q8_0_BLOCK = 32
"""Consecutive numbers that share a scale in q8_0."""


def check(
    config: LlamaConfig, scaling: RopeScaling, *, dtype: str, seq_len: int | None = None
) -> None:
    """Raise ValueError, with the reason, for what a GGUF file of architecture llama cannot represent."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    rope_keys(config, scaling, seq_len or config.max_position_embeddings)
    widths = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
    )
    refusals = {
        "biases are not written to GGUF": config.attention_bias or config.mlp_bias,
        f"llama.cpp computes silu, not {config.hidden_act}": config.hidden_act != "silu",
        "GGUF has one id for the end of a text, and this model has several": isinstance(
            config.eos_token_id, tuple
        ),
        f"q8_0 needs widths that are multiples of {Q8_0_BLOCK}": dtype == "q8_0"
        and any(width % Q8_0_BLOCK for width in widths),
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(f"{reason}; export with --to hf or another dtype")


def hyperparameters(config: LlamaConfig, name: str, scaling: RopeScaling) -> dict[str, Any]:
    """general.* and llama.* without the rotary embedding."""
    return {
        "general.name": name,
        "general.description": f"frequencies: {label([scaling])}",
        "llama.vocab_size": config.vocab_size,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }


def rope_keys(
    config: LlamaConfig, scaling: RopeScaling, seq_len: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """(llama.rope.* and the context length, divisors float32 [H/2] for rope_freqs.weight or None).

    Plain linear scaling and plain YaRN have types of their own. Any other static spectrum is written as divisors, with
    its attention factor as attn_factor and without a type, because llama.cpp's programs override the betas of YaRN that
    a file holds. Raises ValueError for frequencies that depend on the length of the text.
    """
    if scaling.depends_on_length:
        raise ValueError(
            f"{type(scaling).__name__} changes its frequencies with the length of the text, which GGUF "
            "cannot represent; export a static scaling at the factor you need, such as Yarn"
        )
    spec = rope_spec(scaling, config, seq_len)
    keys: dict[str, Any] = {
        "llama.context_length": spec.length,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(spec.rope_theta),
    }
    if spec.rope_type == "default":
        return keys, None
    if spec.rope_type == "linear" or _is_plain_yarn(spec):
        keys |= {
            "llama.rope.scaling.type": spec.rope_type,
            "llama.rope.scaling.factor": float(spec.keys["factor"]),
            "llama.rope.scaling.original_context_length": spec.window,
        }
        return keys, None
    base = config.rope_base()
    rope = rope_at(scaling, base, seq_len)
    keys["llama.rope.scaling.attn_factor"] = float(rope.attention_factor)
    return keys, frequency_divisors(rope, base).astype(np.float32)


def _is_plain_yarn(spec: RopeSpec) -> bool:
    """True for YaRN with the paper's own constants, the only form that llama.cpp's type yarn means."""
    to_keys = ROPE_TYPES["yarn"].to_keys
    assert to_keys is not None
    return spec.rope_type == "yarn" and spec.keys == to_keys(Yarn(spec.keys["factor"]), spec.window)

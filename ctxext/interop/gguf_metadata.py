"""What a GGUF file says beside its tensors: the shape, and the frequencies in the ways that llama.cpp reads them."""

from typing import Any

import numpy as np

from ctxext.interop.ropespec import LARGEST_DIVISOR, lower_hf
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling

DTYPES = ("float32", "float16", "bfloat16", "q8_0")
BLOCK = 32  # numbers that share a scale in q8_0


def check(
    config: LlamaConfig, scaling: RopeScaling, *, dtype: str, seq_len: int | None = None
) -> None:
    """Raise ValueError, with the reason, for what a GGUF file of architecture llama cannot say."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    rope_keys(config, scaling, seq_len or config.max_position_embeddings)
    widths = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
    )
    for wrong, what in (
        (config.attention_bias or config.mlp_bias, "biases are not written to GGUF"),
        (config.hidden_act != "silu", f"llama.cpp computes silu, not {config.hidden_act}"),
        (
            isinstance(config.eos_token_id, tuple),
            "GGUF has one id for the end of a text, and this model several",
        ),
        (
            dtype == "q8_0" and any(width % BLOCK for width in widths),
            f"q8_0 needs widths that {BLOCK} divides",
        ),
    ):
        if wrong:
            raise ValueError(f"{what}; export with --to hf or another dtype")


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
    """(llama.rope.* and the context length, divisors float32 [head_dim / 2] for rope_freqs.weight or None).

    Plain linear and plain YaRN have types of their own. Any other static spectrum travels as divisors with m as
    attn_factor and no type, because llama.cpp's programs overrule the betas of YaRN that a file says.
    Raises ValueError for frequencies that depend on the length of the text.
    """
    if scaling.depends_on_length:
        raise ValueError(
            f"{type(scaling).__name__} changes its frequencies with the length of the text, which GGUF "
            "cannot say; export a static scaling at the factor you need, such as Yarn"
        )
    said, base = lower_hf(scaling, config, seq_len), config.rope_base()
    spec, window = said["rope_parameters"], config.max_position_embeddings
    keys: dict[str, Any] = {
        "llama.context_length": said["max_position_embeddings"],
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(said["rope_theta"]),
    }
    kind, plain_yarn = spec["rope_type"], {"beta_fast": 32.0, "beta_slow": 1.0}
    if kind == "default":
        return keys, None
    extra = spec.keys() - {
        "rope_type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        *plain_yarn,
    }
    if kind == "linear" or (
        kind == "yarn" and not extra and all(spec[k] == v for k, v in plain_yarn.items())
    ):
        return keys | {
            "llama.rope.scaling.type": kind,
            "llama.rope.scaling.factor": float(spec["factor"]),
            "llama.rope.scaling.original_context_length": window,
        }, None
    rope = scaling.rope(base, seq_len)
    with np.errstate(divide="ignore"):
        divisors = np.minimum(base.inv_freq / rope.inv_freq, LARGEST_DIVISOR).astype(np.float32)
    return keys | {"llama.rope.scaling.attn_factor": float(rope.attention_factor)}, divisors

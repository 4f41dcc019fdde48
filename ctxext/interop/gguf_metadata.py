"""The metadata of a GGUF file: the model's shape, and frequencies as llama.cpp reads them."""

from typing import Any, NamedTuple

import numpy as np

from ctxext.interop.families import family_of
from ctxext.interop.rope_types import ROPE_TYPES
from ctxext.interop.ropespec import RopeSpec, frequency_divisors, rope_spec
from ctxext.methods import label
from ctxext.methods.yarn import Yarn
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling, rope_at

FILE_TYPES = {
    "float32": ("F32", 0),
    "float16": ("F16", 1),
    "bfloat16": ("BF16", 32),
    "q8_0": ("Q8_0", 7),
}
"""dtype of the matrices -> the format's name of it, and its number in `general.file_type`."""


class Blocks(NamedTuple):
    """Blocks of a quantized dtype: `size` numbers share a float16 scale, which is the largest
    magnitude over `steps`."""

    size: int
    steps: int


QUANTIZED = {"q8_0": Blocks(32, 127)}
"""The dtypes of FILE_TYPES that are quantized; the package `gguf` has to be able to write them."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "llama.attention.causal": (True,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.attention.sliding_window": (0,),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.logit_scale": (0.0, 1.0),
    "llama.pooling_type": (0,),
    "llama.residual_scale": (0.0, 1.0),
    "llama.rope.scale_linear": (0.0, 1.0),
    "llama.rope.scaling.alpha": (0.0,),
    "llama.rope.scaling.yarn_attn_factor": (1.0,),
    "llama.rope.scaling.yarn_log_multiplier": (0.0,),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
}
"""Keys that change a Llama, with the values that leave it as it is."""


def check_family(config: LlamaConfig) -> str:
    """`general.architecture` of this family. Raises ValueError for one that is not written here."""
    architecture = family_of(config).gguf_architecture
    if architecture is None:
        raise ValueError(f"GGUF files of model_type {config.family} are not supported; use --to hf")
    return architecture


def check(config: LlamaConfig, scaling: RopeScaling, *, window: int, dtype: str) -> None:
    """Raise ValueError, with the reason, for a model that a GGUF file cannot represent.

    `window`: the extended window L', tokens.
    """
    if dtype not in FILE_TYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(FILE_TYPES)}")
    check_family(config)
    rope_keys(config, scaling, window)
    widths = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
    )
    size = QUANTIZED[dtype].size if dtype in QUANTIZED else 1
    uneven = any(width % size for width in widths)
    refusals = {
        "biases are not written to GGUF": config.attention_bias or config.mlp_bias,
        f"llama.cpp computes silu, not {config.hidden_act}": config.hidden_act != "silu",
        f"{dtype} needs widths that are multiples of {size}": uneven,
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(f"{reason}; export with --to hf or another dtype")


def hyperparameters(config: LlamaConfig, name: str, scaling: RopeScaling) -> dict[str, Any]:
    """general.* and the shape of the model, without the rotary embedding."""
    architecture = check_family(config)
    return {
        "general.name": name,
        "general.description": f"frequencies: {label([scaling])}",
        f"{architecture}.vocab_size": config.vocab_size,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": config.head_dim,
        f"{architecture}.attention.value_length": config.head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }


def rope_keys(
    config: LlamaConfig, scaling: RopeScaling, seq_len: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """(llama.rope.* and the context length, divisors for rope_freqs.weight or None).

    Plain linear scaling and plain YaRN have their own types. Any other static spectrum is
    written as divisors, float32 [H/2], with its attention factor as attn_factor and without a type,
    because llama.cpp's programs override the betas of YaRN that a file holds. Raises ValueError for
    frequencies that depend on the length of the text.
    """
    if scaling.depends_on_length:
        raise ValueError(
            f"{type(scaling).__name__} changes its frequencies with the length of the text, which "
            "GGUF cannot represent; export a static scaling at the factor you need, such as Yarn"
        )
    architecture = check_family(config)
    spec = rope_spec(scaling, config, seq_len)
    keys: dict[str, Any] = {
        f"{architecture}.context_length": spec.length,
        f"{architecture}.rope.dimension_count": config.head_dim,
        f"{architecture}.rope.freq_base": float(spec.rope_theta),
    }
    prefix = f"{architecture}.rope.scaling"
    if spec.length != spec.window or spec.rope_type != "default":
        keys[f"{prefix}.original_context_length"] = spec.window
    if spec.rope_type == "default":
        return keys, None
    if spec.rope_type == "linear" or _is_plain_yarn(spec):
        keys[f"{prefix}.type"] = spec.rope_type
        keys[f"{prefix}.factor"] = float(spec.keys["factor"])
        return keys, None
    base = config.rope_base()
    rope = rope_at(scaling, base, seq_len)
    keys[f"{prefix}.attn_factor"] = float(rope.attention_factor)
    return keys, frequency_divisors(rope, base).astype(np.float32)


def _is_plain_yarn(spec: RopeSpec) -> bool:
    """True for YaRN with the paper's constants, which is all that llama.cpp's type yarn means."""
    if spec.rope_type != "yarn":
        return False
    to_keys = ROPE_TYPES["yarn"].to_keys
    assert to_keys is not None
    return spec.keys == to_keys(Yarn(spec.keys["factor"]), spec.window)

"""The metadata of a GGUF file: the model's shape, and frequencies as llama.cpp reads them."""

import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.interop.gguf_names import architecture_of
from ctxext.interop.rope_types import ROPE_TYPES
from ctxext.interop.ropespec import RopeSpec, frequency_divisors, rope_spec
from ctxext.methods import label
from ctxext.methods.yarn import Yarn
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts
from ctxext.rope import RopeScaling, rope_at, scaling_name

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
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
"""Keys after the architecture's name that change a model, with the values that leave it as it is.

Of an architecture whose own keys some of them are, they are none."""
NEUTRAL_OF_TOKENIZERS: dict[str, tuple[Any, ...]] = {
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
}
"""The same for keys of the tokenizer, by their whole names."""
OF_NAMES = re.compile("(phi)-?(3)|(modern)-(bert)", re.IGNORECASE)
"""Parts of `general.name` by which llama.cpp, whatever the architecture, takes other tokenizers."""


def check(config: LlamaConfig, scaling: RopeScaling, *, window: int, dtype: str) -> None:
    """Raise ValueError, with the reason, for a model that a GGUF file cannot represent.

    `window`: the extended window L', tokens.
    """
    if dtype not in FILE_TYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(FILE_TYPES)}")
    architecture = architecture_of(config)
    length = rope_keys(config, scaling, window)[0][f"{architecture.name}.context_length"]
    _check_parts(config, architecture, length)
    widths = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
    )
    size = QUANTIZED[dtype].size if dtype in QUANTIZED else 1
    uneven = any(width % size for width in widths)
    head_dim = config.hidden_size / config.num_attention_heads
    refusals = {
        "biases are not written to GGUF": config.attention_bias or config.mlp_bias,
        f"llama.cpp computes {architecture.activation}, not {config.hidden_act}": (
            config.hidden_act != architecture.activation
        ),
        f"llama.cpp's architecture {architecture.name} has heads of {head_dim:g}, not of "
        f"{config.head_dim}": not architecture.free_head_dim and config.head_dim != head_dim,
        f"{dtype} needs widths that are multiples of {size}": uneven,
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(f"{reason}; export with --to hf or another dtype")


def _check_parts(config: LlamaConfig, architecture: GGUFArchitecture, length: int) -> None:
    """Raise ValueError for a decoder that llama.cpp would run as another one."""
    parts = config.parts
    window = parts.sliding_window
    if window is not None and window < length:
        raise ValueError(
            f"llama.cpp's architecture {architecture.name} has no sliding window: beyond "
            f"{window} tokens it would run another model than this one, which sees a window of "
            f"them in a context of {length}. Export with --to hf; or, for texts of at most "
            f"{window} tokens, set max_position_embeddings in config.json to {window}"
        )
    computed = architecture.computes(config)
    for field in dataclasses.fields(Parts):
        is_window = field.name in ("sliding_window", "windowed")
        expected = getattr(computed, field.name)
        if is_window or getattr(parts, field.name) == expected:
            continue
        limit = architecture.limits.get(field.name, f"has {field.name} {expected}")
        raise ValueError(
            f"llama.cpp's architecture {architecture.name} {limit}, unlike this model; export with "
            "--to hf"
        )


def hyperparameters(config: LlamaConfig, name: str, scaling: RopeScaling) -> dict[str, Any]:
    """general.* and the shape of the model, without the rotary embedding."""
    architecture = architecture_of(config)
    prefix = architecture.name
    own = {f"{prefix}.{key}": value for key, value in architecture.keys(config).items()}
    return {
        "general.name": OF_NAMES.sub(_apart, name),
        "general.description": f"frequencies: {label([scaling])}",
        f"{prefix}.vocab_size": config.vocab_size,
        f"{prefix}.embedding_length": config.hidden_size,
        f"{prefix}.block_count": config.num_hidden_layers,
        f"{prefix}.feed_forward_length": config.intermediate_size,
        f"{prefix}.attention.head_count": config.num_attention_heads,
        f"{prefix}.attention.head_count_kv": config.num_key_value_heads,
        f"{prefix}.attention.key_length": config.head_dim,
        f"{prefix}.attention.value_length": config.head_dim,
        f"{prefix}.{architecture.epsilon}": float(config.rms_norm_eps),
        **own,
    }


def _apart(match: re.Match[str]) -> str:
    """The two parts of a name with a space between them."""
    return " ".join(part for part in match.groups() if part)


def rope_keys(
    config: LlamaConfig, scaling: RopeScaling, seq_len: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """(rope.* of the architecture and its context length, divisors for rope_freqs.weight or None).

    Plain linear scaling and plain YaRN have their own types. Any other static spectrum is
    written as divisors, float32 [H/2], with its attention factor as attn_factor and without a type,
    because llama.cpp's programs override the betas of YaRN that a file holds. Raises ValueError for
    frequencies that depend on the length of the text, and for an architecture that takes no
    divisors.
    """
    if scaling.depends_on_length:
        raise ValueError(
            f"{scaling_name(scaling)} changes its frequencies with the length of the text, which "
            "GGUF cannot represent; export a static scaling at the factor you need, such as Yarn"
        )
    architecture = architecture_of(config)
    spec = rope_spec(scaling, config, seq_len)
    spec.check_alike("GGUF")
    keys: dict[str, Any] = {f"{architecture.name}.context_length": spec.length}
    if not config.layers.rotates:
        return keys, None
    keys |= {
        f"{architecture.name}.rope.dimension_count": config.head_dim,
        f"{architecture.name}.rope.freq_base": float(spec.rope_theta),
    }
    prefix = f"{architecture.name}.rope.scaling"
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
    if not architecture.reads_divisors:
        raise ValueError(
            f"llama.cpp's architecture {architecture.name} reads no divisors of frequencies, which "
            f"{scaling_name(scaling)} with these settings needs; it knows linear scaling, YaRN "
            "with the paper's constants and any theta (NTK, ABF). Use one of them, or --to hf"
        )
    keys[f"{prefix}.attn_factor"] = float(rope.attention_factor)
    return keys, frequency_divisors(rope, base).astype(np.float32)


def _is_plain_yarn(spec: RopeSpec) -> bool:
    """True for YaRN with the paper's constants, which is all that llama.cpp's type yarn means."""
    if spec.rope_type != "yarn":
        return False
    to_keys = ROPE_TYPES["yarn"].to_keys
    assert to_keys is not None
    return spec.keys == to_keys(Yarn(spec.keys["factor"]), spec.window)

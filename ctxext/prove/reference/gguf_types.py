"""The types that llama.cpp loads the values and the vectors of a file in.

It refuses a file that has a key in any other type, whatever the number is, and ends the program
where it multiplies with a vector in another type. Of lists it takes the bytes as they are.
"""

from typing import Any

from ctxext.prove.reference.gguf_file import GGUFFile

COUNTS = (
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "expert_count",
    "expert_used_count",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.scaling.original_context_length",
)
COUNTS_OF_LAYERS = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
"""Counts that may be lists, with one for each layer."""
NUMBERS = (
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
)
OF_ARCHITECTURE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(COUNTS, ("uint32",)),
    **dict.fromkeys(COUNTS_OF_LAYERS, ("uint32", "uint32 array", "int32 array")),
    **dict.fromkeys(NUMBERS, ("float32",)),
    "attention.causal": ("bool",),
    "rope.scaling.finetuned": ("bool",),
    "rope.scaling.type": ("string",),
}
"""Keys after the architecture's name -> the types that they may have."""
OF_FILE: dict[str, tuple[str, ...]] = {
    "general.architecture": ("string",),
    "general.name": ("string",),
    "general.alignment": ("uint32",),
    "general.file_type": ("uint32",),
    "split.count": ("uint16",),
    "tokenizer.ggml.model": ("string",),
    "tokenizer.ggml.pre": ("string",),
    "tokenizer.ggml.tokens": ("string array",),
    "tokenizer.ggml.merges": ("string array",),
    "tokenizer.ggml.scores": ("float32 array",),
    "tokenizer.ggml.token_type": ("int32 array",),
    **dict.fromkeys(
        (
            f"tokenizer.ggml.{name}_token_id"
            for name in ("bos", "eos", "eot", "eom", "unknown", "padding")
        ),
        ("uint32",),
    ),
    **dict.fromkeys(
        (
            f"tokenizer.ggml.{name}"
            for name in (
                "add_bos_token",
                "add_eos_token",
                "add_space_prefix",
                "remove_extra_whitespaces",
            )
        ),
        ("bool",),
    ),
}


def check_types(file: GGUFFile) -> None:
    """Raise ValueError, naming the key or the tensor, for what llama.cpp does not load or run."""
    prefix = f"{file.keys.get('general.architecture', '')}."
    allowed = OF_FILE | {prefix + key: types for key, types in OF_ARCHITECTURE.items()}
    for key, types in allowed.items():
        if key in file.keys and file.types[key] not in types:
            raise ValueError(
                f"{key} is {_short(file.keys[key])} of type {file.types[key]} in {file.path}; "
                f"llama.cpp reads it as {' or '.join(types)}, and refuses or misreads any other"
            )
    for name, tensor in file.tensors.items():
        if len(tensor.shape) == 1 and tensor.kind != "float32":
            raise ValueError(
                f"{name} in {file.path} is a vector in {tensor.kind}; llama.cpp computes with "
                "vectors in float32 only"
            )
    if file.keys.get("split.count", 1) > 1:
        raise ValueError(
            f"{file.path} is one of {file.keys['split.count']} parts; join them first: "
            "llama-gguf-split --merge"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

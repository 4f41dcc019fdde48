"""Llama 1 to 3.3 and Code Llama: config.json of model_type llama, and its tensor names."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from ctxext.interop import validation
from ctxext.interop.context_lengths import declared_length
from ctxext.interop.families.base import Family
from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.interop.ropespec import layer_ropes_from_config
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import LLAMA_PARTS, Parts
from ctxext.rope import RopeScaling, target_length

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
REQUIRED = (*SIZES, "rms_norm_eps")
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
NUMBERS = ("rms_norm_eps", "attention_dropout", "initializer_range")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that a file may leave out; `LlamaConfig` then has the format's own default.
OPTIONAL = (*FLAGS, "hidden_act", "attention_dropout", "initializer_range", *TOKEN_IDS)
UNSUPPORTED = {
    "transformers_weights": "a file of weights under another name",
    "quantization_config": "quantized weights",
}
ACTIVATION_NAMES = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}
"""Other names of transformers for functions of `model.config.ACTIVATIONS`."""
FULL_ATTENTION = "full_attention"


RULES: dict[str, validation.Rule] = {
    **dict.fromkeys((*SIZES, "num_key_value_heads", "head_dim"), validation.SIZE),
    **dict.fromkeys(FLAGS, validation.FLAG),
    **dict.fromkeys(NUMBERS, validation.NUMBER),
    "rms_norm_eps": validation.EPSILON,
    "sliding_window": validation.SIZE,
    "use_sliding_window": validation.FLAG,
    "is_causal": validation.FLAG,
    "layer_types": (lambda value: type(value) is list, "a list of names"),
    "hidden_act": (lambda value: type(value) is str, "a name"),
    **dict.fromkeys(TOKEN_IDS, validation.TOKEN_ID),
    "eos_token_id": validation.TOKEN_IDS,
}


PartsOf = Callable[[dict[str, Any], int], Parts]
"""The parts of a decoder by its config.json, for texts of so many tokens; raises ValueError."""


def read_config(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and scaling of a config.json; see `read_llama_like`."""
    return read_llama_like(data, "llama", _parts)


def read_llama_like(
    data: dict[str, Any], family: str, parts_of: PartsOf
) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and scaling of a config.json with Llama's keys, and the parts that a family adds.

    `max_position_embeddings` of the result is the original window.
    Raises ValueError naming the key for what is missing, malformed, contradictory or unsupported.
    """
    missing = [key for key in REQUIRED if data.get(key) is None]
    if family != "llama" and "num_key_value_heads" not in data:
        missing.append("num_key_value_heads")  # families differ in what they take it to be
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    validation.check(data, RULES)
    for key, feature in UNSUPPORTED.items():
        if data.get(key):
            raise ValueError(f"{feature} ({key}) is not supported; use the original checkpoint")
    rope_theta, original_window, scaling, sliding_theta = layer_ropes_from_config(data)
    target = target_length(scaling, original_window) or original_window
    if data.get("is_causal") is False:
        raise ValueError("bidirectional attention (is_causal false) is not supported")
    parts = parts_of(data, max(declared_length(data, target / original_window), target))
    if sliding_theta is not None:
        parts = dataclasses.replace(parts, sliding_rope_theta=sliding_theta)
    num_heads = data["num_attention_heads"]
    num_key_value_heads = data.get("num_key_value_heads")
    config = LlamaConfig(
        **_plain_fields(data),
        num_key_value_heads=num_heads if num_key_value_heads is None else num_key_value_heads,
        head_dim=_head_dim(data),
        rope_theta=rope_theta,
        max_position_embeddings=original_window,
        family=family,
        parts=parts,
    )
    scaling.rope(config.rope_base(), original_window)  # refuses lists that do not fit head_dim
    return config, scaling


def _parts(data: dict[str, Any], length: int) -> Parts:
    """Llama's own parts; raises ValueError for keys under which a token does not see all before it.

    Those that are switched off, or that hide nothing in a text of `length` tokens, change nothing.
    """
    layer_types = data.get("layer_types")
    if layer_types is not None:
        others = sorted({str(name) for name in layer_types} - {FULL_ATTENTION})
        if others:
            raise ValueError(
                f"layer_types has {', '.join(others)}; only {FULL_ATTENTION} is supported in all "
                "layers"
            )
        return LLAMA_PARTS  # transformers then reads none of the keys below
    if data.get("attention_chunk_size") is not None:
        raise ValueError(
            "attention in chunks (attention_chunk_size) is not supported; if the model was trained "
            "with full attention, set it to null"
        )
    window = data.get("sliding_window")
    if window is None or window >= length:
        return LLAMA_PARTS
    if data.get("use_sliding_window") is False:
        logging.getLogger("ctxext").warning(
            "use_sliding_window is false: attention is full here, and exports leave sliding_window "
            "%d out; transformers 5 reads it in a Llama all the same, and drops cached keys beyond "
            "it while it generates",
            window,
        )
    else:
        raise ValueError(
            f"a sliding window (sliding_window {window}, less than the {length} tokens of the "
            "context) is not supported; if the model was trained with full attention, set "
            "use_sliding_window to false"
        )
    return LLAMA_PARTS


def _plain_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of `LlamaConfig` that are keys of the file under the same name."""
    fields = {}
    for key in (*REQUIRED, *OPTIONAL):
        # A token id of null means that there is none; elsewhere null means the default.
        if key in data and (data[key] is not None or key in TOKEN_IDS):
            fields[key] = float(data[key]) if key in NUMBERS else data[key]
    if "hidden_act" in fields:
        fields["hidden_act"] = ACTIVATION_NAMES.get(fields["hidden_act"], fields["hidden_act"])
    if isinstance(fields.get("eos_token_id"), list):
        fields["eos_token_id"] = tuple(fields["eos_token_id"])
    if fields.get("pad_token_id") == -1:  # no padding token, in files of Llama 1
        fields["pad_token_id"] = None
    for key in TOKEN_IDS:
        _check_token_ids(key, fields.get(key), data["vocab_size"])
    return fields


def _check_token_ids(key: str, value: Any, vocab_size: int) -> None:
    for token_id in value if isinstance(value, tuple) else (value,):
        if token_id is not None and not 0 <= token_id < vocab_size:
            raise ValueError(
                f"{key} {value} is outside the vocabulary of {vocab_size}; set it to null, or use "
                "the config.json of the model that has it"
            )


def _head_dim(data: dict[str, Any]) -> int:
    if data.get("head_dim") is not None:
        return data["head_dim"]
    hidden_size = data["hidden_size"]
    num_heads = data["num_attention_heads"]
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}; "
            "add head_dim"
        )
    return hidden_size // num_heads


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """The keys of config.json, apart from those of the rotary embedding and those of the parts."""
    fields = dataclasses.asdict(config)
    del fields["family"], fields["parts"]
    if isinstance(config.eos_token_id, tuple):
        fields["eos_token_id"] = list(config.eos_token_id)
    return fields


def token_ids(data: dict[str, Any], **defaults: int | None) -> dict[str, Any]:
    """The token ids of a config.json, with those of a family where the file leaves them out.

    None in place of one that is outside the vocabulary, as in a model with another tokenizer.
    """
    size = data.get("vocab_size")
    usable = {
        key: default if default is None or (isinstance(size, int) and default < size) else None
        for key, default in defaults.items()
    }
    return {key: data[key] if key in data else default for key, default in usable.items()}


GGUF_LLAMA = GGUFArchitecture("llama", computes=lambda config: LLAMA_PARTS, reads_divisors=True)
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    meta=True,
    gguf=GGUF_LLAMA,
)

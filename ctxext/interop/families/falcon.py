"""Falcon 7B, 11B and 40B: LayerNorm, parallel blocks, queries, keys and values in one matrix."""

from collections.abc import Collection, Mapping
from typing import Any

from ctxext.interop import validation
from ctxext.interop.families.base import Family, FusedProjection
from ctxext.interop.families.gguf_architecture import FUSED_NAMES, GGUFArchitecture, Keys
from ctxext.interop.families.llama import read_llama_like, token_ids, write_config
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts
from ctxext.rope import RopeScaling

DEFAULT_WINDOW = 2048
"""The window of files that leave max_position_embeddings out, as the published ones do."""
NORM_2 = "attn_norm_2"
"""GGUF's norm of the input of attention where the MLP has another one; a Falcon of 40B has it."""
REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
FLAGS = ("alibi", "new_decoder_architecture", "multi_query", "parallel_attn", "bias")
RULES: dict[str, validation.Rule] = {
    **dict.fromkeys((*REQUIRED, "num_kv_heads", "ffn_hidden_size"), validation.SIZE),
    **dict.fromkeys(FLAGS, validation.FLAG),
    "layer_norm_epsilon": validation.EPSILON,
    "hidden_dropout": validation.NUMBER,
    "num_ln_in_parallel_attn": (lambda value: value in (1, 2), "1 or 2"),
}


def _translate(data: dict[str, Any]) -> dict[str, Any]:
    missing = [key for key in REQUIRED if data.get(key) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    validation.check(data, RULES)
    if data.get("alibi"):
        raise ValueError(
            "alibi true (Falcon RW) is not supported: its readers disagree about the bias, which "
            "transformers rounds to bfloat16 and, in eager attention, adds twice"
        )
    if data.get("hidden_dropout"):
        raise ValueError("hidden_dropout other than 0 is not supported; set it to 0")
    if data.get("apply_residual_connection_post_layernorm"):
        raise ValueError(
            "apply_residual_connection_post_layernorm true is not supported, and transformers "
            "ignores it"
        )
    heads = data["num_attention_heads"]
    key_value_heads = data.get("num_kv_heads") or heads
    if not data.get("new_decoder_architecture"):
        key_value_heads = 1 if data.get("multi_query", True) else heads
    elif data.get("parallel_attn") is False:
        raise ValueError(
            "parallel_attn false with new_decoder_architecture is no Falcon that transformers runs"
        )
    has_bias = bool(data.get("bias"))
    return {
        "max_position_embeddings": DEFAULT_WINDOW,
        "tie_word_embeddings": True,
        **data,
        **token_ids(data, bos_token_id=11, eos_token_id=11),
        "intermediate_size": data.get("ffn_hidden_size") or 4 * data["hidden_size"],
        "num_key_value_heads": key_value_heads,
        "head_dim": None,
        "rms_norm_eps": data.get("layer_norm_epsilon") or 1e-5,
        "hidden_act": data.get("activation") or "gelu",
        "attention_bias": has_bias,
        "mlp_bias": has_bias,
    }


def _parts(data: dict[str, Any], length: int) -> Parts:
    if data.get("new_decoder_architecture"):
        parallel = True
        shared_norm = data.get("num_ln_in_parallel_attn") == 1
    else:
        parallel = data.get("parallel_attn", True)
        shared_norm = parallel
    return Parts(
        norm="layer", norm_bias=True, gated=False, parallel=parallel, shared_norm=shared_norm
    )


def _read(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    return read_llama_like(data, "falcon", _parts)


def _is_new(config: LlamaConfig) -> bool:
    """True for the layout of 11B and 40B; that of 7B has one key-value head and one norm."""
    parts = config.parts
    return parts.parallel and not (parts.shared_norm and config.num_key_value_heads == 1)


def _write(config: LlamaConfig) -> dict[str, Any]:
    llama = write_config(config)
    same = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "tie_word_embeddings",
        "attention_dropout",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    is_new = _is_new(config)
    return {key: llama[key] for key in same} | {
        "num_kv_heads": config.num_key_value_heads,
        "new_decoder_architecture": is_new,
        "multi_query": config.num_key_value_heads == 1,
        "parallel_attn": config.parts.parallel,
        "num_ln_in_parallel_attn": (1 if config.parts.shared_norm else 2) if is_new else None,
        "ffn_hidden_size": config.intermediate_size,
        "activation": config.hidden_act,
        "layer_norm_epsilon": config.rms_norm_eps,
        "bias": config.attention_bias,
        "alibi": False,
        "hidden_dropout": 0.0,
    }


def _modules(config: LlamaConfig) -> Mapping[str, str]:
    modules = {
        "self_attn.o_proj": "self_attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    if config.parts.parallel and not config.parts.shared_norm:
        modules |= {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"}
    return modules


def _gguf_parts(config: LlamaConfig) -> Parts:
    shared_norm = config.parts.shared_norm
    return Parts(norm="layer", norm_bias=True, gated=False, parallel=True, shared_norm=shared_norm)


def _gguf_names(config: LlamaConfig) -> Mapping[str, str]:
    if config.parts.shared_norm:
        return FUSED_NAMES
    return FUSED_NAMES | {"input_layernorm": NORM_2, "post_attention_layernorm": "attn_norm"}


def _from_gguf(data: dict[str, Any], own: Keys, tensors: Collection[str]) -> dict[str, Any]:
    key_value_heads = data["num_key_value_heads"] or data["num_attention_heads"]
    has_two_norms = f"blk.0.{NORM_2}.weight" in tensors
    return data | {
        "num_kv_heads": key_value_heads,
        "new_decoder_architecture": has_two_norms or key_value_heads > 1,
        "num_ln_in_parallel_attn": 2 if has_two_norms else 1,
        "multi_query": key_value_heads == 1,
        "ffn_hidden_size": data["intermediate_size"],
        "layer_norm_epsilon": data["rms_norm_eps"],
    }


FALCON = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    read_config=_read,
    write_config=_write,
    translate=_translate,
    embedding="transformer.word_embeddings.weight",
    layers="transformer.h",
    norm="transformer.ln_f.weight",
    modules=_modules,
    fused=FusedProjection("self_attention.query_key_value", grouped=True),
    gguf=GGUFArchitecture(
        "falcon",
        computes=_gguf_parts,
        limits={"parallel": "runs attention and MLP in parallel (parallel_attn true)"},
        layer_names=_gguf_names,
        neighbours=False,
        free_head_dim=False,
        epsilon="attention.layer_norm_epsilon",
        activation="gelu",
        to_config_json=_from_gguf,
    ),
)

"""MPT 7B and 30B: ALiBi, LayerNorm without biases, clipped queries, keys and values."""

import math
from collections.abc import Collection
from typing import Any

from ctxext.interop import validation
from ctxext.interop.families.base import Family, FusedProjection
from ctxext.interop.families.gguf_architecture import FUSED_NAMES, GGUFArchitecture, Keys
from ctxext.interop.families.llama import read_llama_like, token_ids
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts
from ctxext.rope import RopeScaling

ALIBI = "attention.max_alibi_bias"
CLAMP = "attention.clamp_kqv"
"""GGUF's keys of alibi_bias_max and clip_qkv."""
REQUIRED = ("vocab_size", "d_model", "n_heads", "n_layers", "max_seq_len")
RULES: dict[str, validation.Rule] = {
    **dict.fromkeys((*REQUIRED, "expansion_ratio"), validation.SIZE),
    "no_bias": validation.FLAG,
    "layer_norm_epsilon": validation.EPSILON,
    "attn_config": validation.OBJECT,
}
ATTENTION_RULES: dict[str, validation.Rule] = {
    **dict.fromkeys(("alibi", "prefix_lm", "qk_ln"), validation.FLAG),
    **dict.fromkeys(("clip_qkv", "alibi_bias_max", "softmax_scale"), validation.NUMBER),
    "attn_pdrop": validation.NUMBER,
}
NORMS = ("low_precision_layernorm", "layernorm")
"""`norm_type`: one function, in two precisions of mixed-precision training."""
DROPOUTS = ("emb_pdrop", "resid_pdrop")


def _translate(data: dict[str, Any]) -> dict[str, Any]:
    missing = [key for key in REQUIRED if data.get(key) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    validation.check(data, RULES)
    attention = data.get("attn_config") or {}
    validation.check(attention, ATTENTION_RULES)
    heads = data["n_heads"]
    _refuse(data, attention, data["d_model"] / heads)
    return {
        "tie_word_embeddings": True,
        **data,
        **token_ids(data, bos_token_id=None, eos_token_id=None),
        "hidden_size": data["d_model"],
        "intermediate_size": data["d_model"] * data.get("expansion_ratio", 4),
        "num_hidden_layers": data["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": data["max_seq_len"],
        "rms_norm_eps": data.get("layer_norm_epsilon") or 1e-5,
        "hidden_act": "gelu",
        "attention_dropout": attention.get("attn_pdrop") or 0.0,
        "attn_config": attention,
    }


def _refuse(data: dict[str, Any], attention: dict[str, Any], head_dim: float) -> None:
    """Raise ValueError for what no published MPT has, and this decoder does not compute."""
    scale = attention.get("softmax_scale")
    refusals = {
        "attn_config.alibi false (learned positions)": attention.get("alibi", True) is False,
        "attn_config.prefix_lm": attention.get("prefix_lm"),
        "attn_config.qk_ln": attention.get("qk_ln"),
        f"attn_config.attn_type {attention.get('attn_type')!r}": (
            attention.get("attn_type", "multihead_attention") != "multihead_attention"
        ),
        f"attn_config.softmax_scale {scale} (not 1 / sqrt(head_dim))": (
            scale is not None and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6)
        ),
        "no_bias false": data.get("no_bias", True) is False,
        f"logit_scale {data.get('logit_scale')!r}": data.get("logit_scale") is not None,
        f"norm_type {data.get('norm_type')!r}": data.get("norm_type", NORMS[0]) not in NORMS,
        **{f"{key} other than 0": data.get(key) for key in DROPOUTS},
    }
    for feature, applies in refusals.items():
        if applies:
            raise ValueError(f"{feature} is not supported for model_type mpt")


def _parts(data: dict[str, Any], length: int) -> Parts:
    attention = data["attn_config"]
    return Parts(
        norm="layer",
        gated=False,
        clip_qkv=attention.get("clip_qkv") or None,
        alibi_exponent=float(attention.get("alibi_bias_max") or 8),
    )


def _read(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    return read_llama_like(data, "mpt", _parts)


def _write(config: LlamaConfig) -> dict[str, Any]:
    exponent = config.parts.alibi_exponent
    assert exponent is not None
    dropout = config.attention_dropout
    ratio, remainder = divmod(config.intermediate_size, config.hidden_size)
    if remainder:
        raise ValueError(
            f"intermediate_size {config.intermediate_size} is not a multiple of hidden_size "
            f"{config.hidden_size}, which config.json of an MPT cannot represent"
        )
    eos = config.eos_token_id
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "n_layers": config.num_hidden_layers,
        "expansion_ratio": ratio,
        "layer_norm_epsilon": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "no_bias": True,
        "learned_pos_emb": False,
        "norm_type": NORMS[0],
        "attn_config": {
            "alibi": True,
            # transformers refuses 8.0 and 0.0, which are no integers.
            "alibi_bias_max": int(exponent) if exponent == int(exponent) else exponent,
            "attn_pdrop": int(dropout) if dropout == int(dropout) else dropout,
            "attn_type": "multihead_attention",
            "clip_qkv": config.parts.clip_qkv,
            "prefix_lm": False,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
    }


def _gguf_parts(config: LlamaConfig) -> Parts:
    parts = config.parts
    return Parts(
        norm="layer", gated=False, clip_qkv=parts.clip_qkv, alibi_exponent=parts.alibi_exponent
    )


def _gguf_keys(config: LlamaConfig) -> dict[str, Any]:
    exponent = config.parts.alibi_exponent
    assert exponent is not None
    clip = config.parts.clip_qkv
    return {ALIBI: float(exponent), **({} if clip is None else {CLAMP: float(clip)})}


def _from_gguf(data: dict[str, Any], own: Keys, tensors: Collection[str]) -> dict[str, Any]:
    heads = data["num_attention_heads"]
    if data["num_key_value_heads"] not in (None, heads):
        raise ValueError("mpt.attention.head_count_kv must be mpt.attention.head_count")
    ratio, remainder = divmod(data["intermediate_size"], data["hidden_size"])
    if remainder:
        raise ValueError("mpt.feed_forward_length must be a multiple of mpt.embedding_length")
    exponent = own.get(ALIBI) or 0.0
    if exponent <= 0:
        raise ValueError(f"mpt.{ALIBI} {exponent} is not supported: only MPT with ALiBi is")
    return data | {
        "d_model": data["hidden_size"],
        "n_heads": heads,
        "n_layers": data["num_hidden_layers"],
        "max_seq_len": data["max_position_embeddings"],
        "expansion_ratio": ratio,
        "layer_norm_epsilon": data["rms_norm_eps"],
        "attn_config": {"alibi_bias_max": exponent, "clip_qkv": own.get(CLAMP) or None},
    }


MPT = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    read_config=_read,
    write_config=_write,
    translate=_translate,
    window_key="max_seq_len",
    embedding="transformer.wte.weight",
    layers="transformer.blocks",
    norm="transformer.norm_f.weight",
    modules=lambda config: {
        "input_layernorm": "norm_1",
        "post_attention_layernorm": "norm_2",
        "self_attn.o_proj": "attn.out_proj",
        "mlp.up_proj": "ffn.up_proj",
        "mlp.down_proj": "ffn.down_proj",
    },
    fused=FusedProjection("attn.Wqkv", grouped=False),
    gguf=GGUFArchitecture(
        "mpt",
        computes=_gguf_parts,
        layer_names=lambda config: FUSED_NAMES,
        neighbours=False,
        free_head_dim=False,
        epsilon="attention.layer_norm_epsilon",
        activation="gelu",
        rules={ALIBI: validation.NUMBER, CLAMP: validation.NUMBER},
        keys=_gguf_keys,
        to_config_json=_from_gguf,
    ),
)

"""Where each method can be written down: an example of it is lowered to every format, and what comes of it is named."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ctxext import export
from ctxext.attention import Attention
from ctxext.interop.gguf_metadata import rope_keys
from ctxext.interop.meta_rope import rope_json
from ctxext.interop.ropespec import RopeSpec, rope_spec
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling

FACTOR = 4.0


def hf(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """The rope_type that transformers 4 and 5 read, or "carrier": longrope with equal lists. Raises ValueError."""
    return _hf_name(rope_spec(scaling, config, seq_len))


def _hf_name(spec: RopeSpec) -> str:
    return "carrier" if spec.generic else spec.rope_type


def vllm(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """How vLLM reads the HF export, by its code, which was not run. Raises ValueError where that is wrong."""
    spec = rope_spec(scaling, config, seq_len)
    if spec.rope_type == "dynamic":
        raise ValueError(
            "vLLM freezes dynamic frequencies at factor x L, and its versions disagree on the formula; "
            "export a static scaling at the factor you need, such as NTK"
        )
    if spec.rope_type == "yarn" and "attention_factor" in spec.keys:
        raise ValueError(
            "vLLM before September 2026 ignores an attention_factor of yarn and puts in YaRN's own"
        )
    # At every length, once max_model_len is longer than the window.
    return "long list" if spec.rope_type == "longrope" and not spec.generic else _hf_name(spec)


def peft(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """An adapter has no field for frequencies: the config.json of its base says them. Raises ValueError."""
    return f"base: {hf(scaling, config, seq_len)}"


def meta(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """Meta's params.json says nothing of frequencies but theta: rope.json beside it does. Raises ValueError."""
    return "plain" if rope_json(config, scaling, seq_len)["method"] == "none" else "side-car"


def gguf(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """The scaling type of llama.cpp, "default" for theta alone, or "divisors": rope_freqs.weight. Raises ValueError."""
    keys, divisors = rope_keys(config, scaling, seq_len)
    return "divisors" if divisors is not None else keys.get("llama.rope.scaling.type", "default")


FORMATS: dict[str, Callable[[RopeScaling, LlamaConfig, int], str]] = {
    "hf": hf,
    "vllm": vllm,
    "meta": meta,
    "gguf": gguf,
    "peft": peft,
}
LEGEND = f"""
hf: config.json for transformers 4 and 5; vllm: what vLLM's code reads of it (not run); peft: with a LoRA adapter.
meta: side-car, a rope.json that stock Llama code ignores; gguf: divisors, one per frequency, without any flag.
carrier: longrope with equal lists, which says any fixed frequencies; long list: at every length, short texts too.
Examples at factor {FACTOR:g}; other fields can change the answer. --json has the reason of every "refused"."""


def example(method: type, config: LlamaConfig) -> Any:
    """An instance of a method for `config`, by its required fields alone. Raises KeyError for an unknown one."""
    longest = round(FACTOR * config.max_position_embeddings)
    divisors = tuple(np.geomspace(1, FACTOR, config.head_dim // 2).tolist())
    known = {
        "factor": FACTOR,
        "rope_theta": 50 * config.rope_theta,
        "power": 0.5,
        "partial_rotary_factor": 0.75,
        "truncate_length": longest,
        "max_position_embeddings": longest,
        "divisors": divisors,
        "attention_factor": 1.1,
        "short_factor": (1.0,) * len(divisors),
        "long_factor": divisors,
        "group_size": 4,
        "window": 1024,
        "neighbor_window": 1024,
    }
    required = [
        f.name
        for f in dataclasses.fields(method)
        if f.default is f.default_factory is dataclasses.MISSING
    ]
    return method(**{name: known[name] for name in required})


def places(method: Any, config: LlamaConfig) -> dict[str, dict[str, str]]:
    """Per format, {"how": ...} of an instance over `config`, which with "refused" has the "reason" too."""
    return {name: _place(method, config, name) for name in FORMATS}


def _place(method: Any, config: LlamaConfig, name: str) -> dict[str, str]:
    try:
        if isinstance(method, RopeScaling):
            return {
                "how": FORMATS[name](method, config, round(FACTOR * config.max_position_embeddings))
            }
        if isinstance(method, Attention):
            export.check_attention(method, to="hf" if name == "vllm" else name)
            return {"how": "yes"}
        return {
            "how": "training"
        }  # positions leave no trace: what is exported is the scaling they trained
    except ValueError as error:
        return {"how": "refused", "reason": str(error)}

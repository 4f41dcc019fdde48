"""The support matrix: which formats can represent each method, found by encoding an example."""

from collections.abc import Callable
from typing import Any

from ctxext import export, methods
from ctxext.attention import Attention
from ctxext.interop.formats import FORMATS, encode_rope_hf
from ctxext.interop.ropespec import rope_spec
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling

FACTOR = 4.0


def _vllm(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """How vLLM reads the HF export, by its code, which is not run.

    Raises ValueError where it computes something else.
    """
    spec = rope_spec(scaling, config, seq_len)
    if spec.rope_type == "dynamic":
        raise ValueError(
            "vLLM freezes dynamic frequencies at factor x L, and its versions disagree on the "
            "formula; export a static scaling at the factor you need, such as NTK"
        )
    if spec.rope_type == "yarn" and "attention_factor" in spec.keys:
        raise ValueError(
            "vLLM before September 2026 ignores an attention_factor of yarn and uses YaRN's own"
        )
    # At every length, once max_model_len is longer than the window.
    if spec.rope_type == "longrope" and not spec.generic:
        return "long list"
    return encode_rope_hf(scaling, config, seq_len)


def _peft(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> str:
    """The rope_type of the base, because an adapter has no field for frequencies."""
    return f"base: {encode_rope_hf(scaling, config, seq_len)}"


COLUMNS: dict[str, Callable[[RopeScaling, LlamaConfig, int], str]] = {
    **{name: row.encode_rope for name, row in FORMATS.items()},
    "vllm": _vllm,
    "peft": _peft,
}
"""The formats that ctxext writes, a reader of the HF format, and adapters."""
LEGEND = (
    *(f"{name}: {row.rope_legend}." for name, row in FORMATS.items()),
    "vllm: vLLM's code on the HF export (not run); it uses the long list for short texts too.",
    "peft: a LoRA adapter, on a base in HF format that has these frequencies.",
    f"The examples have factor {FACTOR:g}; other fields can change the answer.",
)
"""Explains the columns, line by line."""


def example(method: type, config: LlamaConfig) -> Any:
    """The instance of a method whose exports the matrix shows, at FACTOR and over `config`."""
    return methods.example(method, config.rope_base(), factor=FACTOR)


def places(method: Any, config: LlamaConfig) -> dict[str, dict[str, str]]:
    """{"how": ...} of a method for every format; where it is "refused", with its "reason"."""
    return {name: _place(method, config, name) for name in COLUMNS}


def _place(method: Any, config: LlamaConfig, name: str) -> dict[str, str]:
    try:
        if isinstance(method, RopeScaling):
            seq_len = round(FACTOR * config.max_position_embeddings)
            return {"how": COLUMNS[name](method, config, seq_len)}
        if isinstance(method, Attention) and method.after_training == method:
            native = export.config_with(method, config, to="hf" if name == "vllm" else name)
            if native == config:
                return {"how": "yes"}
            if name == "vllm":
                raise ValueError(f"vLLM's code for model_type {native.family} was not read")
            return {"how": native.family}
        # Positions, and attention for training alone, are not part of a model: the scaling that
        # they trained is exported.
        return {"how": "training"}
    except ValueError as error:
        return {"how": "refused", "reason": str(error)}

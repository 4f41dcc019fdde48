"""The parts of a decoder in which families of models differ, as data."""

import dataclasses
import math
from typing import ClassVar, Literal


@dataclasses.dataclass(frozen=True)
class Parts:
    """How a decoder differs from Llama's; the defaults are Llama's own.

    Raises ValueError for parts that do not fit together.
    """

    type_tag: ClassVar[str] = "model/parts"
    norm: Literal["rms", "layer"] = "rms"
    """RMS norm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450)."""
    norm_bias: bool = False
    """LayerNorm has a bias."""
    gated: bool = True
    """The MLP is down(act(gate x) * up x), otherwise down(act(up x))."""
    qkv_bias: bool = False
    """Queries, keys and values have biases, even if the output of attention has none."""
    qk_norm: bool = False
    """Queries and keys are RMS-normed per head before they are rotated (arXiv 2302.05442)."""
    clip_qkv: float | None = None
    """Queries, keys and values are clipped to this magnitude; None: not at all."""
    parallel: bool = False
    """Attention and MLP read the same input and are added to it together (GPT-J)."""
    shared_norm: bool = False
    """Both halves of a parallel block read the output of one norm, not of one each."""
    sliding_window: int | None = None
    """Tokens that a windowed layer sees, the query among them; None: all of them."""
    windowed: tuple[bool, ...] = ()
    """The layers that have the sliding window; empty: all."""
    sliding_rope_theta: float | None = None
    """theta of layers with the sliding window (Gemma 3); None: the one of all layers."""
    rotary: tuple[bool, ...] = ()
    """The layers that rotate queries and keys; empty: all, or none with ALiBi."""
    alibi_exponent: float | None = None
    """b of ALiBi (arXiv 2108.12409), whose slopes are 2^(-b i / n); None: rotary positions."""
    temperature_beta: float | None = None
    """beta of Ministral 3: queries times 1 + beta ln(1 + p // L), L being the window of
    pre-training; None: no temperature."""

    def __post_init__(self) -> None:
        if self.norm not in ("rms", "layer"):
            raise ValueError(f"parts.norm must be rms or layer, got {self.norm!r}")
        if self.norm_bias and self.norm != "layer":
            raise ValueError("parts.norm_bias is of LayerNorm; RMS norm has no bias")
        if self.shared_norm and not self.parallel:
            raise ValueError("parts.shared_norm is of a parallel block (parts.parallel)")
        if self.clip_qkv is not None and not self.clip_qkv > 0:
            raise ValueError(f"parts.clip_qkv must be positive, got {self.clip_qkv}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"parts.sliding_window must be at least 1, got {self.sliding_window}")
        if any(self.windowed) and self.sliding_window is None:
            raise ValueError("parts.windowed names layers, but parts.sliding_window is not given")
        if self.sliding_rope_theta is not None:
            if self.sliding_window is None:
                raise ValueError(
                    "parts.sliding_rope_theta is of layers with a window, but parts.sliding_window "
                    "is not given"
                )
            if all(self.windowed):  # or empty, which is all
                raise ValueError(
                    "parts.sliding_rope_theta is of some layers, but every layer has the window; "
                    "give rope_theta"
                )
        if self.temperature_beta is not None and not 0 <= self.temperature_beta < math.inf:
            raise ValueError(
                "parts.temperature_beta must be a finite number from 0 on, got "
                f"{self.temperature_beta}"
            )
        if self.alibi_exponent is not None and (not self.alibi_exponent > 0 or self.rotary):
            raise ValueError(
                "parts.alibi_exponent must be positive, and layers with ALiBi do not rotate"
            )


LLAMA_PARTS = Parts()

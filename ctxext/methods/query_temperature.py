"""Temperatures that follow the position of the query: causal attention with scaled queries."""

import dataclasses
import math
from typing import Any, ClassVar

from ctxext.attention.maps import LogLength
from ctxext.attention.pieces import Attention, Band, Piece, ScaledLayers


@dataclasses.dataclass(frozen=True)
class LogTemperature(Attention):
    """Queries times max(1, ln(p + 1) / ln L), which keeps the entropy of attention (2401.07004).

    Of kexue.fm/archives/8823; Entropy-ABF has it together with another base of the frequencies, and
    not in its first two layers: here it is in all of them.
    """

    paper: ClassVar[str] = "2401.07004"
    training_length: int = dataclasses.field(metadata={"example": 4096})
    """L, the length from which queries grow, tokens."""

    def __post_init__(self) -> None:
        LogLength(self.training_length)

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        return (Piece(Band(), query_scale=LogLength(self.training_length)),)


@dataclasses.dataclass(frozen=True)
class _LogScale:
    """s ln(max(p + 1, 2)) + b."""

    s: float
    b: float

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        return self.s * xp.log((positions + 1.0).clip(min=2)) + self.b


@dataclasses.dataclass(frozen=True)
class Ssmax(Attention):
    """Scalable softmax: scores times s ln(n) + b for the n tokens that a query sees (2501.19399).

    n is at least 2. Here s is one number for all heads, as in axolotl; the paper learns it for each
    head. As it scales short texts down, it needs training.
    """

    paper: ClassVar[str] = "2501.19399"
    s: float = 0.43
    """The factor on the logarithm; 0.43 in axolotl."""
    b: float = 0.0
    """What is added to it."""

    def __post_init__(self) -> None:
        if not 0 < self.s < math.inf or not math.isfinite(self.b):
            raise ValueError(f"s must be positive and b finite, got {self.s} and {self.b}")

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        return (Piece(Band(), query_scale=_LogScale(self.s, self.b)),)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """1 + beta ln(1 + (p + ahead) // length)."""

    beta: float
    length: int
    ahead: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf or self.length < 1:
            raise ValueError(
                f"need a finite factor from 0 on and a length of at least 1, got {self.beta} and "
                f"{self.length}"
            )

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        return 1 + self.beta * xp.log(1.0 + (positions + self.ahead) // self.length)


@dataclasses.dataclass(frozen=True)
class Llama4Temperature(Attention):
    """Queries times 1 + attn_scale ln(1 + floor((p + 1) / floor_scale)), as in Llama 4.

    In transformers, only in layers that do not rotate: on a model whose layers all rotate,
    `layers` has to be "all" for it to change anything. p counts from the beginning of each
    document, which in transformers it does not in packed rows.
    """

    paper: ClassVar[str] = ""
    floor_scale: int = 8192
    """Tokens of a step; 8192 in Llama 4."""
    attn_scale: float = 0.1
    """The factor on the logarithm; 0.1 in Llama 4."""
    layers: ScaledLayers = "without-rotation"
    """The layers whose queries are scaled."""

    def __post_init__(self) -> None:
        _Steps(self.attn_scale, self.floor_scale)

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        scale = _Steps(self.attn_scale, self.floor_scale, ahead=1)
        return (Piece(Band(), query_scale=scale, scaled_layers=self.layers),)


@dataclasses.dataclass(frozen=True)
class Ministral3Temperature(Attention):
    """Queries times 1 + beta ln(1 + floor(p / L)), as in Ministral 3, in all layers."""

    paper: ClassVar[str] = ""
    original_max_position_embeddings: int = dataclasses.field(metadata={"example": 4096})
    """L, tokens of a step; 16384 in Ministral 3."""
    beta: float = 0.1
    """The factor on the logarithm; `llama_4_scaling_beta` in its files."""

    def __post_init__(self) -> None:
        _Steps(self.beta, self.original_max_position_embeddings)

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        scale = _Steps(self.beta, self.original_max_position_embeddings)
        return (Piece(Band(), query_scale=scale),)

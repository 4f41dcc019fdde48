"""Temperatures that follow the position of the query, over causal or any other attention."""

import dataclasses
import math
from typing import Any, ClassVar

from ctxext.attention.maps import LogLength, LogSteps
from ctxext.attention.pieces import QueryScale, ScaledLayers
from ctxext.attention.temperature import QueryTemperature


@dataclasses.dataclass(frozen=True)
class LogTemperature(QueryTemperature):
    """Queries times max(1, ln(p + 1) / ln L), which keeps the entropy of attention (2401.07004).

    Of kexue.fm/archives/8823, in all layers. Entropy-ABF has it together with another base of the
    frequencies (`abf`), and not in the first two layers: `unscaled_layers` 2.
    """

    paper: ClassVar[str] = "2401.07004"
    training_length: int = dataclasses.field(metadata={"example": 4096})
    """L, the length from which queries grow, tokens."""
    unscaled_layers: int = 0
    """First layers whose queries are left as they are; 2 in Entropy-ABF."""

    def __post_init__(self) -> None:
        if self.unscaled_layers < 0:
            raise ValueError(f"unscaled_layers must be at least 0, got {self.unscaled_layers}")
        super().__post_init__()

    @property
    def query_scale(self) -> QueryScale:
        return LogLength(self.training_length)

    @property
    def where(self) -> tuple[ScaledLayers, int]:
        return "all", self.unscaled_layers


@dataclasses.dataclass(frozen=True)
class _LogScale:
    """s ln(max(p + 1, 2)) + b."""

    s: float
    b: float

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        return self.s * xp.log((positions + 1.0).clip(min=2)) + self.b


@dataclasses.dataclass(frozen=True)
class Ssmax(QueryTemperature):
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
        super().__post_init__()

    @property
    def query_scale(self) -> QueryScale:
        return _LogScale(self.s, self.b)


@dataclasses.dataclass(frozen=True)
class Llama4Temperature(QueryTemperature):
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

    @property
    def query_scale(self) -> QueryScale:
        return LogSteps(self.attn_scale, self.floor_scale, ahead=1)

    @property
    def where(self) -> tuple[ScaledLayers, int]:
        return self.layers, 0


@dataclasses.dataclass(frozen=True)
class Ministral3Temperature(QueryTemperature):
    """Queries times 1 + beta ln(1 + floor(p / L)), as in Ministral 3, in all layers."""

    paper: ClassVar[str] = ""
    original_max_position_embeddings: int = dataclasses.field(metadata={"example": 4096})
    """L, tokens of a step; 16384 in Ministral 3."""
    beta: float = 0.1
    """The factor on the logarithm; `llama_4_scaling_beta` in its files."""

    @property
    def query_scale(self) -> QueryScale:
        return LogSteps(self.beta, self.original_max_position_embeddings)

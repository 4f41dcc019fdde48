"""Temperatures by position, which scale the queries of any attention."""

import abc
import dataclasses
from typing import Any

from ctxext.attention.pieces import (
    Attention,
    Causal,
    Piece,
    QueryScale,
    ScaledLayers,
    Stretch,
)
from ctxext.rope import Rope, RopeBase

CHECKED = 1024
"""The length at which a temperature is tried over what it wraps; any would do."""


@dataclasses.dataclass(frozen=True)
class Product:
    """The product of two scales."""

    one: QueryScale
    other: QueryScale

    def __call__(self, positions: Any) -> Any:
        return self.one(positions) * self.other(positions)


@dataclasses.dataclass(frozen=True)
class QueryTemperature(Attention):
    """Another attention with scaled queries, such as LogTemperature(4096, inner=DCA(3072, 512)).

    It follows the length if `inner` does. Where `inner` scales queries itself, both do.
    """

    inner: Attention = dataclasses.field(default=Causal(), kw_only=True)
    """The attention whose queries are scaled; by default causal."""

    def __post_init__(self) -> None:
        """Raise ValueError unless `inner` is another attention, whose queries can be scaled."""
        name = type(self).__name__
        if not isinstance(self.inner, Attention):
            raise ValueError(
                f"{name} scales the queries of another attention, such as DCA, but inner is "
                f"{self.inner!r:.100}"
            )
        wrapped: Any = self.inner
        while wrapped is not None:
            if type(wrapped) is type(self):
                raise ValueError(
                    f"{name} cannot wrap itself; give it once, and another one as inner"
                )
            wrapped = getattr(wrapped, "inner", None)
        self.pieces(CHECKED)

    @property
    def depends_on_length(self) -> bool:  # type: ignore[override]
        """Whether the wrapped attention follows the length."""
        return self.inner.depends_on_length

    @property
    @abc.abstractmethod
    def query_scale(self) -> QueryScale:
        """The factor of the queries, given their positions."""

    @property
    def where(self) -> tuple[ScaledLayers, int]:
        """The layers in which they are, and the number of first ones in which they are not."""
        return "all", 0

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        names = f"{type(self).__name__} and {type(self.inner).__name__}"
        return tuple(
            scaled(piece, self.query_scale, names, *self.where)
            for piece in self.inner.pieces(seq_len)
        )

    def stretch(self, rope: Rope, base: RopeBase, seq_len: int) -> Stretch | None:
        return self.inner.stretch(rope, base, seq_len)

    @property
    def after_training(self) -> Attention:
        return dataclasses.replace(self, inner=self.inner.after_training)


def scaled(
    piece: Piece,
    scale: QueryScale,
    names: str,
    layers: ScaledLayers = "all",
    unscaled_layers: int = 0,
) -> Piece:
    """The piece with its queries scaled in some layers, in addition to its own scale.

    Raises ValueError, with the `names` of both methods, if that is for other layers.
    """
    if piece.query_scale is not None:
        if (piece.scaled_layers, piece.unscaled_layers) != (layers, unscaled_layers):
            raise ValueError(
                f"{names} scale the queries of different layers; use one of them, or let both "
                "scale the same layers"
            )
        scale = Product(piece.query_scale, scale)
    return dataclasses.replace(
        piece, query_scale=scale, scaled_layers=layers, unscaled_layers=unscaled_layers
    )

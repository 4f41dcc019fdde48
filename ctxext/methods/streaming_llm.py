"""StreamingLLM (arXiv 2309.17453)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.maps import AtMost
from ctxext.attention.pieces import Attention, Band, Piece
from ctxext.methods.lm_infinite import First


@dataclasses.dataclass(frozen=True)
class StreamingLLM(Attention):
    """The first a tokens (attention sinks), the last b and the query itself (arXiv 2309.17453).

    Positions are slots of a cache of a + b tokens: distances to the last b tokens are the true
    ones, and for the sinks, token j at position j, the query is at min(p, a + b). Prefill and
    decoding equal the released code run token by token, in models of any depth; that code reads a
    prompt that is longer than its cache with full attention, which is another model. Fluent at any
    length; what is neither near nor first is not seen. It needs no training.
    """

    paper: ClassVar[str] = "2309.17453"
    recent_size: int = dataclasses.field(metadata={"example": 1024})
    """b, tokens before the query that it sees."""
    start_size: int = 4
    """a, first tokens of the document that stay visible; 4 in the paper."""

    def __post_init__(self) -> None:
        if self.recent_size < 1 or self.start_size < 0:
            raise ValueError(
                f"recent_size must be at least 1 and start_size at least 0, got "
                f"{self.recent_size} and {self.start_size}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        reach = self.recent_size + 1
        near = Piece(Band(0, reach))
        if not self.start_size:
            return (near,)
        sinks = Piece(First(self.start_size, reach), AtMost(self.start_size + self.recent_size))
        return near, sinks

"""Masks that several methods use."""

import dataclasses
from typing import Any

from ctxext.attention.pieces import Mask


@dataclasses.dataclass(frozen=True)
class Chunks(Mask):
    """Earlier tokens in chunks of `size` tokens, n chunks before the query's, low <= n < high.

    n = 0 is the query's own chunk. No upper bound if `high` is None. The first chunk is `offset`
    tokens shorter than the others.
    """

    size: int
    low: int = 0
    high: int | None = None
    offset: int = 0

    def visible(self, query: Any, key: Any) -> Any:
        gap = self._chunk(query) - self._chunk(key)
        far_enough = (gap >= self.low) & (key <= query)
        return far_enough if self.high is None else far_enough & (gap < self.high)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        smallest = self._chunk(query[0]) - self._chunk(key[-1])
        largest = self._chunk(query[-1]) - self._chunk(key[0])
        any_visible = largest >= self.low and query[-1] >= key[0]
        all_visible = smallest >= self.low and query[0] >= key[-1]
        if self.high is None:
            return any_visible, all_visible
        # The gap takes every value between the two. Where some pairs have the right gap and others
        # come in the right order, a block is visited in vain at worst.
        return any_visible and smallest < self.high, all_visible and largest < self.high

    def _chunk(self, index: Any) -> Any:
        return (index + self.offset) // self.size

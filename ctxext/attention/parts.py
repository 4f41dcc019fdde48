"""Parts of the rows and heads of a batch, which attention on a CPU visits one after the other.

The scores of a block pair are read and written several times between its products. Those of all
rows and heads at once do not fit into the cache of a CPU; those of a part do.

Shapes: B batch, K key-value heads, G queries per key head, H head_dim, M blocks of C tokens; S
parts of r rows and h key-value heads each.
"""

import dataclasses

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Parts:
    """How rows and key-value heads are cut: all rows are in one part, or each is in its own."""

    rows: int = 1
    """Parts of the rows: 1, or B."""
    heads: int = 1
    """Parts of the key-value heads, a divisor of K."""

    @property
    def count(self) -> int:
        """S, the number of parts."""
        return self.rows * self.heads

    def cut(self, x: Array, axis: int = 1) -> Array:
        """[..., B, K, ...] -> [..., S, r, h, ...], with B at `axis`; it moves nothing."""
        B, K = x.shape[axis : axis + 2]
        parts = (self.count, B // self.rows, K // self.heads)
        return x.reshape(*x.shape[:axis], *parts, *x.shape[axis + 2 :])

    def cut_rows(self, x: Array) -> Array:
        """[B, ...] -> [rows, r, ...]."""
        return x.reshape(self.rows, -1, *x.shape[1:])


WHOLE = Parts()
"""All rows and heads at once: as few programs per block pair as a GPU or TPU needs."""

SCORES_IN_CACHE = 2**21
"""Bytes of the scores of a part on a CPU, at most, unless those of one head are more: two heads of
512 x 512. Measured with 1, 2 and 4 MiB on two cores, which differ by less than a tenth."""


def parts_of(q: Array, groups: int, platform: str) -> Parts:
    """The parts in which queries [M, B, K, G * C, H] are visited.

    groups: G. Scores of a block pair that fit into the cache as a whole are not cut.
    """
    _, B, K, GC, _ = q.shape
    per_head = 4 * GC * (GC // groups)
    if platform != "cpu" or B * K * per_head <= SCORES_IN_CACHE:
        return WHOLE
    sizes = [h for h in range(1, K + 1) if K % h == 0 and h * per_head <= SCORES_IN_CACHE]
    return Parts(rows=B, heads=K // max(sizes, default=1))

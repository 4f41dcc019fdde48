"""CoPE and HardClip (arXiv 2602.05258): the slowest pairs rotate less, or not at all."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeWrapper

NUM_PAIRS = 20
"""The authors' constant at every head dimension: 20 of 64 pairs, or of 32."""


def slowest_pairs(base: RopeBase, num_pairs: int) -> int:
    """`num_pairs`, and no more than there are."""
    return min(num_pairs, base.head_dim // 2)


def check_num_pairs(num_pairs: int) -> None:
    """Raise ValueError for a negative number of pairs."""
    if num_pairs < 0:
        raise ValueError(
            f"num_pairs must be 0 (none) or more, such as {NUM_PAIRS}, got {num_pairs}"
        )


@dataclasses.dataclass(frozen=True)
class CoPE(RopeWrapper):
    """f'_i = f_i (1 + cos(pi j / (n - 1))) / 2 for the n slowest pairs of `inner` (2602.05258).

    j = 0 .. n - 1 counts from the fastest of them, which keeps its frequency; the last one is 0.
    m is that of `inner`. n = `num_pairs` is a constant in the paper and in its code; a model with
    fewer pairs has all of them slowed down. The factors on the frequencies are the same at every
    length, also where the frequencies of `inner` follow it.
    """

    paper: ClassVar[str] = "2602.05258"
    num_pairs: int = NUM_PAIRS
    """n, how many of the slowest pairs are slowed down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_num_pairs(self.num_pairs)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        rope = self.inner.rope(base, seq_len)
        count = slowest_pairs(base, self.num_pairs)
        mask = np.ones(base.head_dim // 2)
        mask[len(mask) - count :] = (1 + np.cos(np.linspace(0, np.pi, count))) / 2
        return dataclasses.replace(rope, inv_freq=rope.inv_freq * mask)


@dataclasses.dataclass(frozen=True)
class HardClip(RopeWrapper):
    """f'_i = 0 for the n slowest pairs of `inner`: they do not rotate (arXiv 2602.05258).

    The hard form of CoPE, which the paper compares with it. m is that of `inner`. Over dynamic
    frequencies the released code falls back to CoPE's mask after the first change of length; here
    the pairs stay at 0.
    """

    paper: ClassVar[str] = "2602.05258"
    num_pairs: int = NUM_PAIRS
    """n, how many of the slowest pairs do not rotate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_num_pairs(self.num_pairs)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        rope = self.inner.rope(base, seq_len)
        kept = base.head_dim // 2 - slowest_pairs(base, self.num_pairs)
        is_kept = np.arange(base.head_dim // 2) < kept
        return dataclasses.replace(rope, inv_freq=np.where(is_kept, rope.inv_freq, 0.0))

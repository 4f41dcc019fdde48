"""The facts of a call that decide which kernels can do it."""

import dataclasses
from typing import Any

from ctxext.attention.layers import LayerMask


@dataclasses.dataclass(frozen=True)
class Request:
    """One call for attention of sequences with themselves."""

    masks: tuple[LayerMask, ...]
    """One mask per piece of the method."""
    platform: str
    """Where it runs: "cpu", "gpu", "cuda" or "tpu"."""
    seq_len: int
    dtype: Any
    packed: bool
    """Rows hold several documents, whose tokens must not see each other."""
    cut: bool = False
    """Every sequence is cut over several devices (mesh.seq)."""
    bias: bool = False
    """Something is added to the scores, as ALiBi does."""

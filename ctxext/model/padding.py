"""Padded lengths, so that few programs are compiled."""

import numpy as np


def bucket(length: int) -> int:
    """The length that `length` tokens are padded to: at most a quarter more, or 31 tokens.

    There are four buckets between a power of two and the next.
    """
    step = max(32, 2 ** max(0, length.bit_length() - 3))
    return -(-length // step) * step


def pad(x: np.ndarray, rows: int, length: int) -> np.ndarray:
    """An array [B, T] with zeros after its rows and tokens, [rows, length]."""
    return np.pad(x, ((0, rows - x.shape[0]), (0, length - x.shape[1])))

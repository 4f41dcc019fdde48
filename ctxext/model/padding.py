"""Lengths that programs are compiled for."""

import numpy as np


def bucket(length: int) -> int:
    """The padded length: at most a quarter or 31 tokens more, so that few lengths are compiled (four an octave)."""
    step = max(32, 2 ** max(0, length.bit_length() - 3))
    return -(-length // step) * step


def pad(x: np.ndarray, rows: int, length: int) -> np.ndarray:
    """An array [B, T] with zeros behind its rows and tokens."""
    return np.pad(x, ((0, rows - x.shape[0]), (0, length - x.shape[1])))

"""Numbers on the command line: what a program cannot count with is refused by the option's name."""

import argparse
import math

LARGEST = 2**31 - 1
LARGEST_SEED = 2**32 - 1


def integer(text: str) -> int:
    """A whole number that fits in 31 bits."""
    value = _whole(text)
    if abs(value) > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST}, got {text}")
    return value


def count(text: str) -> int:
    """A whole number of at least 1 that fits in 31 bits."""
    value = integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def seed(text: str) -> int:
    """A whole number from 0 to 2^32 - 1."""
    value = _whole(text)
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"must be from 0 to {LARGEST_SEED}, got {text}")
    return value


def number(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text[:50]!r}") from None

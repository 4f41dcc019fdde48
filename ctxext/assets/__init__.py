"""Data files of the package: the bundled base model, in plain HF format, and published divisors."""

from pathlib import Path

TINY_LLAMA = Path(__file__).parent / "tiny-llama"
LONGROPE_DIVISORS = Path(__file__).parent / "longrope_divisors.json"
"""Lists of divisors by name, with their sources and license; see `methods.published_divisors`."""

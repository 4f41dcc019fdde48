"""Data files of the package: the bundled base model, in plain HF format."""

from pathlib import Path

TINY_LLAMA = Path(__file__).parent / "tiny-llama"

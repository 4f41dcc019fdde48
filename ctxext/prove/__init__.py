"""Reload what was written in readers that share no code with us, and compare: frequencies, tables, logits, token ids.

A plain-numpy reader runs always; transformers, peft for an adapter, torch for Meta's shards and llama.cpp for GGUF run
when they are installed.
"""

from ctxext.prove.proof import prove
from ctxext.prove.proof_text import describe

__all__ = ["describe", "prove"]

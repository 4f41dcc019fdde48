"""Reload what was written in readers that share no code with us, and compare: frequencies, tables, logits, token ids.

A plain-numpy reader runs always; transformers, and peft for an adapter, run when they are installed.
"""

from ctxext.prove.proof import describe, prove

__all__ = ["describe", "prove"]

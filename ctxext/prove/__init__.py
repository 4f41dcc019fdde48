"""Prove that an export is the model it was written from, with readers that share no code with us.

Compared are frequencies, cos and sin, rotated queries and keys, logits, greedy tokens and token
ids. A reader in plain numpy always runs; transformers, peft for an adapter, torch for Meta's shards
and llama.cpp for GGUF run where they are installed.
"""

from ctxext.prove.file_digests import in_words
from ctxext.prove.proof import prove
from ctxext.prove.proof_text import describe
from ctxext.prove.recorded import changes_since_proof, proof_file

__all__ = ["changes_since_proof", "describe", "in_words", "proof_file", "prove"]

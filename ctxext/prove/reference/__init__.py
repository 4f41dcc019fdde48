"""A second reader of every format, by the textbook: numpy and float64, one layer in memory at a time.

It shares no code with the model, the rotary embeddings or the loaders that it checks, on purpose: formulas are written
again from the papers and from the readers' own code, and the rotation is a product of complex numbers.
"""

from ctxext.prove.reference.gguf import GGUFTextbook
from ctxext.prove.reference.hf import HFTextbook
from ctxext.prove.reference.llama import Textbook
from ctxext.prove.reference.meta import MetaTextbook

__all__ = ["GGUFTextbook", "HFTextbook", "MetaTextbook", "Textbook"]

"""Reference readers: one per format, in numpy and float64, with one layer in memory at a time.

On purpose they share no code with the model, the rotary embeddings or the loaders that they check:
formulas are written again from the papers and from the readers' own code, and the rotation is a
product of complex numbers.
"""

from ctxext.prove.reference.gguf import GGUFReference
from ctxext.prove.reference.hf import HFReference
from ctxext.prove.reference.llama import ReferenceReader
from ctxext.prove.reference.meta import MetaReference

__all__ = ["GGUFReference", "HFReference", "MetaReference", "ReferenceReader"]

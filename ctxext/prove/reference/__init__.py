"""Reference readers: one per format, in numpy and float64, with one layer in memory at a time.

On purpose they share no code with the model, the rotary embeddings or the loaders that they check:
formulas are written again from the papers and from the readers' own code, and the rotation is a
product of complex numbers.
"""

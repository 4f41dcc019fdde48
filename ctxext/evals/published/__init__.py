"""Readers of published benchmarks' files, one file each; no text of a benchmark is kept here."""

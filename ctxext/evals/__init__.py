"""Evaluations: each yields JSON rows from a language model; tables come from rows."""

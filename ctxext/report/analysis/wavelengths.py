"""Wavelengths of rotary pairs: which angles pre-training saw, and which are new at a length."""

from dataclasses import dataclass

import numpy as np

from ctxext.methods import label, method_name
from ctxext.rope import Rope, RopeBase, RopeScaling, rope_at

TOKEN = 1.0
"""The least difference between wavelengths, in tokens, that makes angles new."""


@dataclass(frozen=True)
class Spectrum:
    """Wavelengths 2 pi / f of a method, in tokens per turn of a rotary pair; inf if f is 0."""

    method: str
    """Its label, fields included."""
    name: str
    """Its name alone."""
    wavelengths: np.ndarray
    trained: np.ndarray
    """Wavelengths of pre-training."""
    window: int
    """Tokens of pre-training."""

    @property
    def slow(self) -> np.ndarray:
        """bool per pair: makes no whole turn in the window."""
        return self.wavelengths > self.window

    @property
    def seen(self) -> np.ndarray:
        """bool per pair: made a whole turn in pre-training, so that no angle is new to it."""
        return self.trained <= self.window

    def extrapolated(self, seq_len: int) -> np.ndarray:
        """bool per pair: not seen, and turned farther by `seq_len` tokens than in pre-training.

        A wavelength that is a token too short for that does not count: Resonance rounds to whole
        tokens. Without scaling, where unseen pairs have wavelengths above the window L, already
        those at L + 1 tokens are short by more.
        """
        just_seen = self.trained * (seq_len / self.window)
        return ~self.seen & (self.wavelengths <= just_seen - TOKEN)


def spectrum(method: RopeScaling, base: RopeBase, seq_len: int) -> Spectrum:
    """The wavelengths of `method` over `base` at `seq_len` tokens."""
    return spectrum_of(method, rope_at(method, base, seq_len), base)


def spectrum_of(method: RopeScaling, rope: Rope, base: RopeBase) -> Spectrum:
    """The wavelengths of `rope`, which is of some layers under `method` over `base`."""
    inv_freq = np.asarray(rope.inv_freq, np.float64)
    never = np.full(inv_freq.shape, np.inf)
    return Spectrum(
        label([method]),
        method_name(method),
        np.divide(2 * np.pi, inv_freq, out=never, where=inv_freq > 0),
        2 * np.pi / base.inv_freq,
        base.original_max_position_embeddings,
    )

"""The angles that a method turns rotary pairs by, against those of pre-training."""

import dataclasses
from typing import Literal

import numpy as np

from ctxext.attention.layers import LayerKind
from ctxext.audit.subject import Subject
from ctxext.report.analysis.wavelengths import spectrum_of

Angles = Literal["seen", "interpolated", "extrapolated"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The angles of one rotary pair, in radians: those of pre-training are 0 .. `trained`."""

    angles: Angles
    largest: float
    trained: float


def pairs(
    subject: Subject, reach: float, *, kind: LayerKind, whole: bool, stretched: bool = False
) -> list[Pair]:
    """Every pair of layers of a kind, at rotary distances up to `reach`, the fastest first.

    whole: all distances are whole numbers. stretched: see `Piece.stretched`.

    Seen: exactly the angles of pre-training, which turned by the frequency f0 at distances
    0 .. L - 1. Interpolated: other angles, between seen ones; also beyond them, where the pair made
    a whole turn, so that all of the circle was seen. Extrapolated: beyond.
    """
    reach = max(0.0, reach)
    rope, base = subject.rope(kind)
    plain = base.inv_freq
    waves = spectrum_of(subject.scaling, rope, base)
    # As `spectrum` counts lengths: distance d is one of a text of d + 1 tokens.
    extrapolated = waves.extrapolated(int(np.ceil(reach)) + 1)
    exact = np.isclose(rope.inv_freq, plain, rtol=1e-9) & whole
    exact &= reach <= subject.window - 1
    exact |= rope.inv_freq == 0
    largest = rope.inv_freq * reach
    if stretched:
        stretch = subject.attention.stretch(rope, subject.base, subject.seq_len)
        assert stretch is not None
        largest = stretch.angles(rope.inv_freq, reach)
        exact &= stretch.inv_freq == rope.inv_freq
        extrapolated = ~waves.seen & (largest > plain * (subject.window - 1) * (1 + 1e-9))
    of_pairs = []
    for pair, angle in enumerate(largest.tolist()):
        angles: Angles = "interpolated"
        if exact[pair]:
            angles = "seen"
        elif extrapolated[pair]:
            angles = "extrapolated"
        trained = float(plain[pair]) * (subject.window - 1)
        of_pairs.append(Pair(angles, angle, trained))
    return of_pairs

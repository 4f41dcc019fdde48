"""Wavelengths of rotary pairs: what pre-training turned through, what a target length asks for, and the chart of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxext.methods import label
from ctxext.report.drawing.appearance import linear_axis, log_axis
from ctxext.report.drawing.charts import Chart, Line, Mark, Point, Style, line_chart, swatch
from ctxext.rope import RopeBase, RopeScaling, rope_at


@dataclass(frozen=True)
class Spectrum:
    """The wavelengths 2 pi / f of a method, in tokens, one per pair; a frequency of zero has none (inf).

    `trained` are those of pre-training over `window` tokens.
    """

    method: str
    wavelengths: np.ndarray
    trained: np.ndarray
    window: int

    @property
    def slow(self) -> np.ndarray:
        """bool per pair: it makes no whole turn in the window."""
        return self.wavelengths > self.window

    @property
    def seen(self) -> np.ndarray:
        """bool per pair: it made a whole turn in pre-training, so that no angle is new to it."""
        return self.trained <= self.window

    def extrapolated(self, seq_len: int) -> np.ndarray:
        """bool per pair: not seen, and `seq_len` tokens turn it farther than the window did in pre-training."""
        share = 1 + 1e-9  # f / s * (s L) is f L but for rounding
        return ~self.seen & (seq_len / self.wavelengths > self.window / self.trained * share)


def spectrum(method: RopeScaling, base: RopeBase, seq_len: int) -> Spectrum:
    """What `method` makes of `base` at `seq_len` tokens."""
    inv_freq = np.asarray(rope_at(method, base, seq_len).inv_freq, np.float64)
    waves = np.divide(2 * np.pi, inv_freq, out=np.full(inv_freq.shape, np.inf), where=inv_freq > 0)
    return Spectrum(
        label([method]), waves, 2 * np.pi / base.inv_freq, base.original_max_position_embeddings
    )


def wavelengths(
    spectra: Sequence[Spectrum], styles: dict[str, Style], key: str, *, target: int | None = None
) -> Chart:
    """Tokens per turn of each pair, log y, of methods over one base; a shade where `target` tokens extrapolate.

    Without a target it is only a reference line, at 4 windows.
    """
    first, window = spectra[0], spectra[0].window
    num_pairs, num_seen = len(first.wavelengths), int(first.seen.sum())
    lines, table = [], []
    for s in spectra:
        waves = s.wavelengths.tolist()
        far = s.extrapolated(target) if target else np.zeros(num_pairs, bool)
        at = [Point(i, w) for i, w in enumerate(waves) if math.isfinite(w)]
        lines.append(
            Line(
                s.method.split("(")[0] if target else s.method,
                s.method,
                styles[s.method],
                at,
                "none",
                markers=len(at) <= 32,
                shaded=frozenset(np.flatnonzero(far).tolist()),
            )
        )
        notes = [[_phases(*pair)] if target else [] for pair in zip(s.seen, far, strict=True)]
        table += [
            [
                s.method,
                str(i),
                f"{w:,.1f}" if math.isfinite(w) else "never turns",
                f"{w / window:.3g}",
                *note,
            ]
            for i, (w, note) in enumerate(zip(waves, notes, strict=True))
        ]
    title = "Wavelength of every rotary pair"
    text = (
        f"Tokens per turn against the number of the pair, {len(lines)} methods. Of {first.method}, "
        f"{first.slow.sum()} of {num_pairs} pairs are longer than the window of {window:,} tokens: they made no "
        "whole turn in pre-training."
    )
    marks = [Mark(window, "the window", False), Mark(4 * window, "4x the window", False)]
    if target:
        counts = ", ".join(f"{s.extrapolated(target).sum()} of {s.method}" for s in spectra)
        text = (
            f"Tokens per turn against the number of the pair. In pre-training over {window:,} tokens "
            f"{num_seen} of {num_pairs} pairs turned at least once: every angle was seen. Shaded: pairs that at "
            f"{target:,} tokens turn farther than they ever did, {counts}."
        )
        marks = [Mark(window, f"the window, {window:,}", False)]
        marks += (
            [Mark(target, f"target, {target:,}; shaded: new angles", False)]
            if target != window
            else []
        )
        marks += (
            [Mark(num_seen - 0.5, "seen | never a whole turn")] if 0 < num_seen < num_pairs else []
        )
    y = log_axis(
        "tokens per turn",
        [*(p.y for line in lines for p in line.points), target or 4 * window, window],
    )
    svg = line_chart(
        title,
        text,
        lines,
        linear_axis("pair", [0, max(1, num_pairs - 1)], zero=True),
        y,
        key=key,
        marks=marks,
        height=330,
    )
    header = ["method", "pair", "tokens per turn", "windows", *(["angles"] if target else [])]
    return Chart(
        title, text, svg, header, table, [(swatch(line.style), line.name) for line in lines]
    )


def _phases(seen: bool, far: bool) -> str:
    return "seen" if seen else "extrapolated" if far else "within what was seen"

"""The chart of wavelengths: what each method does to the rotary pairs."""

import math
from collections.abc import Sequence

import numpy as np

from ctxext.report.analysis.wavelengths import Spectrum
from ctxext.report.drawing.axes import linear_axis, log_axis
from ctxext.report.drawing.charts import Chart, Line, Point, legend_of, line_chart
from ctxext.report.drawing.svg import ReferenceLine, Style
from ctxext.report.table import table_of_texts


def wavelength_chart(
    spectra: Sequence[Spectrum], styles: dict[str, Style], key: str, *, target: int | None = None
) -> Chart:
    """Tokens per turn of each pair, logarithmic, of methods over one base.

    Pairs that extrapolate at `target` tokens are shaded. Without a target, four windows are a
    reference line.
    """
    window = spectra[0].window
    num_pairs = len(spectra[0].wavelengths)
    num_seen = int(spectra[0].seen.sum())
    lines = [_line(s, styles[s.method], target) for s in spectra]
    title = "Wavelength of every rotary pair"
    if target:
        description = _description_of_target(spectra, target)
        references = [ReferenceLine(window, f"the window, {window:,}", False)]
        if target != window:
            name = f"target, {target:,}; shaded: new angles"
            references.append(ReferenceLine(target, name, False))
        if 0 < num_seen < num_pairs:
            references.append(ReferenceLine(num_seen - 0.5, "seen | never a whole turn"))
    else:
        description = _description(spectra)
        references = [
            ReferenceLine(window, "the window", False),
            ReferenceLine(4 * window, "4x the window", False),
        ]
    drawn = [point.y for line in lines for point in line.points]
    svg = line_chart(
        title,
        description,
        lines,
        linear_axis("pair", [0, max(1, num_pairs - 1)], zero=True),
        log_axis("tokens per turn", [*drawn, target or 4 * window, window]),
        key=key,
        references=references,
        height=330,
    )
    header = ["method", "pair", "tokens per turn", "windows", *(["angles"] if target else [])]
    rows = [row for s in spectra for row in _rows(s, target)]
    numbers = table_of_texts(title, header, rows)
    return Chart(title, description, svg, numbers, legend_of(lines))


def _line(spectrum: Spectrum, style: Style, target: int | None) -> Line:
    wavelengths = spectrum.wavelengths.tolist()
    points = [Point(i, w) for i, w in enumerate(wavelengths) if math.isfinite(w)]
    shaded: frozenset[float] = frozenset()
    if target:
        shaded = frozenset(np.flatnonzero(spectrum.extrapolated(target)).tolist())
    return Line(
        spectrum.name if target else spectrum.method,
        spectrum.method,
        style,
        points,
        "none",
        markers=len(points) <= 32,
        shaded=shaded,
    )


def _rows(spectrum: Spectrum, target: int | None) -> list[list[str]]:
    """The numbers of one method, a row per pair."""
    rows = []
    for i, wavelength in enumerate(spectrum.wavelengths.tolist()):
        turn = f"{wavelength:,.1f}" if math.isfinite(wavelength) else "never turns"
        rows.append([spectrum.method, str(i), turn, f"{wavelength / spectrum.window:.3g}"])
    if target:
        angles = zip(spectrum.seen, spectrum.extrapolated(target), strict=True)
        for row, (seen, extrapolated) in zip(rows, angles, strict=True):
            row.append(_angles_text(seen, extrapolated))
    return rows


def _angles_text(seen: bool, extrapolated: bool) -> str:
    if seen:
        return "seen"
    return "extrapolated" if extrapolated else "within what was seen"


def _description(spectra: Sequence[Spectrum]) -> str:
    first = spectra[0]
    return (
        f"Tokens per turn by pair, {len(spectra)} methods. Of {first.method}, {first.slow.sum()} "
        f"of {len(first.wavelengths)} pairs have a wavelength longer than the window of "
        f"{first.window:,} tokens: they made no whole turn in pre-training."
    )


def _description_of_target(spectra: Sequence[Spectrum], target: int) -> str:
    first = spectra[0]
    counts = ", ".join(f"{s.extrapolated(target).sum()} of {s.method}" for s in spectra)
    return (
        f"Tokens per turn by pair. In pre-training over {first.window:,} tokens, "
        f"{first.seen.sum()} of {len(first.wavelengths)} pairs turned at least once: every angle "
        f"was seen. Shaded: pairs that turn farther at {target:,} tokens than they ever did, "
        f"{counts}."
    )

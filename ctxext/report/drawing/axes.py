"""Axes of charts, and how their ticks are chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Ticks = Sequence[tuple[float, str]]
"""Values with their labels."""
PERCENT: Ticks = [(value, str(value)) for value in (0, 25, 50, 75, 100)]


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; a logarithmic one (`log`) has positive values only."""

    title: str
    low: float
    high: float
    ticks: Ticks
    log: bool = False

    def at(self, value: float, start: float, end: float) -> float:
        """The pixel of a value between those of both ends; values outside are drawn at the edge."""
        low, high = self.low, self.high
        if self.log:
            low, high = math.log(low), math.log(high)
            value = math.log(max(value, 1e-300))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(start + share * (end - start), 1)


def percent_axis(title: str) -> Axis:
    """From 0 to 100 %."""
    return Axis(title, 0, 100, PERCENT)


def length_axis(seq_lens: Sequence[int]) -> Axis:
    """Tokens on a logarithmic axis, a tick per length."""
    ticks = [(n, f"{n:,}") for n in seq_lens]
    return Axis("tokens", min(seq_lens) / 1.12, max(seq_lens) * 1.12, ticks, log=True)


def windows_axis(title: str, lengths: Sequence[float]) -> Axis:
    """Lengths in windows on a logarithmic axis, ticks at powers of two; at least 1 to 4 windows."""
    low = min(1.0, *lengths)
    high = max(4.0, *lengths)
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    ticks = [(2.0**i, f"{2.0**i:g}x") for i in powers]
    return Axis(title, low / 1.15, high * 1.15, ticks, log=True)


def linear_axis(title: str, values: Sequence[float], *, zero: bool = False) -> Axis:
    """From the smallest value (or `zero`) to the largest, rounded outward to about five steps."""
    low = 0.0 if zero else min(values)
    high = max(values)
    raw = (high - low or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    if zero and float(high).is_integer():
        step = max(1.0, step)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    ticks = [(i * step, f"{round(i * step, 10):,g}") for i in range(first, last + 1)]
    if zero:
        return Axis(title, ticks[0][0], high, [tick for tick in ticks if tick[0] <= high])
    return Axis(title, ticks[0][0], ticks[-1][0], ticks)


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis with ticks at powers of ten, or at 1, 2 and 5 times those if few."""
    low = min(values)
    high = max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [m * 10.0**e for e in powers for m in (1, 2, 5)]
    low = max(m for m in candidates if m <= low)
    high = min(m for m in candidates if m >= high)
    inside = [m for m in candidates if low <= m <= high]
    if len(inside) > 7:
        inside = [m for m in inside if math.log10(m).is_integer()]
    if len(inside) < 3:
        inside = sorted({low, high, *(low + (high - low) * i / 4 for i in range(1, 4))})
    return Axis(title, low, high, [(m, _short_number(m)) for m in inside], log=True)


def _short_number(x: float) -> str:
    if x >= 1e9:
        return f"{x:.0e}".replace("e+", "e")
    if x >= 1e6:
        return f"{x / 1e6:g}M"
    if x >= 1e4:
        return f"{x / 1e3:g}k"
    return f"{x:,.6g}"

"""Colours of heatmap cells: maps for colour-blind readers, and text that is readable on them."""

from collections.abc import Sequence

RGB = tuple[float, float, float]
Colours = tuple[str, str]
"""Of a background, and of the text on it."""
# Dark blue to yellow, steadily lighter: the order survives grey print and colour blindness.
SEQUENTIAL = ("#00204d", "#31446b", "#666970", "#958f78", "#cbba69", "#ffea46")
# Orange, white, blue: no red next to green.
DIVERGING = ("#b35806", "#e08214", "#fdb863", "#f7f7f7", "#9ecae1", "#4292c6", "#08519c")
# The same hues on a dark page: what is small fades into the page, what is large stands out.
DIVERGING_ON_DARK = ("#fdb863", "#e08214", "#85460f", "#23262c", "#1d4a75", "#4292c6", "#9ecae1")
LIGHT = "#ffffff"
DARK = "#000000"


def sequential(share: float) -> Colours:
    """Colours for a share from 0 to 1."""
    return _with_text(_between(SEQUENTIAL, share))


def diverging(value: float) -> Colours:
    """Colours for a value from -1 to 1; 0 is white."""
    return _with_text(_between(DIVERGING, (value + 1) / 2))


def diverging_on_dark(value: float) -> Colours:
    """Colours for a value from -1 to 1 on a dark page; 0 is nearly the page's own colour."""
    return _with_text(_between(DIVERGING_ON_DARK, (value + 1) / 2))


def contrast(a: str, b: str) -> float:
    """Contrast of two colours as WCAG 2 defines it, 1 to 21."""
    bright, dim = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _with_text(background: str) -> Colours:
    # On any colour, the better of black and white has a contrast of at least 4.58.
    return background, max((LIGHT, DARK), key=lambda text: contrast(background, text))


def _between(stops: Sequence[str], share: float) -> str:
    at = min(1.0, max(0.0, share)) * (len(stops) - 1)
    index = min(int(at), len(stops) - 2)
    weight = at - index
    channels = zip(_rgb(stops[index]), _rgb(stops[index + 1]), strict=True)
    return "#" + "".join(f"{round(255 * (a + weight * (b - a))):02x}" for a, b in channels)


def _rgb(colour: str) -> RGB:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b


def _luminance(colour: str) -> float:
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in _rgb(colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b

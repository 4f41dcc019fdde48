"""A heatmap as pixels, for trackers that show pictures: the colours and numbers of the page."""

from typing import Any

import numpy as np

from ctxext.report.drawing.heatmap import Cell, Heatmap

# Pixels of a cell (width, height), of the column of labels, and of a line of text.
CELL = (96, 44)
LABEL = 150
LINE = 26


def draw(heatmap: Heatmap) -> np.ndarray:
    """uint8 [height, width, 3]: caption, columns, and rows; hatched cells have a striped edge."""
    from PIL import Image, ImageDraw, ImageFont

    lines = [*heatmap.rows, *heatmap.below]
    large = ImageFont.load_default(14)
    small = ImageFont.load_default(11)
    of_columns = LABEL + CELL[0] * len(heatmap.columns)
    of_caption = int(large.getlength(heatmap.caption)) + 12
    height = 2 * LINE + CELL[1] * len(lines) + 6
    picture = Image.new("RGB", (max(of_columns, of_caption), height), "#ffffff")
    pen = ImageDraw.Draw(picture)
    pen.text((6, LINE / 2), heatmap.caption, "#000000", large, anchor="lm")
    pen.text((6, 1.5 * LINE), heatmap.corner, "#444444", small, anchor="lm")
    for i, column in enumerate(heatmap.columns):
        pen.text((LABEL + CELL[0] * (i + 0.5), 1.5 * LINE), column, "#000000", small, anchor="mm")
    for j, (name, cells) in enumerate(lines):
        top = 2 * LINE + CELL[1] * j
        pen.text((6, top + CELL[1] / 2), name, "#000000", small, anchor="lm")
        for i, cell in enumerate(cells):
            _draw_cell(pen, cell, LABEL + CELL[0] * i, top, large, small)
    return np.asarray(picture)


def _draw_cell(pen: Any, cell: Cell | None, left: int, top: int, large: Any, small: Any) -> None:
    middle = left + CELL[0] / 2
    if cell is None:
        pen.text((middle, top + CELL[1] / 2), "-", "#444444", large, anchor="mm")
        return
    pen.rectangle((left + 1, top + 1, left + CELL[0] - 2, top + CELL[1] - 2), cell.background)
    if cell.hatched:
        for x in range(left + 4, left + CELL[0] - 8, 8):
            pen.line((x, top + CELL[1] - 3, x + 4, top + CELL[1] - 7), cell.colour)
    pen.text((middle, top + 15), cell.text, cell.colour, large, anchor="mm")
    plain = cell.small.replace("\u2013", "-")  # the font has no en dash
    pen.text((middle, top + 31), plain, cell.colour, small, anchor="mm")

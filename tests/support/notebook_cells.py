"""Run a notebook's script as Jupyter would: cell by cell, showing the value of each last line.

python tests/support/notebook_cells.py SCRIPT FOLDER writes figures to FOLDER as 1.svg, 2.svg and
so on, and prints all other values.
"""

import ast
import re
import sys
from pathlib import Path
from typing import Any


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, source) of the cells of a script in percent format, without the header."""
    result = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, source = part.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        if kind == "markdown":
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        result.append((kind, source.strip()))
    return result


def run(script: Path, folder: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    figures = 0
    for kind, source in cells(script.read_text()):
        if kind == "markdown":
            continue
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, script.name, "exec"), space)
        value = None
        if last:
            value = eval(compile(ast.Expression(last.value), script.name, "eval"), space)
        if hasattr(value, "_repr_svg_"):
            figures += 1
            (folder / f"{figures}.svg").write_text(value._repr_svg_())
        elif value is not None:
            print(repr(value))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))

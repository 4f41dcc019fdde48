"""A notebook's script run as Jupyter would run it: cell by cell, and what a cell ends with is shown.

python tests/notebook_cells.py SCRIPT FOLDER: figures go into FOLDER as 1.svg, 2.svg, ...; all else is printed.
"""

import ast
import re
import sys
from pathlib import Path
from typing import Any


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, source) of the cells of a script in percent format, the header left out."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, source = part.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        source = re.sub(r"^# ?", "", source, flags=re.MULTILINE) if kind == "markdown" else source
        found.append((kind, source.strip()))
    return found


def run(script: Path, folder: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    figures = 0
    for kind, source in cells(script.read_text()):
        if kind == "markdown":
            continue
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, script.name, "exec"), space)
        value = (
            eval(compile(ast.Expression(last.value), script.name, "eval"), space) if last else None
        )
        if hasattr(value, "_repr_svg_"):
            figures += 1
            (folder / f"{figures}.svg").write_text(value._repr_svg_())
        elif value is not None:
            print(repr(value))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))

"""A message recommends only options that there are, and those of a command only its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ctxext
from ctxext.cli.completion import words_of
from ctxext.cli.known_fields import field_names
from ctxext.cli.main import parsers

PACKAGE = Path(ctxext.__file__).parent
OPTION = re.compile(r"(?<![\w-])--(?:no-)?([a-z][\w.-]*\w|[a-z])")
OF_OTHER_PROGRAMS = set(
    "error-unmatch always dirty abbrev exclude date format porcelain ignored show-toplevel "  # git
    "skip-online relogin upgrade deps merge version ctx-size max-model-len hf-overrides "
    "context-length model-path json-model-override-args xla-cpu-max-isa "
    "xla-cpu-experimental-ynn-fusion-type bg no".split()
)
"""Options of git, wandb, pip, servers, XLA and the like, one of CSS, and the prefix --no-; without
dashes and without no-."""
TO_BE_JOINED = {"export.py": {"against"}, "ruler.py": {"ruler"}}
"""Options in lists of words that are printed as a command of another name."""


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each string in a file that is no docstring; a value in it is an X."""
    tree = ast.parse(file.read_text())
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in formatted for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = [
                part.value if isinstance(part, ast.Constant) else " X " for part in node.values
            ]
            yield node.lineno, "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documentation and id(node) not in parts:
                yield node.lineno, node.value


def options(text: str) -> set[str]:
    return {name.replace("_", "-") for name in OPTION.findall(text)}


def test_options_in_messages_are_options_of_their_commands():
    _, by_command = parsers()
    of_command = {
        name: {option[2:].removeprefix("no-") for option in words.options if option[:2] == "--"}
        for name, words in words_of(by_command).items()
    }
    fields = {name.replace("_", "-") for name in field_names()}
    everything = set.union(*of_command.values()) | fields | OF_OTHER_PROGRAMS

    def is_known(name: str, known: set[str]) -> bool:
        return name.removeprefix("no-") in known or (
            "." in name and name.rpartition(".")[2] in fields
        )

    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = of_command.get(file.stem.rstrip("_")) if file.parent.name == "commands" else None
        for number, text in texts(file):
            place = f"{file.relative_to(PACKAGE.parent)}:{number}"
            named = re.split(rf"ctxext (?=(?:{'|'.join(of_command)})\b)", text)
            if own is not None and len(named) == 1:
                known = own | fields | TO_BE_JOINED.get(file.name, set())
                wrong += [(place, n) for n in options(text) if not is_known(n, known)]
            wrong += [(place, n) for n in options(named[0]) if not is_known(n, everything)]
            for rest in named[1:]:
                known = of_command[re.match(r"\w+", rest)[0]] | fields
                line = re.split(r"[;,.)`](?:\s|$)", rest)[0]
                wrong += [(place, n) for n in options(line) if not is_known(n, known)]
    assert not wrong, wrong

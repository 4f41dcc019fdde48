"""The text of `ctxext --help`: the commands in groups, each with an example."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ctxext.cli.commands import GROUPS, Command, all_commands
from ctxext.cli.parser import Parser
from ctxext.nearest import nearest

COLUMN = 14
"""Where the texts of the commands begin."""
OTHERS = "Others"
"""The group of a command that names none."""
WIDEST = 100
"""Characters of the longest line."""


class Overview(Parser):
    """The parser before a command is chosen."""

    def format_help(self) -> str:
        width = min(WIDEST, shutil.get_terminal_size().columns)
        blocks = [
            "usage: ctxext COMMAND ...\n       ctxext COMMAND --help\n       ctxext --version",
            "Stretch the context window of Llama models, and know whether it worked.",
        ]
        commands = all_commands()
        group_of = {name: getattr(command, "GROUP", OTHERS) for name, command in commands.items()}
        for group in dict.fromkeys([*GROUPS, *group_of.values()]):
            of_group = [item for item in commands.items() if group_of[item[0]] == group]
            lines = [line for item in of_group for line in _of_command(*item, width)]
            blocks.append("\n".join([f"{group}:", *lines]))
        blocks.append("Begin with: ctxext demo")
        return "\n\n".join(blocks) + "\n"

    def choose(self, words: Sequence[str], commands: Iterable[str]) -> NoReturn:
        """Print the help, the version, or what is wrong with the first word; exits."""
        if not words:
            self.error("no command is given; begin with: ctxext demo")
        first = words[0]
        if first.startswith("-"):
            self.read(words[:1], [])  # exits unless the option is unknown
        found = nearest(first, commands)
        suggestion = f"; did you mean {found}?" if found else ""
        self.error(f"there is no command {first!r}{suggestion}")


def _of_command(name: str, command: Command, width: int) -> list[str]:
    """The summary of a command, and the first example of its help."""
    summary, *others = (command.__doc__ or "").splitlines()
    begin = f"  {name:<{COLUMN - 2}}"
    indent = " " * COLUMN
    example = next((line for line in others if line.startswith(f"ctxext {name}")), "")
    return [
        *textwrap.wrap(summary, width, initial_indent=begin, subsequent_indent=indent),
        *([f"{indent}{example}"] if example else []),
    ]

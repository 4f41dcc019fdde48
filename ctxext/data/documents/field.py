"""Which key or column of structured files holds the text."""

from typing import NamedTuple

MAX_NAMES = 12
"""Keys or columns that an error lists."""


class Field(NamedTuple):
    """The key or column of the text, and the option by which a user chooses another one."""

    name: str = "text"
    option: str = "field"

    def missing(self, what: str, names: list[str]) -> str:
        """The sentence for a key or column that is not there exactly once, among `names`."""
        listed = ", ".join(f'"{name[:40]}"' for name in names[:MAX_NAMES])
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        if self.name in names:
            return f'the {what} "{self.name}" is there several times; rename all but one'
        there = f", but {listed}{more}" if names else ""
        return f'no {what} "{self.name}"{there}; choose one with {self.option}'

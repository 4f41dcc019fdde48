"""Which key or column of structured files holds the text."""

from collections.abc import Sequence
from typing import NamedTuple

MAX_NAMES = 12
"""Keys or columns that an error lists."""


class Field(NamedTuple):
    """The key or column of the text, and the option by which a user chooses another one.

    is_chat: documents are chat and instruction records, see `conversations`. chat_option: the
    option that has them read; empty if there is none.
    """

    name: str = "text"
    option: str = "field"
    chat_option: str = ""
    is_chat: bool = False

    def missing(self, what: str, names: Sequence[str], with_text: Sequence[str]) -> str:
        """The sentence for a key or column that is not there exactly once, among `names`.

        with_text: those of the names that hold text, which alone may be chosen.
        """
        if self.name in names:
            return f'the {what} "{self.name}" is there several times; rename all but one'
        no_such = f'no {what} "{self.name}"'
        if with_text:
            return f"{no_such}, but {_listed(with_text)}; choose one with {self.option}"
        there = f", and no text in {_listed(names)}" if names else ""
        return f'{no_such}{there}; write the text of each document to a {what} "{self.name}"'

    def no_text_but_a_chat(self, what: str) -> str:
        """The sentence for a chat or instruction record, where texts are read."""
        no_such = f'no {what} "{self.name}": this is a chat or instruction record'
        if self.chat_option:
            return f"{no_such}; to train on its answers, give {self.chat_option} own"
        return f"{no_such}, and only text is read here"

    def not_text(self, what: str, held: str, with_text: Sequence[str]) -> str:
        """The sentence for a column that holds something else."""
        no_text = f'the {what} "{self.name}" holds {held}, not text'
        if not with_text:
            return f"{no_text}, and neither does another {what}"
        return f"{no_text}; choose another with {self.option}: {_listed(with_text)}"


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(f'"{name[:40]}"' for name in names[:MAX_NAMES])
    return f"{listed} and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else listed

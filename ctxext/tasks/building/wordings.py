"""Two wordings of a question about a named number: for models of language, and of code."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

from ctxext.tasks.base import ProseOrCode, TaskContext
from ctxext.tasks.building.needles import Needle, draw_digit_needles, max_digit_needles
from ctxext.tasks.building.vocabulary import NOUNS


class Statement(NamedTuple):
    """How one wording states a number and asks for it; {name} stands for the name in each text."""

    names: Sequence[str]
    stem: str
    """Up to the number."""
    asked: str = ""
    """The question up to the number; by default the stem."""
    before_value: str = ""
    """A space, unless stem and number join directly."""
    end: str = ""
    """After the number."""

    def max_needles(self, digits: int) -> int:
        """How many needles with different names and numbers there are."""
        return max_digit_needles(self.names, digits)

    def draw(self, context: TaskContext, count: int, digits: int) -> list[Needle]:
        """Needles with different names and numbers, see `draw_digit_needles`."""

        def make(name: str, value: str) -> Needle:
            return Needle(
                name,
                value,
                context.newline,
                stem=context.encode(self.stem.format(name=name)),
                value_ids=context.encode(self.before_value + value),
                asked=context.encode(self.asked.format(name=name)) if self.asked else [],
                end=context.encode(self.end) if self.end else [],
            )

        return draw_digit_needles(context, count, keys=self.names, make=make, digits=digits)


def prose(what: str) -> Statement:
    """A sentence, and a question in other words: a line that is repeated invites counting on."""
    stem = f"The {what} of the {{name}} is"
    question = f"What is the {what} of the {{name}}? {stem}"
    return Statement(NOUNS, stem, question, before_value=" ", end=".")


def check_wording(task: str, wording: str) -> None:
    """Raise ValueError for a wording that is not known."""
    known = get_args(ProseOrCode)
    if wording not in known:
        raise ValueError(f"{task}: wording {wording!r} is not known; choose {' or '.join(known)}")

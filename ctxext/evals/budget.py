"""How much a suite asks: three sizes by name, or as many texts as a time allows."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

BudgetName = Literal["small", "medium", "full"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The numbers of questions, texts and documents at each length."""

    depth_steps: int
    """Depths less one: 4 steps are 0, 0.25, 0.5, 0.75, 1."""
    per_depth: int
    """Questions per depth, where each has its own text."""
    shared_texts: int
    """Texts that hold a question per depth, where questions share them."""
    whole_texts: int
    """Questions about whole texts."""
    per_ruler_task: int
    """Questions of each of RULER's tasks."""
    documents: int
    """Documents whose text is scored. Fewer than eight say little about others, however long they
    are."""
    windows: int
    """Windows of each of eight documents, where the same tokens are scored at every length."""
    control_share: float
    """Questions of a control for each question."""
    prefers_shared: bool = False
    """Ask about shared texts wherever a task can, to read as few as possible."""
    shortest: int | None = None
    """Default lengths go on by halves below the window down to this, tokens; None: they do not."""
    books: int = 4
    """Books that are read once, at the longest length only."""
    recovery_texts: int = 12
    """Texts per length in which recovery is measured."""

    @property
    def separate_texts(self) -> int:
        """Texts per length of a task that asks one question about each."""
        return (self.depth_steps + 1) * self.per_depth


BUDGETS: dict[BudgetName, Budget] = {
    "small": Budget(4, 12, 24, 60, 20, documents=8, windows=1, control_share=1 / 3),
    "medium": Budget(
        4, 20, 40, 100, 50, documents=12, windows=2, control_share=1 / 2, books=8, recovery_texts=20
    ),
    "full": Budget(
        8, 20, 60, 180, 100, documents=16, windows=4, control_share=1, books=16, recovery_texts=30
    ),
}
MOST_QUESTIONS = 16
"""Questions that a budget in minutes asks about a text, if there is room for them."""
TOKENS_PER_QUESTION = 64
"""Room that a text has for each question: needles take up to half of the shortest texts."""
ENOUGH_QUESTIONS = 64
"""Questions per length that a budget in minutes gives one evaluation before it adds another."""
FEWEST_DOCUMENTS, MOST_DOCUMENTS = 4, 8
"""Documents that a budget in minutes scores, whatever it has time for."""
MOST_RECOVERY_TEXTS = 12
"""Texts per length in which it measures recovery at most: likelihoods say more than answers."""
SHORTEST = 1024
"""Tokens of the shortest default length of a budget in minutes: short texts cost next to nothing,
and show where a base stops answering inside its own window."""
PAIRED = ("growing-window",)
"""Evaluations that a budget in minutes asks of the base too, or not at all: they show the level of
a loss, which says something next to that of the base in the same books."""
MOST_TEXTS = 60
"""Texts per length beyond which a budget in minutes asks no more."""


def questions_per_text(shortest: int) -> int:
    """How many questions a budget in minutes asks about each text of a task that can share it.

    shortest: tokens of the shortest length.
    """
    return min(MOST_QUESTIONS, max(2, shortest // TOKENS_PER_QUESTION))


def enough_texts(questions: int) -> int:
    """Texts per length that hold `ENOUGH_QUESTIONS` at so many questions each."""
    return -(-ENOUGH_QUESTIONS // questions)


def of_texts(num_texts: int, questions: int) -> Budget:
    """The budget that reads so many texts per length, for so many questions each where it can.

    What scores documents reads as many of them, within 4 and 8, so that no evaluation takes the
    time of the others.
    """
    return Budget(
        depth_steps=questions - 1,
        per_depth=max(1, num_texts // questions),
        shared_texts=num_texts,
        whole_texts=num_texts,
        per_ruler_task=num_texts,
        documents=min(MOST_DOCUMENTS, max(FEWEST_DOCUMENTS, num_texts)),
        windows=1,
        control_share=1 / 4,
        prefers_shared=True,
        shortest=SHORTEST,
        recovery_texts=min(MOST_RECOVERY_TEXTS, num_texts),
    )


def most_texts(minutes: float, seconds_of: Callable[[int], float]) -> int:
    """The most texts per length whose estimated time is within `minutes`.

    seconds_of: the estimated time of a number of texts, which grows about in proportion. Raises
    ValueError if one text per length takes longer.
    """
    one = seconds_of(1)
    if one > 60 * minutes:
        raise ValueError(
            f"--budget {minutes:g}: one text of every length takes about {one / 60:.1f} minutes; "
            "give more minutes, shorter --seq-len or fewer --evals, or --no-base"
        )
    many = MOST_QUESTIONS + 1
    per_text = max((seconds_of(many) - one) / (many - 1), 1e-9)
    num_texts = min(MOST_TEXTS, 1 + int((60 * minutes - one) / per_text))
    while num_texts > 1 and seconds_of(num_texts) > 60 * minutes:
        num_texts -= 1
    return num_texts


class Affordable(NamedTuple):
    """The evaluations for which there is time."""

    names: list[str]
    of_base: list[str]
    """Those of them that the base is asked too."""
    left_out: list[str]


def affordable(
    minutes: float, of_method: Mapping[str, float], of_both: Mapping[str, float]
) -> Affordable:
    """Which evaluations fit into `minutes`, and of which the base can be asked too.

    of_method: the estimated seconds of each, in order of importance. of_both: the same where the
    base is asked as well; without what it is not to be asked. The first is always chosen, each of
    the others if it still fits. Next after an evaluation comes the base in it, before the next
    evaluation. `PAIRED` ones are asked of both or not at all.
    """
    chosen = Affordable([], [], [])
    total = 0.0

    def fits(seconds: float) -> bool:
        return total + seconds <= 60 * minutes

    for name, seconds in of_method.items():
        both = of_both.get(name)
        least = both if both is not None and name in PAIRED else seconds
        if chosen.names and not fits(least):
            chosen.left_out.append(name)
            continue
        chosen.names.append(name)
        if both is not None and fits(both):
            chosen.of_base.append(name)
            total += both
        else:
            total += seconds
    return chosen


def read_budget(text: str) -> Budget | float:
    """A budget by its name, or a number of minutes. Raises ValueError for anything else."""
    for name in get_args(BudgetName):
        if text == name:
            return BUDGETS[name]
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise ValueError(
            f"--budget {text}: give {', '.join(BUDGETS)}, or a number of minutes above 0"
        )
    return minutes

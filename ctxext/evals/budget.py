"""How much a suite asks: three sizes by name, or as many texts as a time allows."""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

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
    """Documents whose whole text is scored. Fewer than eight say little about others, however long
    they are."""
    windows: int
    """Windows of each of eight documents, where the same tokens are scored at every length."""
    control_share: float
    """Questions of a control for each question."""
    prefers_shared: bool = False
    """Ask about shared texts wherever a task can, to read as few as possible."""


BUDGETS: dict[BudgetName, Budget] = {
    "small": Budget(4, 12, 24, 60, 20, documents=8, windows=1, control_share=1 / 3),
    "medium": Budget(4, 20, 40, 100, 50, documents=12, windows=2, control_share=1 / 2),
    "full": Budget(8, 20, 60, 180, 100, documents=16, windows=4, control_share=1),
}
MOST_QUESTIONS = 16
"""Questions that a budget in minutes asks about a text, if there is room for them."""
TOKENS_PER_QUESTION = 128
"""Room that a text has for each question, so that most of it is still haystack."""
MOST_TEXTS = 60
"""Texts per length beyond which a budget in minutes asks no more."""


def questions_per_text(shortest: int) -> int:
    """How many questions a budget in minutes asks about each text of a task that can share it.

    shortest: tokens of the shortest length.
    """
    return min(MOST_QUESTIONS, max(2, shortest // TOKENS_PER_QUESTION))


def of_texts(num_texts: int, questions: int) -> Budget:
    """The budget that reads so many texts per length, for so many questions each where it can."""
    return Budget(
        depth_steps=questions - 1,
        per_depth=max(1, num_texts // questions),
        shared_texts=num_texts,
        whole_texts=num_texts,
        per_ruler_task=num_texts,
        documents=8,
        windows=1,
        control_share=1 / 4,
        prefers_shared=True,
    )


def most_texts(minutes: float, seconds_of: Callable[[int], float]) -> int:
    """The most texts per length whose estimated time is within `minutes`.

    seconds_of: the estimated time of a number of texts, which grows in proportion. Raises
    ValueError if one text per length takes longer.
    """
    one = seconds_of(1)
    if one > 60 * minutes:
        raise ValueError(
            f"--budget {minutes:g}: one text of every length takes about {one / 60:.1f} minutes; "
            "give more minutes, shorter --seq-len or fewer --evals"
        )
    many = MOST_QUESTIONS + 1
    per_text = max((seconds_of(many) - one) / (many - 1), 1e-9)
    return min(MOST_TEXTS, 1 + int((60 * minutes - one) / per_text))


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

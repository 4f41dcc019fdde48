"""Retrieval over a grid of lengths and depths: what the model writes, and how likely it finds the right answer."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from ctxext import tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, Model, batches, documents, fingerprint, item_rng
from ctxext.evals.scoring import Marked, mark
from ctxext.tasks import Example

Condition = Literal["needle", "no-needle", "needle-only"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True)
class Cell:
    """An item's place: `text` names the haystack it is asked about, which seeds everything drawn for it."""

    item: str
    text: str
    seq_len: int
    depth: float | None


@dataclass(frozen=True)
class Retrieval(Eval):
    """`n` questions of `task` for each of `seq_lens` (tokens, room for the answer included) x `depths` (0..1).

    Greedy decoding; beside it the row holds the log-probability of each token of the right answer after the true ones
    before it, and the choice among the right answer and the values that stand in the prompt for other records.
    A fresh haystack for each question or, `together`, for all questions of one length and number, which then share one
    reading of it: more questions for the same time, of which those about one text are one unit of chance.
    A depth of None is drawn for each question; a row then says the nearest quarter as its depth.
    `condition`, for controls on the very same questions: "no-needle" has haystack text where the answer was, so that
    being right is guessing; "needle-only" has no haystack, so that being wrong is not a matter of length.
    jitter: each depth is drawn up to so far from its place, and what would leave the text is at its end: 0.125 makes
    five depths cover all of it. `label` is what the rows are called in a suite; it changes no question.
    About `batch_tokens` tokens go through the model together. Raises ValueError if a question cannot fit.
    """

    name: ClassVar[str] = "retrieval"
    seq_lens: tuple[int, ...]
    depths: tuple[float | None, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    n: int = 10
    task: tasks.Task = tasks.Passkey()
    source: TextSource = Stdlib("heldout")
    seed: int = 0
    condition: Condition = "needle"
    batch_tokens: int = 16_384
    together: bool = False
    jitter: float = 0.0
    label: str = ""

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(
                f"condition {self.condition!r} is not known; choose one of {', '.join(CONDITIONS)}"
            )
        if self.together and not self.task.supports_shared_context:
            raise ValueError(
                f"{self.task.name} asks one question about each text: leave `together` out"
            )
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter {self.jitter} is a part of the text: 0 to 1")
        if None in self.depths and (self.together or self.jitter):
            raise ValueError(
                "depths that are drawn cannot be shared or moved: leave None out, or together and jitter"
            )

    @property
    def title(self) -> str:
        return self.task.name + (f", {self.condition}" if self.condition != "needle" else "")

    def items(self) -> list[str]:
        """`<task>/<settings>/<length>/<depth>/<i>`, with the condition after the settings if it is a control."""
        return list(self._grid())

    def _grid(self) -> dict[str, Cell]:
        shared = (
            (self.depths,) if self.together else ()
        )  # what stands in a text depends on all depths
        moved = (self.jitter,) if self.jitter else ()
        settings = fingerprint(
            type(self.task).__name__, self.task, self.source, self.seed, *shared, *moved
        )
        named = settings if self.condition == "needle" else f"{settings}-{self.condition}"
        where = [(depth, "drawn" if depth is None else float(depth)) for depth in self.depths]
        cells = [
            Cell(
                f"{self.task.name}/{named}/{seq_len}/{place}/{i}",
                f"{self.task.name}/{settings}/{seq_len}/{f'{i}' if self.together else f'{place}/{i}'}",
                seq_len,
                depth,
            )
            for seq_len in self.seq_lens
            for depth, place in where
            for i in range(self.n)
        ]
        return {cell.item: cell for cell in cells}

    @staticmethod
    def _texts(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
        texts: dict[str, list[Cell]] = {}
        for cell in cells:
            texts.setdefault(cell.text, []).append(cell)
        return texts

    def rows(self, lm: Model, items: Collection[str]) -> Iterator[dict[str, Any]]:
        haystack = documents(self.source, lm.tokenizer)
        names = set(items)
        texts = self._texts(cell for cell in self._grid().values() if cell.item in names)
        for seq_len in self.seq_lens:
            of_length = [cells for cells in texts.values() if cells[0].seq_len == seq_len]
            for batch in batches(of_length, max(1, self.batch_tokens // seq_len)):
                asked = [self.ask(lm.tokenizer, haystack, cells) for cells in batch]
                for cells, examples, marks in zip(batch, asked, mark(lm, asked), strict=True):
                    for cell, example, marked in zip(cells, examples, marks, strict=True):
                        yield self._row(lm, cell, example, marked)

    def check(self, tokenizer: Any) -> None:
        """Asks the first question of every length."""
        first = {
            cells[0].seq_len: cells
            for cells in reversed(self._texts(self._grid().values()).values())
        }
        for cells in first.values():
            self.ask(tokenizer, documents(self.source, tokenizer), cells)

    def examples(self, tokenizer: Any) -> Iterator[Example]:
        """Every question, in no particular order."""
        haystack = documents(self.source, tokenizer)
        for cells in self._texts(self._grid().values()).values():
            yield from self.ask(tokenizer, haystack, cells)

    def _row(self, lm: Model, cell: Cell, example: Example, marked: Marked) -> dict[str, Any]:
        return {
            "eval": self.name,
            "item": cell.item,
            "task": {"name": self.task.name, **dataclasses.asdict(self.task)},
            **({"label": self.label, "suite": self.label.partition("/")[0]} if self.label else {}),
            **({"exam": cell.text} if self.together else {}),
            "condition": self.condition,
            "seq_len": cell.seq_len,
            "depth": nearest_quarter(example.depth) if cell.depth is None else cell.depth,
            "depth_achieved": example.depth,
            "tokens": len(example.prompt) + example.max_new_tokens,
            "prompt_sha256": hashlib.sha256(example.prompt.astype("<i4").tobytes()).hexdigest(),
            "gold": example.answer.tolist(),
            **marked,
            **example.meta,
        }

    def ask(
        self, tokenizer: Any, haystack: Sequence[np.ndarray], cells: Sequence[Cell]
    ) -> list[Example]:
        """The questions of cells that share a text."""
        size = None if self.condition == "needle-only" else cells[0].seq_len
        rng = item_rng(cells[0].text)
        given = self.depths if self.together else (cells[0].depth,)
        depths = [self._moved(rng, depth) for depth in given if depth is not None]
        context = tasks.TaskContext(rng, tokenizer, haystack)
        if self.together:
            exam = self.task.shared_examples(context, size, depths)
        else:
            exam = [self.task.example(context, size, depths[0] if depths else None)]
        if self.condition == "no-needle":
            exam = tasks.without_needles(
                exam, item_rng(f"{cells[0].text}/{self.condition}"), haystack
            )
        return [exam[self.depths.index(cell.depth)] for cell in cells] if self.together else exam

    def _moved(self, rng: np.random.Generator, depth: float) -> float:
        return (
            min(1.0, max(0.0, depth + rng.uniform(-self.jitter, self.jitter)))
            if self.jitter
            else depth
        )


def nearest_quarter(depth: float) -> float:
    """0, 0.25, 0.5, 0.75 or 1: what a depth that was drawn is counted as in tables."""
    return round(4 * depth) / 4

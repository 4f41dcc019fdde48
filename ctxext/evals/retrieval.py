"""Retrieval: questions over a grid of lengths and depths."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np

from ctxext import tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals import answers
from ctxext.evals.base import Eval, Model, batches, documents, item_rng
from ctxext.evals.budget import Budget
from ctxext.evals.record import AnswerRecord, AnswerScores, Condition, EvaluatedModel, Measurement
from ctxext.tasks import Example

CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True)
class Cell:
    """An item's place in the grid."""

    item: str
    needle_item: str
    """The same question in the condition "needle"."""
    text: str
    """Name of the haystack that is asked about; it seeds everything that is drawn for it."""
    seq_len: int
    depth: float | None


@dataclass(frozen=True)
class Retrieval(Eval):
    """`n` questions of `task` at each of `seq_lens` x `depths` (0 to 1).

    Lengths are tokens, with the space for the answer. Decoding is greedy. A record also holds the
    log-probability of each token of the right answer given the true ones before it, and the choice
    between the right answer and the values that the prompt holds for other records.

    A depth of None is drawn for each question and recorded as the nearest quarter.

    Raises ValueError if a question cannot fit into its length.
    """

    name: ClassVar[str] = "retrieval"
    continues_prompts: ClassVar[bool] = True
    seq_lens: tuple[int, ...]
    depths: tuple[float | None, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the needle is: 0 is the beginning of the text, 1 its end, None a random place."""
    n: int = 10
    """Questions per length and depth."""
    task: tasks.Task = tasks.Passkey()
    """The task that asks the questions."""
    source: TextSource = Stdlib("heldout")
    seed: int = 0
    condition: Condition = "needle"
    """The question itself, or a control without its needle or without its haystack."""
    batch_tokens: int = 16_384
    shared_context: bool = False
    """All questions of one length and number are about one text, which is read once for all of
    them: more questions in the same time, but those about one text are not independent."""
    jitter: float = 0.0
    """Each depth moves by up to this much; 0.125 lets five depths cover the whole text."""
    suite: str = ""
    """The suite that these questions are part of."""
    label: str = ""
    """The name in records and tables."""

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(
                f"condition {self.condition!r} is not known; choose one of {', '.join(CONDITIONS)}"
            )
        if self.shared_context and not self.task.supports_shared_context:
            raise ValueError(
                f"{self.task.name} asks one question about each text: leave out shared_context"
            )
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is a share of the text, 0 to 1, got {self.jitter}")
        if None in self.depths and (self.shared_context or self.jitter):
            raise ValueError(
                "depths that are drawn (None) cannot be shared or moved: leave out None, or "
                "shared_context and jitter"
            )

    @property
    def title(self) -> str:
        if self.condition == "needle":
            return self.task.name
        return f"{self.task.name}, {self.condition}"

    @property
    def full_title(self) -> str:
        control = "" if self.condition == "needle" else f", {self.condition}"
        suite = f"{self.suite}/" if self.suite else ""
        return f"{suite}{self.label}{control}" if self.label else f"{suite}{self.title}"

    def items(self) -> list[str]:
        """`<task>/<settings>/<length>/<depth>/<i>`; a control's settings end in its condition."""
        return list(self._grid())

    def measurements(self) -> list[Measurement]:
        if self.condition != "needle":
            return []
        return [Measurement(self.task.name, n, "accuracy") for n in self.seq_lens]

    def _protocol(self) -> dict[str, Any]:
        # With a shared context, all depths decide what the text holds.
        depths = {"depths": self.depths} if self.shared_context else {}
        jitter = {"jitter": self.jitter} if self.jitter else {}
        return {
            "class": type(self.task).__name__,
            "task": self.task,
            "source": self.source,
            "seed": self.seed,
            **depths,
            **jitter,
        }

    def _grid(self) -> dict[str, Cell]:
        settings = self._settings
        control = "" if self.condition == "needle" else f"-{self.condition}"
        cells = []
        for seq_len in self.seq_lens:
            for depth in self.depths:
                place = "drawn" if depth is None else float(depth)
                for i in range(self.n):
                    needle_item = f"{self.task.name}/{settings}/{seq_len}/{place}/{i}"
                    shared = f"{self.task.name}/{settings}/{seq_len}/{i}"
                    cell = Cell(
                        item=f"{self.task.name}/{settings}{control}/{seq_len}/{place}/{i}",
                        needle_item=needle_item,
                        text=shared if self.shared_context else needle_item,
                        seq_len=seq_len,
                        depth=depth,
                    )
                    cells.append(cell)
        return {cell.item: cell for cell in cells}

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[AnswerRecord]:
        haystack = documents(self.source, lm.tokenizer)
        settings = self._settings
        names = set(items)
        by_text = _by_text(cell for cell in self._grid().values() if cell.item in names)
        for seq_len in self.seq_lens:
            of_length = [cells for cells in by_text if cells[0].seq_len == seq_len]
            for batch in batches(of_length, max(1, self.batch_tokens // seq_len)):
                groups = [self.ask(lm.tokenizer, haystack, cells) for cells in batch]
                group_scores = answers.score_answers(lm, groups)
                for cells, examples, scores in zip(batch, groups, group_scores, strict=True):
                    for cell, example, score in zip(cells, examples, scores, strict=True):
                        yield self._record(cell, example, score, settings, model)

    def within(self, budget: Budget) -> "Retrieval":
        if self.suite:
            texts = budget.per_ruler_task
        elif self.shared_context:
            texts = budget.shared_texts
        elif self.task.suite_layout == "whole-text":
            texts = budget.whole_texts
        else:
            texts = budget.separate_texts
        n = texts if self.shared_context else texts // len(self.depths)
        if self.condition != "needle":
            n = int(n * budget.control_share)
        return dataclasses.replace(self, n=min(self.n, max(1, n)))

    def check(self, tokenizer: Any) -> None:
        """Build the first question of every length."""
        first: dict[int, list[Cell]] = {}
        for cells in _by_text(self._grid().values()):
            first.setdefault(cells[0].seq_len, cells)
        for cells in first.values():
            self.ask(tokenizer, documents(self.source, tokenizer), cells)

    def examples(self, tokenizer: Any) -> Iterator[Example]:
        """Every question, in no particular order."""
        haystack = documents(self.source, tokenizer)
        for cells in _by_text(self._grid().values()):
            yield from self.ask(tokenizer, haystack, cells)

    def examples_of(self, tokenizer: Any, items: Collection[str]) -> dict[str, Example]:
        """The named questions."""
        haystack = documents(self.source, tokenizer)
        names = set(items)
        by_text = _by_text(cell for cell in self._grid().values() if cell.item in names)
        return {
            cell.item: example
            for cells in by_text
            for cell, example in zip(cells, self.ask(tokenizer, haystack, cells), strict=True)
        }

    def _record(
        self,
        cell: Cell,
        example: Example,
        scores: AnswerScores,
        settings: str,
        model: EvaluatedModel,
    ) -> AnswerRecord:
        depth = answers.nearest_quarter(example.depth) if cell.depth is None else cell.depth
        has_depth = self.task.suite_layout != "shared-text"
        return AnswerRecord(
            model=model,
            evaluation=self.name,
            item=cell.item,
            settings=settings,
            protocol=self.protocol,
            seq_len=cell.seq_len,
            cluster=answers.cluster(
                example, cell.item, text=cell.text if self.shared_context else None
            ),
            facts=answers.facts(example),
            question=answers.question(
                example,
                task=self.task.name,
                fields=dataclasses.asdict(self.task),
                needle_item=cell.needle_item,
                condition=self.condition,
                depth=depth if has_depth else None,
                suite=self.suite,
                label=self.label,
            ),
            scores=scores,
        )

    def ask(
        self, tokenizer: Any, haystack: Sequence[np.ndarray], cells: Sequence[Cell]
    ) -> list[Example]:
        """The questions of cells that share a text."""
        size = None if self.condition == "needle-only" else cells[0].seq_len
        rng = item_rng(cells[0].text)
        requested = self.depths if self.shared_context else (cells[0].depth,)
        depths = [self._moved(rng, depth) for depth in requested if depth is not None]
        context = tasks.TaskContext(rng, tokenizer, haystack)
        if self.shared_context:
            examples = self.task.shared_examples(context, size, depths)
        else:
            depth = depths[0] if depths else None
            examples = [self.task.example(context, size, depth)]
        if self.condition == "no-needle":
            control_rng = item_rng(f"{cells[0].text}/{self.condition}")
            examples = tasks.without_needles(examples, control_rng, haystack)
        if not self.shared_context:
            return examples
        return [examples[self.depths.index(cell.depth)] for cell in cells]

    def _moved(self, rng: np.random.Generator, depth: float) -> float:
        if not self.jitter:
            return depth
        return min(1.0, max(0.0, depth + rng.uniform(-self.jitter, self.jitter)))


def _by_text(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells that share a text, in order of appearance."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.text, []).append(cell)
    return list(groups.values())

"""Recovery: how much of what a needle alone gives a model it still gets from a long text."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ctxext import tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals import answers
from ctxext.evals.base import Eval, Model, batches, documents, item_rng
from ctxext.evals.budget import Budget
from ctxext.evals.record import EvaluatedModel, Measurement, RecoveryRecord, RecoveryScores
from ctxext.tasks import Example
from ctxext.tasks.base import as_ids, bos_prefix


class Cell(NamedTuple):
    """An item's place in the grid: a question at a depth of a text."""

    item: str
    text: str
    """Name of the text, which seeds everything that is drawn for it."""
    seq_len: int
    depth: float
    index: int
    """Which of the text's questions it is."""


class Triple(NamedTuple):
    """A question whose needle is in the text, in two ways, and one whose needle is not."""

    present: Example
    alone: Example
    """The same question after nothing but its needle."""
    absent: Example
    """Another question about the same text, in which haystack is in place of its needle."""


@dataclass(frozen=True)
class Recovery(Eval):
    """The likelihood of right answers, as a share of what the needle alone would give.

        recovery = (nll without needle - nll with it in the text)
                   / (nll without needle - nll with the needle alone)

    1: the needle is as good among the text and other needles as it is alone; 0: it is as good as
    not there. nll are nats of the whole right answer, teacher-forced, so that recovery is finer
    than right and wrong, and says something about models that write no answer exactly.

    Each text holds one needle per depth. It is asked about these, and as many questions again whose
    needles it lacks, so that one reading gives both. The needle alone is read as a short text.
    There are `n` texts per length, of exactly `seq_len` tokens with question and answer.

    Raises ValueError for a task that asks one question per text, and if a text cannot hold twice
    as many needles as there are depths, as it is built with all of them.
    """

    name: ClassVar[str] = "recovery"
    continues_prompts: ClassVar[bool] = True
    seq_lens: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where needles are: 0 is the beginning of the text, 1 its end."""
    n: int = 12
    """Texts per length."""
    task: tasks.Task = tasks.Passkey()
    """The task that asks the questions."""
    source: TextSource = Stdlib("heldout")
    seed: int = 0
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if not self.task.supports_shared_context:
            raise ValueError(
                f"{self.name}: {self.task.name} asks one question about each text; choose a task "
                "that asks several, such as passkey"
            )
        if not self.seq_lens or not self.depths or self.n < 1:
            raise ValueError(f"{self.name}: needs at least one length, one depth and one text")

    @property
    def title(self) -> str:
        return f"{self.name}, {self.task.name}"

    def _protocol(self) -> dict[str, Any]:
        return {
            "class": type(self.task).__name__,
            "task": self.task,
            "source": self.source,
            "seed": self.seed,
            # All depths decide what the text holds.
            "depths": self.depths,
        }

    def items(self) -> list[str]:
        """`recovery/<task>/<settings>/<length>/<depth>/<i>`."""
        return [cell.item for cell in self._grid()]

    def measurements(self) -> list[Measurement]:
        return [Measurement(self.name, n, "recovery") for n in self.seq_lens]

    def _grid(self) -> list[Cell]:
        prefix = f"{self.name}/{self.task.name}/{self._settings}"
        return [
            Cell(
                f"{prefix}/{seq_len}/{float(depth)}/{i}",
                f"{prefix}/{seq_len}/{i}",
                seq_len,
                depth,
                index,
            )
            for seq_len in self.seq_lens
            for i in range(self.n)
            for index, depth in enumerate(self.depths)
        ]

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[RecoveryRecord]:
        haystack = documents(self.source, lm.tokenizer)
        names = set(items)
        by_text = _by_text(cell for cell in self._grid() if cell.item in names)
        for seq_len in self.seq_lens:
            of_length = [cells for cells in by_text if cells[0].seq_len == seq_len]
            for batch in batches(of_length, max(1, self.batch_tokens // seq_len)):
                texts = [self.ask(lm.tokenizer, haystack, cells) for cells in batch]
                for cells, triples, scores in zip(batch, texts, _scores(lm, texts), strict=True):
                    for cell, triple, score in zip(cells, triples, scores, strict=True):
                        yield self._record(cell, triple, score, model)

    def within(self, budget: Budget) -> "Recovery":
        return dataclasses.replace(self, n=min(self.n, budget.recovery_texts))

    def check(self, tokenizer: Any) -> None:
        """Build the first text of every length."""
        first: dict[int, list[Cell]] = {}
        for cells in _by_text(self._grid()):
            first.setdefault(cells[0].seq_len, cells)
        for cells in first.values():
            self.ask(tokenizer, documents(self.source, tokenizer), cells)

    def ask(
        self, tokenizer: Any, haystack: Sequence[np.ndarray], cells: Sequence[Cell]
    ) -> list[Triple]:
        """The questions of cells that share a text."""
        rng = item_rng(cells[0].text)
        context = tasks.TaskContext(rng, tokenizer, haystack)
        count = len(self.depths)
        # Needles of both halves are at the same depths, in random order where they are neighbours.
        drawn = self.task.shared_examples(context, cells[0].seq_len, self.depths * 2)
        order = rng.permutation(2)
        present, absent = (drawn[count * half : count * (half + 1)] for half in order)
        control_rng = item_rng(f"{cells[0].text}/absent")
        replaced = tasks.without_needles(drawn, control_rng, haystack, of=absent)
        half = order[0]
        asked = replaced[count * half : count * (half + 1)]
        others = replaced[count * order[1] : count * (order[1] + 1)]
        return [
            Triple(
                asked[cell.index], needle_alone(present[cell.index], tokenizer), others[cell.index]
            )
            for cell in cells
        ]

    def _record(
        self, cell: Cell, triple: Triple, scores: RecoveryScores, model: EvaluatedModel
    ) -> RecoveryRecord:
        example = triple.present
        return RecoveryRecord(
            model=model,
            evaluation=self.name,
            item=cell.item,
            settings=self._settings,
            protocol=self.protocol,
            seq_len=cell.seq_len,
            cluster=answers.cluster(example, cell.item, text=cell.text),
            facts=answers.facts(example),
            question=answers.question(
                example,
                task=self.task.name,
                fields=dataclasses.asdict(self.task),
                needle_item=cell.item,
                depth=cell.depth,
            ),
            scores=scores,
        )


def needle_alone(example: Example, tokenizer: Any) -> Example:
    """The same question after nothing but BOS and its own needles, in their order."""
    spans = [example.prompt[start : start + size] for start, size in example.meta["needles"]]
    question = example.prompt[example.num_shared_tokens :]
    prompt = np.concatenate([as_ids(bos_prefix(tokenizer)), *spans, question])
    return example._replace(prompt=prompt, num_shared_tokens=0)


def _scores(lm: Model, texts: Sequence[Sequence[Triple]]) -> list[list[RecoveryScores]]:
    """The scores of every question, from one reading of each text and short ones of needles."""
    both = [[e for t in triples for e in (t.present, t.absent)] for triples in texts]
    in_text = answers.answer_losses(lm, both)
    alone = answers.answer_losses(lm, [[t.alone] for triples in texts for t in triples])
    alone_losses = iter([losses[0] for losses in alone])
    return [
        [
            RecoveryScores(
                nll=losses[2 * i],
                nll_without=losses[2 * i + 1],
                nll_alone=next(alone_losses),
                count=len(triple.present.answer),
            )
            for i, triple in enumerate(triples)
        ]
        for triples, losses in zip(texts, in_text, strict=True)
    ]


def _by_text(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells that share a text, in order of appearance."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.text, []).append(cell)
    return list(groups.values())

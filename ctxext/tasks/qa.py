"""Questions of a file, asked about their documents among others of that file (arXiv 2307.03172)."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import numpy as np

from ctxext.tasks.base import Example, SuiteOptions, Task, TaskContext, as_ids
from ctxext.tasks.building.clean_text import draw_without, mentions
from ctxext.tasks.building.json_entries import file_sha256
from ctxext.tasks.building.placement import Frame, Insertion, place
from ctxext.tasks.building.question_files import (
    FileQuestion,
    Passage,
    QuestionFile,
    read_questions,
)

Filler = Literal["file", "haystack"]
QAMetric = Literal["f1", "any"]


@dataclass(frozen=True)
class QA(Task):
    """A question of a SQuAD, HotpotQA or own file (`building.question_files`) after its documents.

    The documents that answer it are together at the depth, others of the file on both sides, the
    last of each side cut to the token; none of these mentions an answer. The best of several
    answers counts. Nothing is cut out of a text that is asked about: one that is too long is a
    ValueError that names the question. Items are named by the file's content, not its path.
    """

    name: ClassVar[str] = "qa"
    path: str
    """The file of questions."""
    metric: QAMetric = "f1"
    """Word F1, or whether an answer is contained in the output."""
    shots: int = 2
    """Other questions with their answers at the beginning of the prompt, for base models."""
    article: bool = False
    """Instead of the passage with the answer, all passages of its article in their order; only
    questions whose answers occur in no other of them."""
    related_first: bool = True
    """Other passages of the same article, which are harder, come before those of others."""
    filler: Filler = "file"
    """The text around the documents that answer: others of the file, or the haystack."""
    max_chars: int | None = None
    """Longer texts are not asked about; None asks about all."""
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        for value, known in ((self.metric, get_args(QAMetric)), (self.filler, get_args(Filler))):
            if value not in known:
                raise ValueError(
                    f"{self.name}: {value!r} is not known; choose one of {', '.join(known)}"
                )
        if self.shots < 0 or self.max_new_tokens < 1:
            raise ValueError(f"{self.name}: shots must be at least 0 and max_new_tokens at least 1")

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        if options.questions is None:
            raise ValueError("qa asks the questions of a file: give --questions FILE")
        return (cls(str(options.questions)),)

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of the file. Raises ValueError if it cannot be read."""
        return file_sha256(self.path)

    def __repr__(self) -> str:
        """The settings and the file's hash, which name the items; so this reads the file."""
        settings = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "path"]
        return f"QA({', '.join(settings)}, sha256={self.sha256!r})"

    @property
    def file(self) -> QuestionFile:
        return read_questions(self.path, self.sha256)

    def block(self, question: FileQuestion) -> tuple[int, ...]:
        """The numbers of the documents that are together at the depth."""
        return question.article if self.article else question.gold

    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        """A question of the file, its documents at `depth`, in exactly `seq_len` tokens."""
        rng = context.rng
        pool = _pool(self, self.sha256)
        question = pool[int(rng.integers(len(pool)))]
        block_depth = context.draw_depth(depth)
        block = list(self.block(question))
        block = block if self.article else rng.permutation(block).tolist()
        block_ids = [_encode(context, self.file.passages[number]) for number in block]
        answers = [context.encode(f" {answer}") for answer in question.answers]
        max_new_tokens = max(self.max_new_tokens, *map(len, answers))
        head = context.encode(self._shots(rng, question)) if self.shots else []
        tail = context.encode(f"\n\nQuestion: {question.text}\nAnswer:")

        def draw_filler(count: int) -> tuple[np.ndarray, list[list[int]]]:
            if self.filler == "haystack":
                return draw_without(context, count, question.answers)
            before = round(block_depth * count)
            return self._draw_passages(context, question, (before, count - before))

        placement = place(
            context,
            seq_len,
            [Insertion(block_depth, ids) for ids in block_ids],
            Frame(max_new_tokens, head, tail),
            task=f"{self.name}, question {question.name} of {self.path}",
            ordered=True,
            draw_filler=draw_filler,
        )
        needles = [
            [start, len(ids)]
            for start, ids, number in zip(placement.starts, block_ids, block, strict=True)
            if number in question.gold
        ]
        meta = {
            "file_sha256": self.sha256,
            "question": question.name,
            "value": question.answers[0],
            "needles": needles,
            "distance": len(placement.prompt) - needles[0][0],
            "haystack": placement.excerpts,
        }
        return Example(
            placement.prompt,
            as_ids(answers[0]),
            placement.depths[0],
            meta,
            max_new_tokens,
            metric=self.metric,
            references=question.answers,
            stop_at_newline=True,
        )

    def _shots(self, rng: np.random.Generator, question: FileQuestion) -> str:
        """Other questions with their answers that mention none of the answers to this one."""
        others = self.file.questions
        shots = (
            f"{others[i].text}\nAnswer: {others[i].answers[0]}"
            for i in rng.permutation(len(others))
        )
        usable = (shot for shot in shots if not mentions(shot, question.answers))
        chosen = list(itertools.islice(usable, self.shots))
        if len(chosen) < self.shots:
            raise ValueError(
                f"{self.name}: {self.path} has {len(chosen)} other questions that do not give "
                f"question {question.name} away: set shots to that, or give more questions"
            )
        return "\n\n".join(f"Question: {shot}" for shot in chosen)

    def _draw_passages(
        self, context: TaskContext, question: FileQuestion, sides: tuple[int, int]
    ) -> tuple[np.ndarray, list[list[int]]]:
        """Passages that mention no answer: the tokens for each of `sides`, and their excerpts."""
        others = self._other_passages(context, question)
        # Enough of the first ones are shuffled; what both sides cut off may need a few more.
        enough = []
        missing = sum(sides)
        while missing > 0:
            passage = next(others, None)
            if passage is None:
                break
            enough.append(passage)
            missing -= len(passage[1])
        shuffled = [enough[i] for i in context.rng.permutation(len(enough))]
        passages = itertools.chain(shuffled, others)
        text: list[int] = []
        excerpts = []
        for side in sides:
            while side:
                number, ids = next(passages, (-1, []))
                if not ids:
                    raise ValueError(
                        f"{self.name}: {sum(sides)} tokens are needed around question "
                        f"{question.name}, {self.path} has {len(text)} that do not mention the "
                        'answer: ask for less, or set filler to "haystack"'
                    )
                size = min(side, len(ids))
                text += ids[:size]
                excerpts.append([number, 0, size])
                side -= size
        return as_ids(text), excerpts

    def _other_passages(
        self, context: TaskContext, question: FileQuestion
    ) -> Iterator[tuple[int, list[int]]]:
        """Numbers and ids of the passages that are not the question's and mention no answer."""
        passages = self.file.passages
        order = context.rng.permutation(len(passages))
        if self.related_first:
            order = order[np.argsort(~np.isin(order, question.article), kind="stable")]
        return (
            (number, _encode(context, passages[number]))
            for number in order[~np.isin(order, self.block(question))].tolist()
            if not mentions("\n".join(passages[number]), question.answers)
        )


@functools.lru_cache(maxsize=8)
def _pool(task: QA, sha256: str) -> Sequence[FileQuestion]:
    """The questions that are asked. Raises ValueError if there is none."""
    file = read_questions(task.path, sha256)
    max_chars = math.inf if task.max_chars is None else task.max_chars

    def is_short(question: FileQuestion) -> bool:
        return sum(len(file.passages[number].text) for number in task.block(question)) <= max_chars

    def is_unique(question: FileQuestion) -> bool:
        """Whether no other passage of its article mentions an answer."""
        rest = set(question.article) - set(question.gold)
        return not any(mentions(file.passages[number].text, question.answers) for number in rest)

    pool = [q for q in file.questions if is_short(q) and (not task.article or is_unique(q))]
    if not pool:
        condition = ", answered in one place of its article" if task.article else ""
        raise ValueError(
            f"{task.name}: {task.path} has no question about a text of at most {max_chars} "
            f"characters{condition}"
        )
    return pool


def _encode(context: TaskContext, passage: Passage) -> list[int]:
    title = f" {passage.title}" if passage.title else ""
    return context.encode(f"\n\nDocument:{title}\n{passage.text}")

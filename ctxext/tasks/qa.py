"""Questions of a file, asked about their documents among others of that file (the idea is of arXiv 2307.03172)."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, Task, encode_piece
from ctxext.tasks.building.clean import draw_without, says
from ctxext.tasks.building.placement import place
from ctxext.tasks.building.questions import (
    Document,
    Question,
    Questions,
    file_sha256,
    read_questions,
)

Filler = Literal["file", "haystack"]
QAMetric = Literal["f1", "any"]


@dataclass(frozen=True)
class QA(Task):
    """A question of a SQuAD or HotpotQA file or of one's own (`tasks.questions`) behind documents of that file.

    The documents that answer it stand together at the depth asked for, others on both sides, the last of each side cut
    at the token; none of these says an answer. metric: word F1, or whether one answer is contained in what is written;
    the best of the answers counts. shots: other questions with their answers before it all, for base models. article:
    instead of the passage with the answer all passages of its article, in their order; asked are only questions whose
    answers stand in no other of them. related_first: other passages of the same article come before those of others,
    and are harder. filler: "haystack" has the haystack around instead. max_chars: longer texts are not asked about.
    Nothing is cut out of a text that is asked about: what is too long is a ValueError that names the question. room:
    tokens for the answer, at least. Items are named by what the file holds, not by where it is.
    """

    name: ClassVar[str] = "qa"
    path: str
    metric: QAMetric = "f1"
    shots: int = 2
    article: bool = False
    related_first: bool = True
    filler: Filler = "file"
    max_chars: int | None = None
    room: int = 32

    def __post_init__(self) -> None:
        for value, known in ((self.metric, get_args(QAMetric)), (self.filler, get_args(Filler))):
            if value not in known:
                raise ValueError(
                    f"{self.name}: {value!r} is not known; choose one of {', '.join(known)}"
                )
        if self.shots < 0 or self.room < 1:
            raise ValueError(f"{self.name}: shots must be at least 0 and room at least 1")

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file. Raises ValueError if it cannot be read."""
        return file_sha256(self.path)

    def __repr__(self) -> str:
        """Decides the names of items, as for every task; so it reads the file."""
        settings = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "path"]
        return f"QA({', '.join(settings)}, sha256={self.sha256!r})"

    @property
    def file(self) -> Questions:
        """What the file holds."""
        return read_questions(self.path, self.sha256)

    def block(self, question: Question) -> tuple[int, ...]:
        """The documents that stand together at the depth asked for."""
        return question.article if self.article else question.gold

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """A question of the file, its documents at `depth`, in exactly `seq_len` tokens, room for the answer in it."""
        pool = _pool(self, self.sha256)
        question = pool[int(rng.integers(len(pool)))]
        depth = float(rng.random()) if depth is None else depth
        block = list(self.block(question))
        block = block if self.article else rng.permutation(block).tolist()
        pieces = [_ids(tokenizer, self.file.documents[number]) for number in block]
        answers = [encode_piece(tokenizer, f" {answer}") for answer in question.answers]
        room = max(self.room, *map(len, answers))
        head = encode_piece(tokenizer, self._prefix(rng, question)) if self.shots else []

        def draw(count: int) -> tuple[np.ndarray, list[list[int]]]:
            if self.filler == "haystack":
                return draw_without(rng, tokenizer, haystack, count, question.answers)
            before = round(depth * count)
            return self._others(rng, tokenizer, question, (before, count - before))

        placed = place(
            rng,
            tokenizer,
            seq_len,
            [(depth, ids) for ids in pieces],
            room=room,
            haystack=draw,
            ordered=True,
            task=f"{self.name}, question {question.name} of {self.path}",
            head=head,
            tail=encode_piece(tokenizer, f"\n\nQuestion: {question.text}\nAnswer:"),
        )
        needles = [
            [start, len(ids)]
            for start, ids, number in zip(placed.starts, pieces, block, strict=True)
            if number in question.gold
        ]
        meta = {
            "file_sha256": self.sha256,
            "question": question.name,
            "value": question.answers[0],
            "needles": needles,
            "distance": len(placed.prompt) - needles[0][0],
            "haystack": placed.haystack,
        }
        return Example(
            placed.prompt,
            np.asarray(answers[0], np.int32),
            placed.depths[0],
            meta,
            metric=self.metric,
            references=question.answers,
            room=room,
            line=True,
        )

    def _prefix(self, rng: np.random.Generator, question: Question) -> str:
        """Other questions with their answers, which say none of the answers to this one."""
        others = self.file.questions
        shots = (
            f"{others[i].text}\nAnswer: {others[i].answers[0]}"
            for i in rng.permutation(len(others))
        )
        clean = list(
            itertools.islice(
                (shot for shot in shots if not says(shot, question.answers)), self.shots
            )
        )
        if len(clean) < self.shots:
            raise ValueError(
                f"{self.name}: {self.path} has {len(clean)} other questions that do not give question "
                f"{question.name} away: set shots to that, or give more questions"
            )
        return "\n\n".join(f"Question: {shot}" for shot in clean)

    def _others(
        self, rng: np.random.Generator, tokenizer: Encoder, question: Question, sides: Sequence[int]
    ) -> tuple[np.ndarray, list[list[int]]]:
        """Documents that say no answer, for each of `sides` as many tokens as it says, and their pieces."""
        documents = self.file.documents
        order = rng.permutation(len(documents))
        if self.related_first:
            order = order[np.argsort(~np.isin(order, question.article), kind="stable")]
        others = (
            (number, _ids(tokenizer, documents[number]))
            for number in order[~np.isin(order, self.block(question))].tolist()
            if not says("\n".join(documents[number]), question.answers)
        )
        enough, missing = [], sum(sides)
        while missing > 0 and (drawn := next(others, None)):
            enough.append(drawn)
            missing -= len(drawn[1])
        mixed = itertools.chain((enough[i] for i in rng.permutation(len(enough))), others)
        text, pieces = [], []
        for side in sides:
            while side:
                number, ids = next(mixed, (-1, []))
                if not ids:
                    raise ValueError(
                        f"{self.name}: {sum(sides)} tokens are needed around question {question.name}, {self.path} has "
                        f'{len(text)} that do not say the answer: ask for less, or set filler to "haystack"'
                    )
                text += ids[:side]
                pieces.append([number, 0, min(side, len(ids))])
                side -= pieces[-1][2]
        return np.asarray(text, np.int32), pieces


@functools.lru_cache(maxsize=8)
def _pool(task: QA, sha256: str) -> list[Question]:
    """The questions that are asked. Raises ValueError if there is none."""
    file = read_questions(task.path, sha256)

    def size(question: Question) -> int:
        return sum(len(file.documents[number].text) for number in task.block(question))

    def alone(question: Question) -> bool:
        rest = (
            file.documents[number].text
            for number in question.article
            if number not in question.gold
        )
        return not any(says(text, question.answers) for text in rest)

    most = math.inf if task.max_chars is None else task.max_chars
    pool = [q for q in file.questions if size(q) <= most and (not task.article or alone(q))]
    if not pool:
        raise ValueError(
            f"{task.name}: {task.path} has no question about a text of at most {most} characters"
            + ", answered in one place of its article" * task.article
        )
    return pool


def _ids(tokenizer: Encoder, document: Document) -> list[int]:
    title = f" {document.title}" if document.title else ""
    return encode_piece(tokenizer, f"\n\nDocument:{title}\n{document.text}")

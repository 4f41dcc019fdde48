"""Files of questions about documents: SQuAD, HotpotQA and a JSONL of one's own, read into one form."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.tasks.building.clean import says


class Document(NamedTuple):
    """A passage, with a title if it has one."""

    title: str
    text: str


class Question(NamedTuple):
    """A question, its right answers, and numbers of documents: `gold` answer it, `article` are those it came with."""

    name: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    article: tuple[int, ...]


class Questions(NamedTuple):
    """What a file holds; a document that stands in it several times is held once."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]


def file_sha256(path: str) -> str:
    """Hash of a file of questions. Raises ValueError if it cannot be read."""
    return hashlib.sha256(_bytes(path)).hexdigest()


@functools.lru_cache(maxsize=4)
def read_questions(path: str, sha256: str) -> Questions:
    """The questions of a file that has this hash.

    SQuAD v1.1 and v2.0 JSON (arXiv 1606.05250, 1806.03822; the answerable ones), HotpotQA JSON with its context
    (arXiv 1809.09600), and JSONL with lines {"question", "answers": [..], "document": text} or {.., "documents": [..]}.
    Left out are questions that are answered by yes or no, or name one of their answers: those are guessed, not read.
    Raises ValueError that names file and entry.
    """
    data = _bytes(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} has changed while it was in use: start again")
    shelf: Shelf = {}
    asked = list(
        _jsonl(path, data, shelf) if Path(path).suffix == ".jsonl" else _json(path, data, shelf)
    )
    kept = [question for question in asked if not _guessed(question)]
    if not kept:
        raise ValueError(
            f"{path} holds {len(asked)} questions, and none whose answer has to be read: not yes or "
            "no, not named in the question"
        )
    return Questions(tuple(shelf), tuple(kept))


Shelf = dict[Document, int]
"""Documents and their numbers."""


def _put(shelf: Shelf, documents: Sequence[Document]) -> tuple[int, ...]:
    return tuple(shelf.setdefault(document, len(shelf)) for document in documents)


@dataclass(frozen=True)
class _Entry:
    """A JSON value that knows where it stands, so that whatever is missing in it can be named."""

    where: str
    value: Any

    def __getitem__(self, key: str) -> "_Entry":
        if not isinstance(self.value, dict) or key not in self.value:
            raise ValueError(f'{self.where} has no "{key}"')
        return _Entry(f"{self.where}.{key}", self.value[key])

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def items(self) -> "list[_Entry]":
        if not isinstance(self.value, list):
            raise ValueError(f"{self.where} is no list")
        return [_Entry(f"{self.where}[{i}]", value) for i, value in enumerate(self.value)]

    def pair(self) -> "list[_Entry]":
        if len(items := self.items()) != 2:
            raise ValueError(f"{self.where} is no pair")
        return items

    def text(self, *, empty: bool = False) -> str:
        if not isinstance(self.value, str) or not (empty or self.value.strip()):
            raise ValueError(f"{self.where} is no text")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{self.where} holds half a character, no valid Unicode") from None
        return self.value.strip()


def _json(path: str, data: bytes, shelf: Shelf) -> Iterator[Question]:
    root = _Entry(f"{path}: $", _loads(path, data))
    if root.has("data"):
        return _squad(root, shelf)
    if isinstance(root.value, list):
        return _hotpot(root, shelf)
    raise ValueError(
        f'{path} is neither SQuAD (an object with "data") nor HotpotQA (a list): write questions '
        "of your own into a .jsonl file"
    )


def _squad(root: _Entry, shelf: Shelf) -> Iterator[Question]:
    for article in root["data"].items():
        title = article["title"].text(empty=True).replace("_", " ") if article.has("title") else ""
        paragraphs = article["paragraphs"].items()
        numbers = _put(
            shelf, [Document(title, paragraph["context"].text()) for paragraph in paragraphs]
        )
        for number, paragraph in zip(numbers, paragraphs, strict=True):
            for entry in paragraph["qas"].items():
                if not (entry.has("is_impossible") and entry["is_impossible"].value is True):
                    answers = [answer["text"] for answer in entry["answers"].items()]
                    yield _question(entry, entry["id"].text(), answers, (number,), numbers)


def _hotpot(root: _Entry, shelf: Shelf) -> Iterator[Question]:
    for entry in root.items():
        documents = []
        for paragraph in entry["context"].items():
            title, sentences = paragraph.pair()
            text = "".join(
                sentence.value for sentence in sentences.items() if sentence.text(empty=True)
            )
            documents.append(Document(title.text(), _Entry(sentences.where, text).text()))
        numbers = _put(shelf, documents)
        titles = {fact.pair()[0].text() for fact in entry["supporting_facts"].items()}
        gold = [
            n for n, document in zip(numbers, documents, strict=True) if document.title in titles
        ]
        if not titles or len(set(gold)) < len(titles):
            raise ValueError(
                f"{entry.where}.supporting_facts name documents that its context does not have"
            )
        yield _question(entry, entry["_id"].text(), [entry["answer"]], gold, numbers)


def _jsonl(path: str, data: bytes, shelf: Shelf) -> Iterator[Question]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}: $"
        entry = _Entry(where, _loads(f"{path}, line {number},", line))
        texts = entry["documents"].items() if entry.has("documents") else [entry["document"]]
        if not texts:
            raise ValueError(f"{where}.documents is empty")
        numbers = _put(shelf, [Document("", text.text()) for text in texts])
        yield _question(entry, f"line {number}", entry["answers"].items(), numbers, numbers)


def _question(
    entry: _Entry, name: str, answers: Sequence[_Entry], gold: Sequence[int], article: Sequence[int]
) -> Question:
    if not answers:
        raise ValueError(f"{entry.where} has no answer")
    texts = tuple(dict.fromkeys(answer.text() for answer in answers))
    return Question(
        name,
        entry["question"].text(),
        texts,
        tuple(dict.fromkeys(gold)),
        tuple(dict.fromkeys(article)),
    )


def _guessed(question: Question) -> bool:
    yes_or_no = any(answer.lower() in ("yes", "no") for answer in question.answers)
    return yes_or_no or says(question.text, question.answers)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise ValueError(f"{path} cannot be read as a file of questions ({error})") from None


def _loads(where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are no text
        raise ValueError(f"{where} is not JSON ({error})") from None

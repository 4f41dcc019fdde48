"""Files of questions about documents: SQuAD, HotpotQA and own JSONL files, read into one form."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.tasks.building.clean_text import mentions

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")


class Passage(NamedTuple):
    """A document that questions are about; its title may be empty."""

    title: str
    text: str


class FileQuestion(NamedTuple):
    """A question and its right answers.

    gold: numbers of the passages that answer it; article: numbers of those it came with.
    """

    name: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    article: tuple[int, ...]


class QuestionFile(NamedTuple):
    """The content of a file; a passage that occurs in it several times is held once."""

    passages: tuple[Passage, ...]
    questions: tuple[FileQuestion, ...]


def file_sha256(path: str) -> str:
    """The hash of a file of questions. Raises ValueError if it cannot be read."""
    return hashlib.sha256(_read_bytes(path)).hexdigest()


@functools.lru_cache(maxsize=4)
def read_questions(path: str, sha256: str) -> QuestionFile:
    """The questions of a file that has this hash.

    SQuAD v1.1 and v2.0 JSON (arXiv 1606.05250, 1806.03822; the answerable questions), HotpotQA JSON
    with its context (arXiv 1809.09600), and JSONL with lines
    {"question", "answers": [..], "document": text} or {.., "documents": [..]}. Questions that are
    answered by yes or no, or that mention one of their answers, are left out: those can be guessed.
    Raises ValueError that names the file and the entry.
    """
    data = _read_bytes(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} has changed while it was in use: start again")
    numbers: PassageNumbers = {}
    read = _read_jsonl if Path(path).suffix.lower() in JSON_LINES else _read_json
    questions = list(read(path, data, numbers))
    kept = [question for question in questions if not _can_be_guessed(question)]
    if not kept:
        raise ValueError(
            f"{path} holds {len(questions)} questions, and none whose answer has to be read: not "
            "yes or no, not named in the question"
        )
    return QuestionFile(tuple(numbers), tuple(kept))


PassageNumbers = dict[Passage, int]


def _number(numbers: PassageNumbers, passages: Sequence[Passage]) -> tuple[int, ...]:
    """The numbers of `passages`; new ones are added."""
    return tuple(numbers.setdefault(passage, len(numbers)) for passage in passages)


@dataclass(frozen=True)
class _Entry:
    """A JSON value and its location, so that an error can say what is missing and where."""

    location: str
    value: Any

    def __getitem__(self, key: str) -> "_Entry":
        if not self.has(key):
            raise ValueError(f'{self.location} has no "{key}"')
        return _Entry(f"{self.location}.{key}", self.value[key])

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def items(self) -> "list[_Entry]":
        if not isinstance(self.value, list):
            raise ValueError(f"{self.location} is not a list")
        return [_Entry(f"{self.location}[{i}]", value) for i, value in enumerate(self.value)]

    def pair(self) -> "list[_Entry]":
        items = self.items()
        if len(items) != 2:
            raise ValueError(f"{self.location} is not a pair")
        return items

    def text(self, *, empty: bool = False) -> str:
        if not isinstance(self.value, str) or not (empty or self.value.strip()):
            raise ValueError(f"{self.location} is not a text")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{self.location} holds half a surrogate pair") from None
        return self.value.strip()


def _read_json(path: str, data: bytes, numbers: PassageNumbers) -> Iterator[FileQuestion]:
    root = _Entry(f"{path}: $", _loads(path, data))
    if root.has("data"):
        return _read_squad(root, numbers)
    if isinstance(root.value, list):
        return _read_hotpot(root, numbers)
    raise ValueError(
        f'{path} is neither SQuAD (an object with "data") nor HotpotQA (a list): write your own '
        "questions into a .jsonl file"
    )


def _read_squad(root: _Entry, numbers: PassageNumbers) -> Iterator[FileQuestion]:
    for article in root["data"].items():
        title = article["title"].text(empty=True).replace("_", " ") if article.has("title") else ""
        paragraphs = article["paragraphs"].items()
        passages = [Passage(title, paragraph["context"].text()) for paragraph in paragraphs]
        article_numbers = _number(numbers, passages)
        for number, paragraph in zip(article_numbers, paragraphs, strict=True):
            for entry in paragraph["qas"].items():
                if entry.has("is_impossible") and entry["is_impossible"].value is True:
                    continue
                answers = [answer["text"] for answer in entry["answers"].items()]
                name = entry["id"].text()
                yield _question(entry, name, answers, gold=(number,), article=article_numbers)


def _read_hotpot(root: _Entry, numbers: PassageNumbers) -> Iterator[FileQuestion]:
    for entry in root.items():
        passages = []
        for paragraph in entry["context"].items():
            title, sentences = paragraph.pair()
            text = "".join(
                sentence.value for sentence in sentences.items() if sentence.text(empty=True)
            )
            passages.append(Passage(title.text(), _Entry(sentences.location, text).text()))
        article = _number(numbers, passages)
        titles = {fact.pair()[0].text() for fact in entry["supporting_facts"].items()}
        gold = [
            number
            for number, passage in zip(article, passages, strict=True)
            if passage.title in titles
        ]
        if not titles or len(set(gold)) < len(titles):
            raise ValueError(
                f"{entry.location}.supporting_facts name documents that its context does not have"
            )
        yield _question(entry, entry["_id"].text(), [entry["answer"]], gold=gold, article=article)


def _read_jsonl(path: str, data: bytes, numbers: PassageNumbers) -> Iterator[FileQuestion]:
    for line_number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        location = f"{path}, line {line_number}: $"
        entry = _Entry(location, _loads(f"{path}, line {line_number},", line))
        texts = entry["documents"].items() if entry.has("documents") else [entry["document"]]
        if not texts:
            raise ValueError(f"{location}.documents is empty")
        gold = _number(numbers, [Passage("", text.text()) for text in texts])
        name = f"line {line_number}"
        yield _question(entry, name, entry["answers"].items(), gold=gold, article=gold)


def _question(
    entry: _Entry,
    name: str,
    answers: Sequence[_Entry],
    *,
    gold: Sequence[int],
    article: Sequence[int],
) -> FileQuestion:
    if not answers:
        raise ValueError(f"{entry.location} has no answer")
    answer_texts = dict.fromkeys(answer.text() for answer in answers)
    return FileQuestion(
        name,
        entry["question"].text(),
        tuple(answer_texts),
        tuple(dict.fromkeys(gold)),
        tuple(dict.fromkeys(article)),
    )


def _can_be_guessed(question: FileQuestion) -> bool:
    is_yes_or_no = any(answer.lower() in ("yes", "no") for answer in question.answers)
    return is_yes_or_no or mentions(question.text, question.answers)


def _read_bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise ValueError(f"{path} cannot be read as a file of questions ({error})") from None


def _loads(location: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # also for bytes that are not text
        raise ValueError(f"{location} is not JSON ({error})") from None

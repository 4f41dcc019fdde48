"""Files of questions about documents: SQuAD, HotpotQA and own JSONL files, read into one form."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ctxext.tasks.building.clean_text import mentions
from ctxext.tasks.building.json_entries import JSON_LINES, Entry, loads, read_bytes


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


@functools.lru_cache(maxsize=4)
def read_questions(path: str, sha256: str) -> QuestionFile:
    """The questions of a file that has this hash.

    SQuAD v1.1 and v2.0 JSON (arXiv 1606.05250, 1806.03822; the answerable questions), HotpotQA JSON
    with its context (arXiv 1809.09600), and JSONL with lines
    {"question", "answers": [..], "document": text} or {.., "documents": [..]}. Questions that are
    answered by yes or no, or that mention one of their answers, are left out: those can be guessed.
    Raises ValueError that names the file and the entry.
    """
    data = read_bytes(path)
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


def _read_json(path: str, data: bytes, numbers: PassageNumbers) -> Iterator[FileQuestion]:
    root = Entry(f"{path}: $", loads(path, data))
    if root.has("data"):
        return _read_squad(root, numbers)
    if isinstance(root.value, list):
        return _read_hotpot(root, numbers)
    raise ValueError(
        f'{path} is neither SQuAD (an object with "data") nor HotpotQA (a list): write your own '
        "questions into a .jsonl file"
    )


def _read_squad(root: Entry, numbers: PassageNumbers) -> Iterator[FileQuestion]:
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


def _read_hotpot(root: Entry, numbers: PassageNumbers) -> Iterator[FileQuestion]:
    for entry in root.items():
        passages = []
        for paragraph in entry["context"].items():
            title, sentences = paragraph.pair()
            text = "".join(
                sentence.value for sentence in sentences.items() if sentence.text(empty=True)
            )
            passages.append(Passage(title.text(), Entry(sentences.location, text).text()))
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
        entry = Entry(location, loads(f"{path}, line {line_number},", line))
        texts = entry["documents"].items() if entry.has("documents") else [entry["document"]]
        if not texts:
            raise ValueError(f"{location}.documents is empty")
        gold = _number(numbers, [Passage("", text.text()) for text in texts])
        name = f"line {line_number}"
        yield _question(entry, name, entry["answers"].items(), gold=gold, article=gold)


def _question(
    entry: Entry,
    name: str,
    answers: Sequence[Entry],
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

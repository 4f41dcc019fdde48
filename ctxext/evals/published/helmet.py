"""HELMET's own files (arXiv 2410.02694): passages with a question, and passages to rank."""

from collections.abc import Iterator
from pathlib import Path

from ctxext.evals.published.sample import PublishedSample, read_entries
from ctxext.tasks.building.json_entries import Entry

MAX_NEW_TOKENS = 20
TOKENS_PER_ID = 10
MAX_GRADE = 100
OTHER_FILES = {
    "docs": "is of HELMET's citations (ALCE), which another model judges: leave its file out",
    "document": "is of NarrativeQA, which GPT-4 judges: leave its file out",
    "sources": "is of Multi-LexSum: --evals helmet:summ reads its file",
    "demos": "is of json_kv: --evals helmet:recall reads its file",
    "outputs": "is of RULER: --evals helmet:recall reads its file",
    "options": "is of InfiniteBench: --evals infinitebench reads its file",
}
"""Keys that only files of other tasks have, and what is said of them."""


def helmet(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of a file: `answers` make it one of questions, `qid` one to rank.

    Questions (NQ, TriviaQA, HotpotQA, PopQA) are scored by substring exact match, rankings of MS
    MARCO by NDCG@10. Raises ValueError that names the file and the line.
    """
    for number, entry in read_entries(path, limit):
        for key, reason in OTHER_FILES.items():
            if entry.has(key) and not entry.has("ctxs"):
                raise ValueError(f"{entry.location} {reason}")
        passages = entry["ctxs"].items()
        if not passages:
            raise ValueError(f"{entry.location}.ctxs is empty")
        if entry.has("answers"):
            yield _question(path, number, entry, passages)
        else:
            yield _ranking(path, number, entry, passages)


def _question(path: Path, number: str, entry: Entry, passages: list[Entry]) -> PublishedSample:
    documents = [_document(passage) for passage in passages]
    answers = entry["answers"].texts()
    question = entry["question"].text()
    return PublishedSample(
        dataset=path.stem,
        place=number,
        prompt="\n\n".join([*documents, f"Question: {question}\nAnswer:"]),
        answer=answers[0],
        references=answers,
        metric="helmet:contains",
        max_new_tokens=MAX_NEW_TOKENS,
        stop_at_newline=True,
        facts={"wording": "ours", "passages": len(passages)},
    )


def _ranking(path: Path, number: str, entry: Entry, passages: list[Entry]) -> PublishedSample:
    grades: dict[str, int] = {}
    documents = []
    for passage in passages:
        name = passage["id"].text()
        grade = passage["label"].whole_number()
        if not name.isdigit() or not 0 <= grade <= MAX_GRADE:
            raise ValueError(f"{passage.location} needs digits as its id and a label from 0 on")
        grades[name] = grade
        documents.append(f"[ID: {name}] {_document(passage)}")
    if not any(grades.values()):
        raise ValueError(f"{entry.location}.ctxs has no relevant passage")
    best = sorted(grades, key=lambda name: -grades[name])[:10]
    query = entry["query"].text()
    return PublishedSample(
        dataset=path.stem,
        place=number,
        prompt="\n\n".join([*documents, f"Query: {query}\nRanking:"]),
        answer=" > ".join(best),
        references=[name for name, grade in grades.items() for _ in range(grade)],
        metric="ndcg@10",
        max_new_tokens=10 * TOKENS_PER_ID,
        stop_at_newline=True,
        facts={"wording": "ours", "passages": len(passages)},
    )


def _document(passage: Entry) -> str:
    title = passage["title"].text(empty=True) if passage.has("title") else ""
    return f"Document: {title}\n{passage['text'].text(empty=True)}"

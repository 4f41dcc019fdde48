"""HELMET's summaries (arXiv 2410.02694): books of InfiniteBench and lawsuits of Multi-LexSum.

HELMET's headline is the judgement of GPT-4; ROUGE-Lsum is among what it reports next to it.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from ctxext.evals.published.sample import PublishedSample, check_references, read_entries
from ctxext.tasks.building.json_entries import Entry
from ctxext.tasks.building.rouge import has_stemmer

BOOKS = "longbook_sum_eng"
BOOK_TOKENS = 1200
LAWSUIT_TOKENS = 400


def helmet_summ(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of `longbook_sum_eng.jsonl`, or of Multi-LexSum's lines with their sources.

    Lawsuits without a short summary are left out, as published. Raises ValueError that names the
    file and the line, and if the package that finds stems of words is not installed.
    """
    if not has_stemmer():
        raise ValueError(
            f"{path} is scored by the stems of words, which needs the package nltk: "
            "pip install 'ctxext[benchmarks]'"
        )
    summarised = (
        (number, entry)
        for number, entry in read_entries(path)
        if not (entry.has("sources") and entry["summary/short"].value is None)
    )
    for number, entry in itertools.islice(summarised, limit):
        if entry.has("sources"):
            yield _lawsuit(number, entry)
        elif path.stem == BOOKS:
            yield _book(number, entry)
        else:
            raise ValueError(
                f'{entry.location} has no "sources", as Multi-LexSum has, and the file is not '
                f"InfiniteBench's {BOOKS}{path.suffix}"
            )


def _lawsuit(number: str, entry: Entry) -> PublishedSample:
    texts = [source.text(empty=True) for source in entry["sources"].items()]
    references = [entry["summary/short"].text()]
    check_references(entry, references)
    return PublishedSample(
        dataset="multi_lexsum",
        place=number,
        prompt="\n\n".join([*texts, "Summary:"]),
        answer=references[0],
        references=references,
        metric="helmet:lawsuit-rouge-lsum",
        max_new_tokens=LAWSUIT_TOKENS,
        facts={"wording": "ours"},
    )


def _book(number: str, entry: Entry) -> PublishedSample:
    references = entry["answer"].texts()
    check_references(entry, references)
    return PublishedSample(
        dataset="infbench_sum",
        place=number,
        prompt=f"{entry['context'].text()}\n\nSummary:",
        answer=references[0],
        references=references,
        metric="helmet:book-rouge-lsum",
        max_new_tokens=BOOK_TOKENS,
        facts={"wording": "ours"},
    )

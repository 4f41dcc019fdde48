"""HELMET's summaries (arXiv 2410.02694): books of InfiniteBench and lawsuits of Multi-LexSum.

HELMET's headline is the judgement of GPT-4; ROUGE-Lsum is what it reports next to it.
"""

from collections.abc import Iterator
from pathlib import Path

from ctxext.evals.published.sample import PublishedSample, check_summary, read_entries
from ctxext.tasks.building.rouge import has_stemmer

BOOK_TOKENS = 1200
CASE_TOKENS = 400


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
    for number, entry in read_entries(path, limit):
        if entry.has("sources"):
            short = entry["summary/short"]
            if short.value is None:
                continue
            name = "multi_lexsum"
            texts = "\n\n".join(source.text(empty=True) for source in entry["sources"].items())
            references = [short.text()]
        else:
            name = "infbench_sum"
            texts = entry["context"].text()
            references = entry["answer"].texts()
        check_summary(entry, references)
        yield PublishedSample(
            dataset=name,
            place=number,
            prompt=f"{texts}\n\nSummary:",
            answer=references[0],
            references=references,
            metric="helmet:rouge-lsum",
            max_new_tokens=CASE_TOKENS if name == "multi_lexsum" else BOOK_TOKENS,
            facts={"wording": "ours"},
        )

"""LongBench (arXiv 2308.14508): JSON lines with input, context, answers, dataset, all_classes."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ctxext.evals.published.sample import PublishedSample, check_references, fill, read_entries
from ctxext.tasks.building.chinese_words import has_segmenter
from ctxext.tasks.building.json_entries import Entry, loads, read_bytes
from ctxext.tasks.building.scores import Metric

PROMPTS = "dataset2prompt.json"
"""The authors' file of prompts, in whose wording is asked where it is at hand."""
QUESTION = "{context}\n\nQuestion: {input}\nAnswer:"
SUMMARY = "{context}\n\nSummary:"
CHINESE_QUESTION = "{context}\n\n问题：{input}\n答案："
ONE_LINE = ("longbench:f1", "longbench:chinese-f1", "longbench:numbers")
"""Measures of answers that have no second line."""
CHINESE_WORDS = ("longbench:chinese-f1", "longbench:chinese-rouge-l")
"""Measures that need a Chinese segmentation."""
ROUGE = ("longbench:rouge-l", "longbench:chinese-rouge-l")


class _Set(NamedTuple):
    """The measure of a set, its new tokens, and our prompt."""

    metric: Metric
    max_new_tokens: int
    prompt: str = QUESTION
    first_line: bool = False
    """Whether only the first line that is written counts, as published."""

    @property
    def answer_is_a_line(self) -> bool:
        """Whether right answers have no second line, which base models write after them."""
        return self.first_line or self.metric in ONE_LINE


SETS = {
    "narrativeqa": _Set("longbench:f1", 128),
    "qasper": _Set("longbench:f1", 128),
    "multifieldqa_en": _Set("longbench:f1", 64),
    "hotpotqa": _Set("longbench:f1", 32),
    "2wikimqa": _Set("longbench:f1", 32),
    "musique": _Set("longbench:f1", 32),
    "gov_report": _Set("longbench:rouge-l", 512, SUMMARY),
    "qmsum": _Set("longbench:rouge-l", 512),
    "multi_news": _Set("longbench:rouge-l", 512, SUMMARY),
    "trec": _Set("longbench:classes", 64, "{context}\n{input}", first_line=True),
    "triviaqa": _Set("longbench:f1", 32, "{context}\n\n{input}", first_line=True),
    "samsum": _Set("longbench:rouge-l", 128, "{context}\n\n{input}", first_line=True),
    "passage_count": _Set(
        "longbench:numbers", 32, "{context}\n\nThe number of different paragraphs is"
    ),
    "passage_retrieval_en": _Set(
        "longbench:numbers",
        32,
        "{context}\n\nSummary of one of these paragraphs: {input}\n\nIt is a summary of",
    ),
    "lcc": _Set("longbench:code", 64, "{context}"),
    "repobench-p": _Set("longbench:code", 64, "{context}{input}"),
    "multifieldqa_zh": _Set("longbench:chinese-f1", 64, CHINESE_QUESTION),
    "dureader": _Set("longbench:chinese-rouge-l", 128, CHINESE_QUESTION),
    "vcsum": _Set("longbench:chinese-rouge-l", 512, "{context}\n\n总结："),
    "lsht": _Set("longbench:classes", 64, "{context}\n{input}", first_line=True),
    "passage_retrieval_zh": _Set(
        "longbench:numbers", 32, "{context}\n\n其中一段的摘要：{input}\n\n这段摘要出自"
    ),
}


def longbench(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of a file, in the authors' wording if `dataset2prompt.json` is next to it.

    It is looked for in the directory of the file, the one above, and `config` in both. In our
    wording, which is for base models, only the first line counts of an answer that is one. Raises
    ValueError that names the file and the line.
    """
    prompts = _published_prompts(path.parent)
    for number, entry in read_entries(path, limit):
        name = entry["dataset"].text().removesuffix("_e")
        if name not in SETS:
            raise ValueError(
                f"{entry.location}.dataset is {name!r}, not a set of LongBench: {', '.join(SETS)}"
            )
        chosen = SETS[name]
        if chosen.metric in CHINESE_WORDS and not has_segmenter():
            raise ValueError(
                f"{entry.location}: {name} is scored by Chinese words, which needs the package "
                "jieba: pip install 'ctxext[benchmarks]', or leave its file out"
            )
        values = {
            "{context}": entry["context"].text(empty=True),
            "{input}": entry["input"].text(empty=True),
        }
        template = prompts[name].text() if name in prompts else chosen.prompt
        answers = entry["answers"].texts()
        if chosen.metric == "longbench:numbers" and not all(
            any(map(str.isdigit, a)) for a in answers
        ):
            raise ValueError(f"{entry.location}.answers has no number")
        if chosen.metric in ROUGE:
            check_references(entry, answers)
        yield PublishedSample(
            dataset=name,
            place=number,
            prompt=fill(template, values),
            answer=answers[0],
            references=answers,
            metric=chosen.metric,
            max_new_tokens=chosen.max_new_tokens,
            labels=_classes(entry),
            stop_at_newline=chosen.first_line if name in prompts else chosen.answer_is_a_line,
            facts={"wording": "LongBench's" if name in prompts else "ours"},
        )


def _classes(entry: Entry) -> list[str]:
    """The names of all classes; sets without classes have null."""
    if not entry.has("all_classes") or entry["all_classes"].value is None:
        return []
    return [item.text() for item in entry["all_classes"].items()]


def _published_prompts(folder: Path) -> dict[str, Entry]:
    for place in (folder, folder / "config", folder.parent, folder.parent / "config"):
        if (place / PROMPTS).is_file():
            return _read_prompts(place / PROMPTS)
    return {}


@functools.cache
def _read_prompts(path: Path) -> dict[str, Entry]:
    prompts = Entry(f"{path}: $", loads(str(path), read_bytes(str(path))))
    return {name: prompts[name] for name in SETS if prompts.has(name)}

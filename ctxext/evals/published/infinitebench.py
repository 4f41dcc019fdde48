"""InfiniteBench (arXiv 2402.13718): JSON lines with context, input, answer and options."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ctxext.evals.published.sample import (
    PublishedSample,
    check_references,
    fill,
    read_entries,
)
from ctxext.tasks.building.json_entries import Entry
from ctxext.tasks.building.scores import Metric

OPTIONS = "A. {A}\nB. {B}\nC. {C}\nD. {D}"


class _Set(NamedTuple):
    metric: Metric
    max_new_tokens: int
    prompt: str


SETS = {
    "passkey": _Set("infinitebench:number", 6, "{context}\n\n{input}\n\nThe pass key is"),
    "number_string": _Set(
        "infinitebench:number", 12, "{context}\n\n{input}\n\nThe sequence of digits is"
    ),
    "kv_retrieval": _Set("infinitebench:word", 50, "{context}\n\n{input}\n\nThe value is"),
    "longdialogue_qa_eng": _Set(
        "infinitebench:name", 40, "{context}\n\nThe name in place of $$MASK$$ is"
    ),
    "longbook_choice_eng": _Set(
        "infinitebench:choice",
        40,
        f"{{context}}\n\nQuestion: {{input}}\n{OPTIONS}\n\nThe right letter is",
    ),
    "longbook_sum_eng": _Set("infinitebench:rouge-lsum", 1200, "{context}\n\nSummary:"),
    "longbook_qa_eng": _Set("longbench:f1", 40, "{context}\n\nQuestion: {input}\nAnswer:"),
    "longbook_qa_chn": _Set("infinitebench:characters", 40, "{context}\n\n问题：{input}\n答案："),
    "math_find": _Set("infinitebench:math-find", 3, "{context}\n\n{input}\n\nThe number is"),
    "code_run": _Set("infinitebench:code-run", 5, "{context}\n\nThe value of {call} is"),
    "code_debug": _Set(
        "infinitebench:code-debug",
        5,
        f"{{context}}\n\nOne of these functions has an error that makes it fail:\n{OPTIONS}\n\n"
        "The letter of that function is:",
    ),
}
NOT_SUPPORTED = {"math_calc": "asks for 30,000 new tokens"}


def infinitebench(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of a file that is named after its set, such as `kv_retrieval.jsonl`.

    The wording is ours, for base models; so only the first line that is written counts, but of a
    summary all. Raises ValueError that names the file and the line.
    """
    name = path.stem
    if name in NOT_SUPPORTED:
        raise ValueError(f"{path}: {name} {NOT_SUPPORTED[name]}, which is not supported")
    if name not in SETS:
        raise ValueError(f"{path} is not named after a set of InfiniteBench: {', '.join(SETS)}")
    chosen = SETS[name]
    for number, entry in read_entries(path, limit):
        references = _references(entry, name)
        answer = references[0]
        values = {
            "{context}": entry["context"].text(),
            "{input}": entry["input"].text(empty=True) if entry.has("input") else "",
        }
        choices: list[str] = []
        if name in ("longbook_choice_eng", "code_debug"):
            options = [option.text() for option in entry["options"].items()]
            if len(options) != 4 or answer not in options:
                raise ValueError(f"{entry.location}.options are not four with the answer in them")
            values |= {f"{{{letter}}}": text for letter, text in zip("ABCD", options, strict=True)}
            letter = "ABCD"[options.index(answer)]
            references = [answer, letter]
            choices = [other for other in "ABCD" if other != letter]
            answer = letter
        if name == "code_run":
            calls = re.findall(r"func_[0-9]+\(-?[0-9]+\)", values["{input}"])
            if not calls:
                raise ValueError(f"{entry.location}.input calls no function")
            values["{call}"] = calls[0]
        if name == "longbook_sum_eng":
            check_references(entry, references)
        yield PublishedSample(
            dataset=name,
            place=number,
            prompt=fill(chosen.prompt, values),
            answer=answer,
            references=references,
            metric=chosen.metric,
            max_new_tokens=chosen.max_new_tokens,
            choices=choices,
            stop_at_newline=name != "longbook_sum_eng",
            facts={"wording": "ours"},
        )


def _references(entry: Entry, name: str) -> list[str]:
    """The right answers as texts; numbers are numbers in some sets."""
    answer = entry["answer"]
    items = answer.items() if isinstance(answer.value, list) else [answer]
    if not items:
        raise ValueError(f"{answer.location} is empty")
    if name in ("math_find", "code_run"):
        return [item.number_text() for item in items]
    return [item.text() for item in items]

"""HELMET's recall (arXiv 2410.02694): its files of key-value pairs and of RULER's tasks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ctxext.evals.published.sample import PublishedSample, fill, read_entries
from ctxext.tasks.building.json_entries import Entry
from ctxext.tasks.building.scores import Metric

PAIR_TOKENS = 100
SHOTS = 2
"""Pairs that are asked about and answered before the question."""
NEEDLE = "{context}\n\nThe special magic {type_needle_v} for {query} is:"
NEEDLES = "{context}\n\nThe special magic {type_needle_v} for {query} are:"


class _Task(NamedTuple):
    """A task of RULER: its new tokens, our prompt, and its measure."""

    max_new_tokens: int
    prompt: str
    metric: Metric = "all"


TASKS = {
    "niah_single_1": _Task(50, NEEDLE),
    "niah_single_2": _Task(50, NEEDLE),
    "niah_single_3": _Task(50, NEEDLE),
    "niah_multikey_1": _Task(50, NEEDLE),
    "niah_multikey_2": _Task(50, NEEDLE),
    "niah_multikey_3": _Task(100, NEEDLE),
    "niah_multiquery": _Task(100, NEEDLES),
    "niah_multivalue": _Task(50, NEEDLES),
    "cwe": _Task(100, "{example}{context}\n\nThe 10 words that occur most often are:"),
    "fwe": _Task(50, "{context}\n\nThe three coded words that occur most often are:"),
    "vt": _Task(50, "{example}{context}\n\nThe {num_v} variables that have the value {query} are:"),
    "qa_1": _Task(50, "{context}\n\nQuestion: {query}\nAnswer:", "helmet:contains"),
    "qa_2": _Task(50, "{context}\n\nQuestion: {query}\nAnswer:", "helmet:contains"),
}
"""By the name of the directory of a file, as in HELMET's `data/ruler`."""


def helmet_recall(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of a file of `json_kv`, or of one in a directory named after a task of RULER.

    They are chosen by their length and never cut. Raises ValueError that names the file and the
    line.
    """
    for number, entry in read_entries(path, limit):
        if entry.has("demos"):
            yield _pairs(number, entry)
        else:
            yield _ruler(path, number, entry)


def _pairs(number: str, entry: Entry) -> PublishedSample:
    demonstrations = entry["demos"].items()[:SHOTS]
    pairs = [[text.text() for text in demonstration.pair()] for demonstration in demonstrations]
    answered = [f"Key: {key}\nCorresponding value: {value}" for key, value in pairs]
    question = f"Key: {entry['question'].text()}\nCorresponding value:"
    facts = {"pairs": entry["num_kvs"].whole_number()} if entry.has("num_kvs") else {}
    return _never_cut(
        dataset="json_kv",
        place=number,
        prompt="\n\n".join([entry["context"].text(), *answered, question]),
        references=entry["answer"].texts(),
        metric="helmet:contains",
        max_new_tokens=PAIR_TOKENS,
        facts=facts,
    )


def _ruler(path: Path, number: str, entry: Entry) -> PublishedSample:
    name = path.absolute().parent.name
    if name not in TASKS:
        raise ValueError(
            f'{entry.location} has no "demos", as json_kv has, and the directory of the file is '
            f"not named after a task of RULER: {', '.join(TASKS)}"
        )
    task = TASKS[name]
    example = entry["example"].text(empty=True) if entry.has("example") else ""
    values = {
        "{context}": entry["context"].text(),
        "{example}": f"{example}\n\n" if example else "",
    }
    if "{query}" in task.prompt:
        values["{query}"] = entry["query" if entry.has("query") else "question"].text()
    if "{type_needle_v}" in task.prompt:
        values["{type_needle_v}"] = entry["type_needle_v"].text()
    if "{num_v}" in task.prompt:
        values["{num_v}"] = entry["num_v"].number_text()
    return _never_cut(
        dataset=name,
        place=number,
        prompt=fill(task.prompt, values),
        references=entry["answer" if entry.has("answer") else "outputs"].texts(),
        metric=task.metric,
        max_new_tokens=task.max_new_tokens,
        facts={},
    )


def _never_cut(
    *,
    dataset: str,
    place: str,
    prompt: str,
    references: list[str],
    metric: Metric,
    max_new_tokens: int,
    facts: Mapping[str, object],
) -> PublishedSample:
    """All references are wanted where the score is their share, else the first will do."""
    return PublishedSample(
        dataset=dataset,
        place=place,
        prompt=prompt,
        answer=", ".join(references) if metric == "all" else references[0],
        references=references,
        metric=metric,
        max_new_tokens=max_new_tokens,
        may_cut=False,
        facts={"wording": "ours", **facts},
    )

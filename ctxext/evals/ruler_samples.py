"""RULER's own samples (arXiv 2404.06654), from the JSONL files that its scripts write; no text of it is kept here."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ctxext.evals.base import Eval, Model, batches, fingerprint
from ctxext.evals.retrieval import nearest_quarter
from ctxext.evals.scoring import mark
from ctxext.tasks import Example
from ctxext.tasks.base import bos_prefix, encode_fragment
from ctxext.tasks.building.scores import Metric

FAMILIES: dict[str, tuple[Metric, int]] = {
    "niah": ("all", 128),
    "vt": ("all", 30),
    "cwe": ("all", 120),
    "fwe": ("all", 50),
    "qa": ("any", 32),
}
"""How RULER scores a task, by the first part of its name, and how many tokens it lets a model write."""


class Sample(NamedTuple):
    """A line of a file. `place`, the file's hash and the line's number, is unique; the `index` in it is not."""

    item: str
    task: str
    place: str
    prompt: str
    references: tuple[str, ...]
    length: int | None
    """What the file says: tokens by the tokenizer it was made with, room for the answer included."""


@dataclass(frozen=True)
class Samples(Eval):
    """The samples of a file `<task>.jsonl` or `<task>/<subset>.jsonl`, or of all such files in a directory.

    The prompt is `input` and `answer_prefix` behind BOS; greedy decoding of as many tokens as RULER allows, scored as
    RULER does. seq_len: the nominal length, which no sample says itself; a row says the tokens that it really takes
    (BOS and room included) and the `excess` over the nominal length: nothing is ever cut. variant: which of the
    benchmarks called RULER wrote the files; their numbers are not comparable. n: the first samples of each file.
    The teacher-forced answer is the first reference, or all of them joined by commas where all are wanted.
    Where a needle is known (niah) a row has `depth`, `distance` and `needles`, the spans of the answers' values.
    There are no controls: what a sample would be without its needle only its generator could say.
    Raises ValueError for files of other tasks and for lines that are no samples.
    """

    name: ClassVar[str] = "samples"
    path: str
    seq_len: int
    variant: str
    n: int | None = None
    batch_tokens: int = 16_384

    def items(self) -> list[str]:
        """`<task>/<fingerprint of variant and task>/<nominal length>/<file hash>-<line>`."""
        return [sample.item for sample in self._samples()]

    def rows(self, lm: Model, items: Collection[str]) -> Iterator[dict[str, Any]]:
        names = set(items)
        chosen: dict[str, list[tuple[Sample, Example]]] = {}
        for sample in self._samples():
            if sample.item in names:
                chosen.setdefault(sample.task, []).append((sample, _example(lm.tokenizer, sample)))
        for asked in chosen.values():  # a task at a time: all its answers have the same room
            asked.sort(key=lambda x: len(x[1].prompt))
            for batch in batches(asked, max(1, self.batch_tokens // len(asked[-1][1].prompt))):
                marks = mark(lm, [[example] for _, example in batch])
                for (sample, example), (marked,) in zip(batch, marks, strict=True):
                    yield self._row(sample, example) | marked

    def examples(self, tokenizer: Any) -> Iterator[Example]:
        """Every question, in order."""
        return (_example(tokenizer, sample) for sample in self._samples())

    def _row(self, sample: Sample, example: Example) -> dict[str, Any]:
        tokens = len(example.prompt) + example.max_new_tokens
        depth = {"depth": nearest_quarter(example.depth), "depth_achieved": example.depth}
        return {
            "eval": self.name,
            "item": sample.item,
            "task": {"name": sample.task, "variant": self.variant},
            "label": f"{self.variant}/{sample.task}",
            "suite": self.variant,
            "condition": "needle",
            "seq_len": self.seq_len,
            "tokens": tokens,
            "excess": max(0, tokens - self.seq_len),
            "stated_tokens": sample.length,
            "prompt_sha256": hashlib.sha256(example.prompt.astype("<i4").tobytes()).hexdigest(),
            "gold": example.answer.tolist(),
            "references": list(sample.references),
            "document": sample.place,  # the unit of chance
            **(depth if example.meta["needles"] else {}),
            **example.meta,
        }

    def _samples(self) -> Iterator[Sample]:
        root = Path(self.path).expanduser()
        files = sorted(root.rglob("*.jsonl")) if root.is_dir() else [root]
        if not files:
            raise ValueError(
                f"{root} holds no .jsonl file: give a directory or file that RULER's scripts wrote"
            )
        for file in files:
            task = next(
                (name for name in (file.stem, file.parent.name) if name.split("_")[0] in FAMILIES),
                None,
            )
            if task is None:
                raise ValueError(
                    f"{file} is not named after a task of RULER (such as niah_single_1, vt, qa_1), nor is "
                    "its directory: its scoring is not known"
                )
            yield from self._lines(file, task)

    def _lines(self, file: Path, task: str) -> Iterator[Sample]:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ValueError(f"samples {file} cannot be read ({error.strerror})") from error
        digest, settings = hashlib.sha256(data).hexdigest()[:8], fingerprint(self.variant, task)
        lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        for number, line in lines[: self.n]:
            place = f"{digest}-{number}"
            try:
                row = json.loads(line)
                prompt, references = row["input"] + row.get("answer_prefix", ""), row["outputs"]
                if not references or not all(
                    isinstance(reference, str) for reference in references
                ):
                    raise ValueError("outputs must be texts, at least one")
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{file}, line {number}, is no sample of RULER: {error}") from None
            item = f"{task}/{settings}/{self.seq_len}/{place}"
            yield Sample(item, task, place, prompt, tuple(references), row.get("length"))


def _example(tokenizer: Any, sample: Sample) -> Example:
    metric, max_new_tokens = FAMILIES[sample.task.split("_")[0]]
    text, head = sample.prompt, bos_prefix(tokenizer)
    prompt = np.asarray(head + tokenizer.encode(text), np.int32)
    answer = ", ".join(sample.references) if metric == "all" else sample.references[0]
    ids = encode_fragment(tokenizer, answer if text[-1:].isspace() else f" {answer}")
    needles: list[list[int]] = []
    if sample.task.startswith("niah") and all(
        text.count(reference) == 1 for reference in sample.references
    ):
        for start, size in sorted(
            (text.index(reference), len(reference)) for reference in sample.references
        ):
            before, after = (
                len(head + tokenizer.encode(text[:end])) for end in (start, start + size)
            )
            needles.append([before, after - before])
    distances = [len(prompt) - start for start, _ in needles]
    known = {"distance": max(distances), "distances": distances} if needles else {}
    return Example(
        prompt,
        np.asarray(ids, np.int32),
        needles[0][0] / len(prompt) if needles else 0.0,
        {"needles": needles, **known, "haystack": []},
        max_new_tokens,
        metric=metric,
        references=sample.references,
    )


def table(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """RULER's numbers from the rows of one model: an entry per variant, nominal length and task, in order.

    score: the mean, percent; tokens: least, median and most that the samples really take; excess: how many take more
    than the nominal length. The benchmark's total at a length is the mean of `score` over its 13 tasks.
    """
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"]["variant"], row["seq_len"], row["task"]["name"]), []).append(
            row
        )
    out = []
    for (variant, seq_len, task), found in groups.items():
        tokens = [row["tokens"] for row in found]
        out.append(
            {
                "variant": variant,
                "seq_len": seq_len,
                "task": task,
                "n": len(found),
                "score": 100 * sum(row["score"] for row in found) / len(found),
                "tokens": [min(tokens), float(np.median(tokens)), max(tokens)],
                "excess": sum(row["excess"] > 0 for row in found),
            }
        )
    return out

"""RULER's own samples (arXiv 2404.06654), from the JSONL files that its scripts write.

No text of the benchmark is kept here.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ctxext.evals import answers
from ctxext.evals.base import Eval, Model, batches, fingerprint
from ctxext.evals.budget import Budget
from ctxext.evals.record import AnswerRecord, AnswerScores, EvaluatedModel, Measurement
from ctxext.evals.ruler import RULER_FAMILIES
from ctxext.tasks import Example
from ctxext.tasks.base import bos_prefix, encode_fragment


class Sample(NamedTuple):
    """One line of a file."""

    item: str
    task: str
    settings: str
    place: str
    """Hash of the file and number of the line, which are unique; the sample's own index is not."""
    prompt: str
    references: tuple[str, ...]
    stated_tokens: int | None
    """Tokens by the tokenizer that the file was made with, with the space for the answer."""


@dataclass(frozen=True)
class Samples(Eval):
    """The samples of a file `<task>.jsonl` or `<task>/<subset>.jsonl`, or of all in a directory.

    The prompt is `input` and `answer_prefix` after BOS. Decoding is greedy, of as many tokens as
    RULER allows, and scored as RULER does. The teacher-forced answer is the first reference, or
    all of them joined by commas where all are wanted. Nothing is ever cut: records say how many
    tokens a sample really takes. Where the needles are known (niah), they also say where they are.
    There are no controls: only RULER's generator could make them.

    seq_len: the nominal length, which samples do not say. variant: which of the benchmarks called
    RULER wrote the files; their numbers are not comparable. n: read only the first samples of each
    file.

    Raises ValueError for files of other tasks and for lines that are not samples.
    """

    name: ClassVar[str] = "samples"
    continues_prompts: ClassVar[bool] = True
    path: str
    """A file, or a directory of files."""
    seq_len: int
    """The nominal length, which samples do not state."""
    variant: str
    """Which of the benchmarks called RULER wrote the files; numbers of different ones are not
    comparable."""
    n: int | None = None
    """Only the first samples of each file; None for all."""
    batch_tokens: int = 16_384

    def _protocol(self) -> dict[str, Any]:
        return {"variant": self.variant}  # and the task, which each file names

    def items(self) -> list[str]:
        """`<task>/<fingerprint of variant and task>/<nominal length>/<file hash>-<line>`."""
        return [sample.item for sample in self._samples()]

    def within(self, budget: Budget) -> "Samples":
        n = budget.per_ruler_task
        return dataclasses.replace(self, n=n if self.n is None else min(self.n, n))

    def measurements(self) -> list[Measurement]:
        tasks = dict.fromkeys(sample.task for sample in self._samples())
        return [Measurement(task, self.seq_len, "accuracy") for task in tasks]

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[AnswerRecord]:
        names = set(items)
        by_task: dict[str, list[tuple[Sample, Example]]] = {}
        for sample in self._samples():
            if sample.item in names:
                example = _example(lm.tokenizer, sample)
                by_task.setdefault(sample.task, []).append((sample, example))
        for chosen in by_task.values():  # answers of one task have equally many tokens
            chosen.sort(key=lambda pair: len(pair[1].prompt))
            longest = len(chosen[-1][1].prompt)
            for batch in batches(chosen, max(1, self.batch_tokens // longest)):
                scored = answers.score_answers(lm, [[example] for _, example in batch])
                for (sample, example), (scores,) in zip(batch, scored, strict=True):
                    yield self._record(sample, example, scores, model)

    def examples(self, tokenizer: Any) -> Iterator[Example]:
        """Every question, in order."""
        return (_example(tokenizer, sample) for sample in self._samples())

    def _record(
        self, sample: Sample, example: Example, scores: AnswerScores, model: EvaluatedModel
    ) -> AnswerRecord:
        has_depth = bool(example.meta["needles"])
        return AnswerRecord(
            model=model,
            evaluation=self.name,
            item=sample.item,
            settings=sample.settings,
            protocol=self.protocol,
            seq_len=self.seq_len,
            cluster=answers.cluster(example, sample.item),
            facts={
                "stated_tokens": sample.stated_tokens,
                "references": list(sample.references),
                **answers.facts(example),
            },
            question=answers.question(
                example,
                task=sample.task,
                fields={"variant": self.variant},
                needle_item=sample.item,
                depth=answers.nearest_quarter(example.depth) if has_depth else None,
                suite=self.variant,
                label=sample.task,
            ),
            scores=scores,
        )

    def _samples(self) -> Iterator[Sample]:
        root = Path(self.path).expanduser()
        files = sorted(root.rglob("*.jsonl")) if root.is_dir() else [root]
        if not files:
            raise ValueError(
                f"{root} holds no .jsonl file: give a directory or file that RULER's scripts wrote"
            )
        for file in files:
            names = (file.stem, file.parent.name)
            task = next((name for name in names if _family(name) in RULER_FAMILIES), None)
            if task is None:
                raise ValueError(
                    f"{file} is not named after a task of RULER (such as niah_single_1, vt, "
                    "qa_1), nor is its directory, so that its scoring is not known"
                )
            yield from self._lines(file, task)

    def _lines(self, file: Path, task: str) -> Iterator[Sample]:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ValueError(f"samples {file} cannot be read ({error.strerror})") from error
        digest = hashlib.sha256(data).hexdigest()[:8]
        settings = fingerprint(self.variant, task)
        lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        for number, line in lines[: self.n]:
            place = f"{digest}-{number}"
            try:
                entry = json.loads(line)
                prompt = entry["input"] + entry.get("answer_prefix", "")
                references = entry["outputs"]
                if not references or not all(isinstance(text, str) for text in references):
                    raise ValueError("outputs must be texts, at least one")
                "".join([prompt, *references]).encode()  # half a surrogate pair is no character
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{file}, line {number}, is not a sample of RULER: {error}"
                ) from None
            yield Sample(
                item=f"{task}/{settings}/{self.seq_len}/{place}",
                task=task,
                settings=settings,
                place=place,
                prompt=prompt,
                references=tuple(references),
                stated_tokens=entry.get("length"),
            )


def _family(task: str) -> str:
    return task.partition("_")[0]


def _example(tokenizer: Any, sample: Sample) -> Example:
    metric, max_new_tokens, _ = RULER_FAMILIES[_family(sample.task)]
    prompt = np.asarray(bos_prefix(tokenizer) + tokenizer.encode(sample.prompt), np.int32)
    answer = ", ".join(sample.references) if metric == "all" else sample.references[0]
    ids = encode_fragment(tokenizer, answer if sample.prompt[-1:].isspace() else f" {answer}")
    needles = _needles(tokenizer, sample) if sample.task.startswith("niah") else []
    distances = [len(prompt) - start for start, _ in needles]
    known = {"distance": max(distances), "distances": distances} if needles else {}
    return Example(
        prompt,
        np.asarray(ids, np.int32),
        needles[0][0] / len(prompt) if needles else 0.0,
        # The unit of chance is a sample.
        {"needles": needles, **known, "haystack": [], "document": sample.place},
        max_new_tokens,
        metric=metric,
        references=sample.references,
    )


def _needles(tokenizer: Any, sample: Sample) -> list[list[int]]:
    """[start, tokens] of the references in the prompt; none unless each is in it exactly once."""
    text = sample.prompt
    if any(text.count(reference) != 1 for reference in sample.references):
        return []
    head = bos_prefix(tokenizer)
    needles = []
    for reference in sorted(sample.references, key=text.index):
        start = text.index(reference)
        before = len(head + tokenizer.encode(text[:start]))
        after = len(head + tokenizer.encode(text[: start + len(reference)]))
        needles.append([before, after - before])
    return needles

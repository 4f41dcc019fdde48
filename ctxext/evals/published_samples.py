"""Published benchmarks from the files that a user has: LongBench, MRCR, InfiniteBench, HELMET."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ctxext.evals import answers
from ctxext.evals.base import Eval, Model, batches, fingerprint
from ctxext.evals.budget import Budget
from ctxext.evals.published.helmet import helmet
from ctxext.evals.published.helmet_icl import helmet_icl
from ctxext.evals.published.helmet_icl import sources as helmet_icl_sources
from ctxext.evals.published.helmet_recall import helmet_recall
from ctxext.evals.published.helmet_summ import helmet_summ
from ctxext.evals.published.infinitebench import infinitebench
from ctxext.evals.published.longbench import longbench
from ctxext.evals.published.longbench_v2 import longbench_v2
from ctxext.evals.published.mrcr import mrcr
from ctxext.evals.published.sample import PublishedSample, check_size
from ctxext.evals.record import AnswerRecord, AnswerScores, EvaluatedModel, Measurement
from ctxext.tasks import Example
from ctxext.tasks.base import as_ids, bos_prefix, encode_fragment
from ctxext.tasks.building.json_entries import JSON_LINES, file_sha256

CHARACTERS_PER_TOKEN = 16
"""No tokenizer has so many on average over a text."""
Reader = Callable[[Path, int | None], Iterator[PublishedSample]]


def _only_itself(file: Path) -> list[Path]:
    return [file]


class Benchmark(NamedTuple):
    """Its name in tables, the endings of its files, and how one is read."""

    title: str
    endings: tuple[str, ...]
    read: Reader
    sources: Callable[[Path], list[Path]] = _only_itself
    """The files that are read for the samples of a file; none if it is read for others only."""


BENCHMARKS = {
    "longbench": Benchmark("LongBench", JSON_LINES, longbench),
    "longbench-v2": Benchmark("LongBench v2", (".json", *JSON_LINES), longbench_v2),
    "mrcr:openai": Benchmark("OpenAI-MRCR", (".parquet", ".json", *JSON_LINES), mrcr),
    "infinitebench": Benchmark("InfiniteBench", JSON_LINES, infinitebench),
    "helmet": Benchmark("HELMET", JSON_LINES, helmet),
    "helmet:icl": Benchmark("HELMET, ICL", JSON_LINES, helmet_icl, helmet_icl_sources),
    "helmet:recall": Benchmark("HELMET, recall", JSON_LINES, helmet_recall),
    "helmet:summ": Benchmark("HELMET, summaries", JSON_LINES, helmet_summ),
}
NEVER_CUT = ("mrcr:openai", "helmet:recall")
"""Benchmarks whose samples are chosen by their length."""


class _Item(NamedTuple):
    """A sample at a length."""

    item: str
    settings: str
    seq_len: int
    digest: str
    sample: PublishedSample


@dataclass(frozen=True)
class PublishedSamples(Eval):
    """The samples of a benchmark's file, or of all its files in a directory, at each of `seq_lens`.

    A length is a limit, with the space for the answer: from a prompt that is longer, the middle is
    cut out, so that as many tokens are left at its beginning as at its end, as LongBench and
    InfiniteBench do; a record notes the tokens that were cut as `cut_tokens`. Where a cut would
    change the question (MRCR, HELMET's recall), a sample is asked at the shortest length that holds
    it, and one that no length holds is left out (`fitting`). HELMET's in-context learning has more
    examples at longer lengths. Decoding is greedy, of as many tokens as published.
    Samples are named by the content of their file. There are no controls.

    Raises ValueError for a file that is not of the benchmark, naming the file and the line.
    """

    name: ClassVar[str] = "published"
    continues_prompts: ClassVar[bool] = True
    benchmark: str
    """One of `BENCHMARKS`."""
    path: str
    """A file, or a directory of files."""
    seq_lens: tuple[int, ...]
    n: int | None = None
    """Only the first samples of each file; None for all."""
    fitting: tuple[tuple[str, int], ...] = ()
    """The places of samples that are never cut, each with its length; see `fit`."""
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise ValueError(
                f"benchmark {self.benchmark!r} is not known; choose one of {', '.join(BENCHMARKS)}"
            )

    @property
    def title(self) -> str:
        return BENCHMARKS[self.benchmark].title

    def _protocol(self) -> dict[str, Any]:
        return {"benchmark": self.benchmark}  # and the set, which each sample names

    def items(self) -> list[str]:
        """`<benchmark>/<set>/<fingerprint>/<length>/<file hash>-<line>`."""
        return [item.item for item in self._items()]

    def within(self, budget: Budget) -> "PublishedSamples":
        n = budget.per_ruler_task
        return dataclasses.replace(self, n=n if self.n is None else min(self.n, n))

    def measurements(self) -> list[Measurement]:
        kinds = dict.fromkeys((self._task(item.sample), item.seq_len) for item in self._items())
        return [Measurement(task, seq_len, "accuracy") for task, seq_len in kinds]

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[AnswerRecord]:
        names = set(items)
        groups: dict[tuple[str, int], list[tuple[_Item, Example]]] = {}
        for item in self._items():
            if item.item in names:
                example = self._example(lm.tokenizer, item)
                key = (item.sample.dataset, item.seq_len)
                groups.setdefault(key, []).append((item, example))
        for asked in groups.values():
            asked.sort(key=lambda pair: len(pair[1].prompt))
            longest = len(asked[-1][1].prompt)
            for batch in batches(asked, max(1, self.batch_tokens // longest)):
                scored = answers.score_answers(lm, [[example] for _, example in batch])
                for (item, example), (scores,) in zip(batch, scored, strict=True):
                    yield self._record(item, example, scores, model)

    def examples(self, tokenizer: Any) -> Iterator[Example]:
        """Every question, in order."""
        return (self._example(tokenizer, item) for item in self._items())

    def check(self, tokenizer: Any) -> None:
        """Build every question."""
        for item in self._items():
            self._example(tokenizer, item)

    def _task(self, sample: PublishedSample) -> str:
        return f"{self.benchmark}/{sample.dataset}"

    def _items(self) -> Iterator[_Item]:
        lengths = dict(self.fitting)
        limit = None if self.fitting else self.n
        for digest, sample in samples(self.benchmark, self.path, limit):
            place = f"{digest}-{sample.place}"
            settings = fingerprint(self.benchmark, sample.dataset, sample.facts.get("wording"))
            if sample.may_cut:
                chosen = self.seq_lens
            else:
                chosen = (lengths[place],) if place in lengths else ()
            for seq_len in chosen:
                item = f"{self._task(sample)}/{settings}/{seq_len}/{place}"
                yield _Item(item, settings, seq_len, digest, sample)

    def _example(self, tokenizer: Any, item: _Item) -> Example:
        sample = item.sample.at(item.seq_len)
        joins = "" if sample.stem or sample.prompt[-1:].isspace() else " "
        answer = encode_fragment(tokenizer, joins + sample.answer)
        max_new_tokens = sample.max_new_tokens or len(answer) + 1
        limit = item.seq_len - max_new_tokens
        ids = bos_prefix(tokenizer) + tokenizer.encode(sample.prompt)
        cut = max(0, len(ids) - limit)
        if cut and (limit < 2 or not sample.may_cut):
            raise ValueError(
                f"{self.path}, {sample.dataset} {sample.place}: {item.seq_len} tokens do not hold "
                f"the question and {max_new_tokens} tokens for the answer: ask for a longer "
                "--seq-len"
            )
        if cut:
            ids = ids[: limit // 2] + ids[len(ids) - (limit - limit // 2) :]
        meta = {
            "needles": [],
            "haystack": [],
            "document": f"{item.digest}-{sample.place}",
            "cut_tokens": cut,
            **sample.facts,
        }
        return Example(
            as_ids(ids),
            as_ids(answer),
            0.0,
            meta,
            max_new_tokens,
            metric=sample.metric,
            references=tuple(sample.references),
            distractors=tuple(sample.labels),
            choices=tuple(
                as_ids(encode_fragment(tokenizer, joins + choice)) for choice in sample.choices
            ),
            stop_at_newline=sample.stop_at_newline,
            stem=sample.stem,
        )

    def _record(
        self, item: _Item, example: Example, scores: AnswerScores, model: EvaluatedModel
    ) -> AnswerRecord:
        task = self._task(item.sample)
        return AnswerRecord(
            model=model,
            evaluation=self.name,
            item=item.item,
            settings=item.settings,
            protocol=self.protocol,
            seq_len=item.seq_len,
            cluster=answers.cluster(example, item.item),
            facts=answers.facts(example),
            question=answers.question(
                example,
                task=task,
                fields={"benchmark": self.benchmark},
                needle_item=item.item,
                suite=self.title,
                label=item.sample.dataset,
            ),
            scores=scores,
        )


def fit(
    evaluation: PublishedSamples, count_tokens: Callable[[str], int]
) -> tuple[tuple[str, int], ...]:
    """The shortest length that holds each sample that must not be cut; others are left out.

    count_tokens: of a text, with BOS. Samples of more than 16 characters per token of the longest
    length are not counted: they do not fit. Raises ValueError if none fits.
    """
    fitting = []
    shortest = None
    most_characters = CHARACTERS_PER_TOKEN * max(evaluation.seq_lens)
    for digest, sample in samples(evaluation.benchmark, evaluation.path, None):
        if sample.may_cut or len(sample.prompt) > most_characters:
            continue
        tokens = count_tokens(sample.prompt)
        tokens += sample.max_new_tokens or count_tokens(f" {sample.answer}") + 1
        shortest = min(shortest or tokens, tokens)
        lengths = [seq_len for seq_len in sorted(evaluation.seq_lens) if seq_len >= tokens]
        if lengths:
            fitting.append((f"{digest}-{sample.place}", lengths[0]))
    if not fitting:
        least = f", of which the shortest is {shortest} tokens" if shortest else ""
        raise ValueError(
            f"{evaluation.path}: no sample fits into {max(evaluation.seq_lens)} tokens{least}: ask "
            "for a longer --seq-len"
        )
    return tuple(_first_of_each(fitting, evaluation.n))


def _first_of_each(
    fitting: Sequence[tuple[str, int]], limit: int | None
) -> Iterator[tuple[str, int]]:
    counts: dict[int, int] = {}
    for place, seq_len in fitting:
        counts[seq_len] = counts.get(seq_len, 0) + 1
        if limit is None or counts[seq_len] <= limit:
            yield place, seq_len


def samples(
    benchmark: str, path: str, limit: int | None
) -> tuple[tuple[str, PublishedSample], ...]:
    """The beginning of its file's hash and each sample of a file or directory, by file name.

    Raises ValueError if none of the files belongs to the benchmark.
    """
    endings = BENCHMARKS[benchmark].endings
    sources = BENCHMARKS[benchmark].sources
    root = Path(path).expanduser()
    files = [root]
    if root.is_dir():
        candidates = sorted(file for file in root.iterdir() if file.suffix.lower() in endings)
        # If there are none of the benchmark, its reader says so of the first.
        files = [file for file in candidates if sources(file)] or candidates
    if not files:
        raise ValueError(f"{root} holds no file that ends in {', '.join(endings)}: give another")
    for file in files:
        for source in [file, *sources(file)]:
            check_size(source)
    return tuple(
        (digest[:8], sample)
        for file in files
        for digest in [_digest(sources(file) or [file])]
        for sample in _read(benchmark, file, digest, limit)
    )


def _digest(files: Sequence[Path]) -> str:
    """The hash of a file, or that of the hashes of several."""
    hashes = [file_sha256(str(file)) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def _read(
    benchmark: str, file: Path, digest: str, limit: int | None
) -> tuple[PublishedSample, ...]:
    """digest: the hash of what is read, so that a file that has changed is read again."""
    return tuple(BENCHMARKS[benchmark].read(file, limit))

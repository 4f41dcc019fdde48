"""HELMET's many-shot in-context learning (arXiv 2410.02694), from copies of its data sets.

The sets are TREC (coarse and fine), BANKING77, CLINC150 and NLU. Examples, their order and the
numbers that stand for classes are those that HELMET draws with its seed, 42.
"""

import functools
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctxext.evals.published.sample import PublishedSample, read_entries

SEED = 42
MAX_QUESTIONS = 500
"""Questions of a set, as many of each class as of any other."""
MAX_NEW_TOKENS = 20
MAX_CHARACTERS = 10_000
"""No text of these sets is so long."""
LENGTHS = (8_192, 16_384, 32_768, 65_536, 131_072)
"""Those for which HELMET says how many examples there are."""


class _Set(NamedTuple):
    """The key of its labels, how many there are, and its examples at each of `LENGTHS`."""

    label: str
    num_labels: int
    shots: tuple[int, ...]


class _Labelled(NamedTuple):
    text: str
    label: int


SETS = {
    "trec_coarse": _Set("coarse_label", 6, (400, 800, 1600, 3300, 6600)),
    "trec_fine": _Set("fine_label", 50, (400, 800, 1600, 3200, 6400)),
    "banking77": _Set("label", 77, (360, 720, 1450, 2900, 5900)),
    "clinic150": _Set("intent", 151, (440, 880, 1750, 3525, 7050)),
    "nlu": _Set("label", 68, (510, 1020, 2040, 4080, 8296)),
}
FILES = {
    "trec_test": (("trec_coarse", "trec_fine"), "trec_train"),
    "banking77_test": (("banking77",), "banking77_train"),
    "clinic150_validation": (("clinic150",), "clinic150_train"),
    "nlu": (("nlu",), None),
}
"""The file of questions: its sets, and the file of examples; NLU is divided as HELMET does it."""


def sources(path: Path) -> list[Path]:
    """A file of questions and that of its examples; none for another file.

    Raises ValueError if there are no examples.
    """
    if path.stem not in FILES:
        return []
    _, name = FILES[path.stem]
    if name is None:
        return [path]
    examples = path.with_stem(name)
    if path.is_file() and not examples.is_file():
        raise ValueError(f"{path} is asked with examples: put {examples.name} next to it")
    return [path, examples]


def helmet_icl(path: Path, limit: int | None = None) -> Iterator[PublishedSample]:
    """The samples of a file of questions, such as `banking77_test.jsonl`.

    Lines have a text and its label, a number, as the hub's data sets have them. Examples and the
    question are `<text>`, a line `label: <number>`, and a blank line. At a length of HELMET's there
    are as many examples as it has, and in proportion between them. Raises ValueError that names the
    file and the line.
    """
    if path.stem not in FILES:
        names = ", ".join(f"{stem}{path.suffix}" for stem in FILES)
        raise ValueError(f"{path} is not named after the questions of a set: {names}")
    names, _ = FILES[path.stem]
    for name in names:
        tables = [_read(file, SETS[name]) for file in sources(path)]
        questions, examples = tables if len(tables) == 2 else _divide(*tables)
        if not questions or not examples:
            raise ValueError(f"{path}: {name} has no questions or no examples")
        groups = _by_label(examples)
        for number, question in enumerate(_asked(questions)[:limit], 1):
            yield _sample(name, number, question, groups)


def num_shots(name: str, seq_len: int) -> int:
    """Examples at a length: HELMET's at its lengths; else as many per token as at the one below.

    Below its first length, as many per token as there.
    """
    nearest = max((length for length in LENGTHS if length <= seq_len), default=LENGTHS[0])
    published = SETS[name].shots[LENGTHS.index(nearest)]
    return max(1, published * seq_len // nearest)


def balanced(groups: Sequence[Sequence[_Labelled]], count: int, seed: int) -> list[_Labelled]:
    """`count` texts in rounds that have one of each class, in random order.

    A class is repeated when all its texts are used. This draws from Python's generator in HELMET's
    order, so that it gives the same texts.
    """
    rng = random.Random(seed)
    num_rounds = -(-count // len(groups))
    rounds: list[list[_Labelled]] = [[] for _ in range(num_rounds)]
    for group in groups:
        indices = rng.sample(range(len(group)), num_rounds % len(group))
        while len(indices) < num_rounds:
            missing = num_rounds - len(indices)
            indices += rng.sample(range(len(group)), min(missing, len(group)))
        for texts, index in zip(rounds, indices, strict=True):
            texts.append(group[index])
    for texts in rounds:
        rng.shuffle(texts)
    return [text for texts in rounds for text in texts][:count]


def _sample(
    name: str, number: int, question: _Labelled, groups: Sequence[Sequence[_Labelled]]
) -> PublishedSample:
    digest = hashlib.sha256(question.text.encode()).hexdigest()
    seed = (int(digest, 16) + SEED) % 2**31
    numbers = list(range(SETS[name].num_labels))
    random.Random(seed).shuffle(numbers)
    answer = str(numbers[question.label])
    sample = PublishedSample(
        dataset=name,
        place=f"{name}-{number}",
        prompt=f"{question.text}\nlabel:",
        answer=answer,
        references=[answer],
        metric="helmet:label",
        max_new_tokens=MAX_NEW_TOKENS,
        labels=[str(i) for i in range(len(numbers))],
        stop_at_newline=True,
        facts={"wording": "ours"},
    )
    return sample._replace(at_length=functools.partial(_with_shots, sample, groups, numbers, seed))


def _with_shots(
    sample: PublishedSample,
    groups: Sequence[Sequence[_Labelled]],
    numbers: Sequence[int],
    seed: int,
    seq_len: int,
) -> PublishedSample:
    """The sample with the examples of a length before its question."""
    shots = num_shots(sample.dataset, seq_len)
    examples = [f"{x.text}\nlabel: {numbers[x.label]}" for x in balanced(groups, shots, seed)]
    return sample._replace(
        prompt="\n\n".join([*examples, sample.prompt]), facts={**sample.facts, "shots": shots}
    )


def _asked(questions: Sequence[_Labelled]) -> list[_Labelled]:
    """All questions; of more than `MAX_QUESTIONS`, HELMET's choice of so many."""
    if len(questions) <= MAX_QUESTIONS:
        return list(questions)
    order = np.random.default_rng(SEED).permutation(len(questions))
    return balanced(_by_label([questions[i] for i in order]), MAX_QUESTIONS, SEED)


def _divide(rows: Sequence[_Labelled]) -> tuple[list[_Labelled], list[_Labelled]]:
    """A tenth for questions, the rest for examples, as `datasets` splits them by that seed."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    num_questions = math.ceil(0.1 * len(rows))
    shuffled = [rows[i] for i in order]
    return shuffled[:num_questions], shuffled[num_questions:]


def _by_label(rows: Sequence[_Labelled]) -> list[list[_Labelled]]:
    """The texts of each class; classes are in the order of their first texts."""
    groups: dict[int, list[_Labelled]] = {}
    for row in rows:
        groups.setdefault(row.label, []).append(row)
    return list(groups.values())


def _read(path: Path, kind: _Set) -> list[_Labelled]:
    rows = []
    for _, entry in read_entries(path):
        text = entry["text"]
        text.text()  # refuses what is not one; its spaces at the ends are part of the question
        if len(text.value) > MAX_CHARACTERS:
            raise ValueError(f"{text.location} has more than {MAX_CHARACTERS:,} characters")
        label = entry[kind.label].whole_number()
        if not 0 <= label < kind.num_labels:
            raise ValueError(
                f"{entry.location}.{kind.label} is {label}, not one of 0 to {kind.num_labels - 1}"
            )
        rows.append(_Labelled(text.value, label))
    return rows

"""Synthetic tasks of all kinds, tokenizers of 97 to 1024 ids, and a check of an example."""

import functools
import string
from collections import Counter
from pathlib import Path

import numpy as np

import ctxext
from ctxext.tasks import (
    CommonWords,
    Example,
    FrequentWords,
    Lines,
    Mqar,
    Niah,
    Task,
    TaskContext,
    VariableTracking,
)
from ctxext.tokenization.tokenizer import load_tokenizer
from support.solvers import solve
from support.toy_tokenizer import toy_texts, toy_tokenizer


class Characters:
    """One token per character: 95 printable ones, the newline, and BOS."""

    ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
    bos_id = 0
    adds_bos = True
    eos_id = None
    vocab_size = 97
    num_ids = vocab_size
    sha256 = "characters"

    def encode(self, text, *, bos=False):
        return [0] * bos + [self.ALPHABET.index(c) + 1 for c in text]

    def decode(self, ids):
        return "".join(self.ALPHABET[int(i) - 1] for i in ids if i)


TOKENIZERS = {
    "toy": toy_tokenizer(),
    "bundled": load_tokenizer(Path(ctxext.__file__).parent / "assets" / "tiny-llama"),
    "characters": Characters(),
}
TASKS: list[Task] = [
    Niah(),
    Niah(hay="noise", max_new_tokens=60),
    Niah(value="uuid", key="number"),
    Niah(num_keys=4),
    Niah(hay="needles"),
    Niah(hay="needles", key="uuid", value="uuid"),
    Niah(num_values=4, value="words"),
    Niah(num_keys=4, num_queries=4),
    Niah(num_keys=3, num_queries=2, num_values=2, hay="needles"),
    Lines(),
    Lines(max_new_tokens=20),
    VariableTracking(),
    VariableTracking(num_chains=3, hops=2, hay="text"),
    CommonWords(num_common=4, frequent=6, rare=1, shot=(8, 3, 1)),
    FrequentWords(),
    Mqar(),
    Mqar(num_pairs=2),
]


@functools.cache
def haystack(name: str) -> list[np.ndarray]:
    """The documents of the toy corpus, in characters that every tokenizer has."""
    keep = set(string.printable) - set("\t\r\x0b\x0c")
    texts = ["".join(c for c in text if c in keep) for text in toy_texts()]
    return [np.asarray(TOKENIZERS[name].encode(text), np.int32) for text in texts]


def context(seed: int, name: str = "bundled") -> TaskContext:
    return TaskContext(np.random.default_rng(seed), TOKENIZERS[name], haystack(name))


def example(
    task: Task, seed: int, seq_len: int | None, depth: float | None = None, name: str = "bundled"
) -> Example:
    return task.example(context(seed, name), seq_len, depth)


def text_of(name: str, ids) -> str:
    return TOKENIZERS[name].decode(np.asarray(ids)[1:].tolist())


def answer_of(task: Task, name: str, prompt: np.ndarray) -> list:
    """The right answers, derived from the prompt alone.

    For Mqar these are lists of ids: the token after every earlier occurrence of the last one.
    """
    if isinstance(task, Mqar):
        return [[int(prompt[i + 1])] for i in np.flatnonzero(prompt[:-1] == prompt[-1])]
    return solve(task.name, text_of(name, prompt))


def check(task: Task, name: str, e: Example) -> None:
    """Assert that an example matches its own description."""
    tokenizer = TOKENIZERS[name]
    spans = e.meta["needles"]
    needles = [e.prompt[start : start + size].tolist() for start, size in spans]
    assert e.prompt.dtype == e.answer.dtype == np.int32
    assert 0 <= e.depth <= 1
    assert e.prompt[0] == tokenizer.bos_id
    assert (e.prompt[1:] != tokenizer.bos_id).all()
    assert len(e.answer) <= e.max_new_tokens
    assert e.meta["distance"] == len(e.prompt) - min(start for start, _ in spans)
    assert spans == sorted(spans)
    assert all(a + n <= b for (a, n), (b, _) in zip(spans, spans[1:], strict=False))
    assert len(e.choices) <= 15
    assert all(c.dtype == np.int32 and len(c) <= e.max_new_tokens for c in e.choices)
    assert len({tuple(c.tolist()) for c in [e.answer, *e.choices]}) == 1 + len(e.choices)
    if isinstance(task, Mqar):
        assert answer_of(task, name, e.prompt) == [e.answer.tolist()]
        assert needles == [[e.prompt[-1], *e.answer]]
        assert len(e.choices) == min(15, task.num_pairs - 1) or task.num_pairs < 8
        return
    counts_words = task.name in ("cwe", "fwe")
    assert answer_of(task, name, e.prompt) == list(e.references) or counts_words
    assert set(answer_of(task, name, e.prompt)) == set(e.references)
    assert tokenizer.decode(e.answer.tolist()).strip() == ", ".join(e.references)
    assert not set(e.references) & set(e.distractors)
    texts = [tokenizer.decode(ids) for ids in needles]
    if counts_words:
        counts = dict(zip(e.references, e.meta["counts"], strict=True))
        assert Counter(text.strip() for text in texts) == counts
        assert e.meta["counts"] == sorted(e.meta["counts"], reverse=True)
    else:
        assert len(texts) == len(e.references)
        assert all(any(reference in text for text in texts) for reference in e.references)
    prompt = text_of(name, e.prompt)
    assert all(distractor in prompt for distractor in e.distractors)
    for choice in e.choices:
        values = tokenizer.decode(choice.tolist()).strip().split(", ")
        assert set(values) <= set(e.distractors)

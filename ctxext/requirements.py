"""The texts that an experiment reads from disk, looked for before anything long starts."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctxext import loading
from ctxext.data import text_on_disk
from ctxext.data.token_files import is_prepared, open_prepared
from ctxext.experiment import Experiment


class Need(NamedTuple):
    """A directory or file of text, who reads it, and how much has to be in it."""

    path: str
    split: str
    reader: str
    documents: int = 1
    tokens: int = 0
    """Of each of those documents, BOS and EOS not counted."""

    def missing(self, tokenizer_of: str) -> str:
        """What is said where there is nothing: the command that makes it."""
        shortest = f" --min-tokens {self.tokens + 2}" * bool(
            self.tokens
        )  # `prepare` counts BOS and EOS
        asked = f"{self.documents} documents of at least {self.tokens:,} tokens: " * bool(
            self.tokens
        )
        option = (
            ", or name other text with --data.path"
            if self.reader == "data"
            else "; `ctxext train` does without it"
        )
        return (
            f"{self.reader} reads {self.path}, which is not there: {asked}ctxext prepare "
            f"YOUR_TEXTS --out {shlex.quote(self.path)} --tokenizer "
            f"{tokenizer_of}{shortest}{option}"
        )


def missing(experiment: Experiment, *, training_only: bool = False) -> list[str]:
    """A sentence for each text that is not there; reads nothing."""
    tokenizer = shlex.quote(experiment.init or experiment.tokenizer or "HF_DIR")
    absent = [
        need for need in needs(experiment, training_only=training_only) if not _place(need).exists()
    ]
    return list(dict.fromkeys(need.missing(tokenizer) for need in absent))


def check(experiment: Experiment, *, training_only: bool = False) -> None:
    """Raises ValueError for text that is not there, and for prepared tokens that are unfinished, of another tokenizer,
    or too few for an evaluation."""
    if absent := missing(experiment, training_only=training_only):
        raise ValueError("; ".join(absent))
    prepared = [
        need for need in needs(experiment, training_only=training_only) if is_prepared(_place(need))
    ]
    source = experiment.init or experiment.tokenizer
    if not prepared or source is None:
        return
    tokenizer = loading.open_tokenizer(source)
    for need in prepared:
        corpus = open_prepared(_place(need), need.split, tokenizer)
        ends = (corpus.bos_id is not None) + (corpus.eos_id is not None)
        enough = int(np.count_nonzero(np.diff(corpus.offsets) - ends >= need.tokens))
        if enough < need.documents:
            there = f"{need.path}, which has {enough} of {len(corpus.offsets) - 1}"
            raise ValueError(
                f"{need.reader} reads {need.documents} documents of at least {need.tokens:,} "
                f"tokens from {there}: prepare more text"
            )


def needs(experiment: Experiment, *, training_only: bool = False) -> Iterator[Need]:
    """What training reads, and what the evaluations do."""
    if experiment.train.steps:
        for path, split in text_on_disk(experiment.data):
            yield Need(path, split, "data")
    for one in () if training_only else experiment.evals:
        for path, split in text_on_disk(one):
            documents = getattr(one, "num_documents", 1)
            yield Need(path, split, one.title, documents, one.required_tokens)


def _place(need: Need) -> Path:
    return Path(need.path).expanduser()

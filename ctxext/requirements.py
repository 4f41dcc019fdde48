"""The texts that an experiment reads from disk, checked before anything starts."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctxext import loading
from ctxext.data import text_on_disk
from ctxext.data.token_files import is_prepared, open_prepared
from ctxext.experiment import Experiment


class Requirement(NamedTuple):
    """A directory or file of text, what reads it, and how much it has to hold."""

    path: str
    split: str
    reader: str
    """The name of an evaluation, or "data" for training."""
    documents: int = 1
    tokens: int = 0
    """In each of those documents, without BOS and EOS."""

    @property
    def place(self) -> Path:
        return Path(self.path).expanduser()

    def how_to_prepare(self, tokenizer: str) -> str:
        """The sentence for a missing text, with the command that makes it."""
        size = ""
        min_tokens = ""
        if self.tokens:
            size = f"{self.documents} documents of at least {self.tokens:,} tokens: "
            min_tokens = f" --min-tokens {self.tokens + 2}"  # `prepare` counts BOS and EOS
        if self.reader == "data":
            alternative = ", or name other text with --data.path"
        else:
            alternative = "; `ctxext train` does without it"
        return (
            f"{self.reader} reads {self.path}, which is not there: {size}ctxext prepare YOUR_TEXTS "
            f"--out {shlex.quote(self.path)} --tokenizer {tokenizer}{min_tokens}{alternative}"
        )


def requirements(experiment: Experiment, *, training_only: bool = False) -> Iterator[Requirement]:
    """The texts that training and, unless `training_only`, the evaluations read."""
    if experiment.train.steps:
        for path, split in text_on_disk(experiment.data):
            yield Requirement(path, split, "data")
    if training_only:
        return
    for evaluation in experiment.evals:
        documents = getattr(evaluation, "num_documents", 1)
        tokens = evaluation.required_tokens
        for path, split in text_on_disk(evaluation):
            yield Requirement(path, split, evaluation.title, documents, tokens)


def missing(experiment: Experiment, *, training_only: bool = False) -> list[str]:
    """A sentence for each text that is not there; reads nothing."""
    tokenizer = shlex.quote(experiment.init or experiment.tokenizer or "HF_DIR")
    sentences = [
        requirement.how_to_prepare(tokenizer)
        for requirement in requirements(experiment, training_only=training_only)
        if not requirement.place.exists()
    ]
    return list(dict.fromkeys(sentences))


def check(experiment: Experiment, *, training_only: bool = False) -> None:
    """Raise ValueError for text that is not there, or that cannot be used.

    Prepared tokens must be complete, made by the experiment's tokenizer, and enough for the
    evaluations.
    """
    if sentences := missing(experiment, training_only=training_only):
        raise ValueError("; ".join(sentences))
    prepared = [
        requirement
        for requirement in requirements(experiment, training_only=training_only)
        if is_prepared(requirement.place)
    ]
    source = experiment.init or experiment.tokenizer
    if not prepared or source is None:
        return
    tokenizer = loading.open_tokenizer(source)
    for requirement in prepared:
        corpus = open_prepared(requirement.place, requirement.split, tokenizer)
        markers = (corpus.bos_id is not None) + (corpus.eos_id is not None)
        lengths = np.diff(corpus.offsets) - markers
        enough = int(np.count_nonzero(lengths >= requirement.tokens))
        if enough < requirement.documents:
            raise ValueError(
                f"{requirement.reader} reads {requirement.documents} documents of at least "
                f"{requirement.tokens:,} tokens from {requirement.path}, which has {enough} of "
                f"{len(lengths)}: prepare more text"
            )

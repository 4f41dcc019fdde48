"""Evaluations of the text that a run itself holds out of training, found when the run is known."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctxext.data import OwnHeldOut, Split, Stdlib, TextSource
from ctxext.data.token_files import is_prepared
from ctxext.evals import Perplexity
from ctxext.evals.base import documents
from ctxext.experiment import Experiment
from ctxext.tasks.base import bos_prefix

STAND_IN = Stdlib("heldout")
"""What an estimate reads in its place: of other text, the same number of tokens."""
MOST_BYTES = 1e9
"""Of text that an estimate reads to find what is held out: some seconds."""


class Found(NamedTuple):
    """An experiment without `OwnHeldOut`, and sentences about evaluations that it lacks now."""

    experiment: Experiment
    notes: tuple[str, ...]


def is_of_own_text(evaluation: Any) -> bool:
    """Whether an evaluation reads the text that the run holds out of training."""
    return isinstance(getattr(evaluation, "source", None), OwnHeldOut)


def with_own_text(experiment: Experiment, tokenizer: Any) -> Found:
    """Evaluations of `OwnHeldOut` read as many documents as there are, at lengths that they have.

    Those that no document is long enough for are left out.
    """
    evals: list[Any] = []
    notes: list[str] = []
    for evaluation in experiment.evals:
        if not is_of_own_text(evaluation):
            evals.append(evaluation)
            continue
        found = _of_own_text(experiment, evaluation, tokenizer)
        if found is not None:
            evals.append(found)
        left_out = evaluation.seq_lens[len(found.seq_lens) if found else 0 :]
        nothing = "" if found else _nothing_held_out(experiment, tokenizer)
        if nothing:
            notes.append(f"{evaluation.title} is not measured: {nothing}")
        elif left_out:
            lengths = " and ".join(f"{seq_len:,}" for seq_len in left_out)
            notes.append(
                f"{evaluation.title} is not measured at {lengths} tokens: no document that is held "
                "out of training is as long; give longer documents, or a larger --train.held-out"
            )
    if evals == list(experiment.evals):
        return Found(experiment, ())
    # What a paper expects of one that is left out is compared by nobody.
    asked = dataclasses.replace(experiment, evals=tuple(evals), expect=())
    return Found(asked, tuple(notes))


def for_estimate(experiment: Experiment, tokenizer: Any = None) -> Found:
    """What an estimate counts: its own text, or other text where that is not there or very long.

    tokenizer: without one, it is other text.
    """
    if not any(map(is_of_own_text, experiment.evals)):
        return Found(experiment, ())
    if not experiment.train.steps:
        return with_own_text(experiment, tokenizer)
    paths = [Path(text.path).expanduser() for text in experiment.data.text_on_disk()]
    size = sum(map(_bytes_to_read, paths))
    if tokenizer is not None and all(path.exists() for path in paths) and size <= MOST_BYTES:
        return with_own_text(experiment, tokenizer)
    notes = []
    if size > MOST_BYTES:
        titles = ", ".join(e.title for e in experiment.evals if is_of_own_text(e))
        notes.append(
            f"{titles} is counted as of other text at all of its lengths, as there are "
            f"{size / 1e9:.1f} GB of its own, which only the run reads"
        )
    evals = tuple(
        dataclasses.replace(e, source=STAND_IN) if is_of_own_text(e) else e
        for e in experiment.evals
    )
    return Found(dataclasses.replace(experiment, evals=evals), tuple(notes))


def _bytes_to_read(path: Path) -> int:
    """Of text that has to be read whole to find what is held out; prepared tokens have it apart."""
    if is_prepared(path) or not path.exists():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _nothing_held_out(experiment: Experiment, tokenizer: Any) -> str:
    """Why no document is held out of training, and what would help; "" if some are."""
    sources = _sources(experiment)
    if any(len(_sizes(source, tokenizer)) for source in sources):
        return ""
    notes = [source.held_out().note for source in sources if isinstance(source, Split)]
    return "; ".join(notes) or "no document is held out of training"


def _of_own_text(
    experiment: Experiment, evaluation: Perplexity, tokenizer: Any
) -> Perplexity | None:
    """The evaluation at as many of its lengths as there are documents for; None for none."""
    num_bos = len(bos_prefix(tokenizer))
    sizes = [(source, _sizes(source, tokenizer)) for source in _sources(experiment)]
    for count in range(len(evaluation.seq_lens), 0, -1):
        seq_lens = evaluation.seq_lens[:count]
        for source, of_source in sizes:
            num_long = int(np.count_nonzero(of_source >= max(seq_lens) - num_bos))
            if num_long:
                return dataclasses.replace(
                    evaluation,
                    seq_lens=seq_lens,
                    num_documents=min(evaluation.num_documents, num_long),
                    source=source,
                )
    return None


def _sources(experiment: Experiment) -> Sequence[TextSource]:
    """What training holds out; nothing for a run without training, whose data need not exist."""
    if not experiment.train.steps:
        return []
    parts = experiment.data.held_out_parts(experiment.train.held_out)
    return [
        source
        for source in dict.fromkeys(parts)
        if all(Path(text.path).expanduser().exists() for text in source.text_on_disk())
    ]


def _sizes(source: TextSource, tokenizer: Any) -> np.ndarray:
    return np.array([len(ids) for ids in documents(source, tokenizer)], np.int64)

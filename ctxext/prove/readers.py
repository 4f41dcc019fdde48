"""The readers of a subject: numpy by the textbook always, others where they are installed."""

from collections.abc import Callable

import numpy as np

from ctxext.interop.pth import open_archive
from ctxext.prove import llamacpp_reader, pytorch_readers
from ctxext.prove.artifact import Subject
from ctxext.prove.reader_output import Probe, Reading
from ctxext.prove.reference import GGUFTextbook, HFTextbook, MetaTextbook, Textbook
from ctxext.tokenization.tokenizer import PROBES

Reader = Callable[[Subject, list[Probe]], Reading]


def read_numpy(subject: Subject, probes: list[Probe]) -> Reading:
    """float64 throughout, exact angles."""
    return by_the_book(textbook(subject), "numpy", np.__version__, probes)


def textbook(subject: Subject) -> Textbook:
    """The plain reader of the subject's format."""
    if subject.kind == "gguf":
        return GGUFTextbook(subject.directory)
    if subject.kind == "meta":
        return MetaTextbook(subject.directory, open_archive, lambda entry: entry.read())
    return HFTextbook(subject.base, subject.adapter)


def by_the_book(reader: Textbook, name: str, version: str, probes: list[Probe]) -> Reading:
    """What a plain reader makes of the probes."""
    first = probes[0]
    marks, length = first.positions[first.rows], int(first.positions[-1]) + 1
    inv_freq, m = reader.rope(length)
    angles = np.outer(marks, inv_freq)
    return Reading(
        name,
        version,
        [reader.logits(probe.tokens, probe.positions, probe.rows) for probe in probes],
        rounded=reader.rounded,
        inv_freq=inv_freq,
        attention_factor=m,
        tables=(m * np.cos(angles), m * np.sin(angles)),
        rotated=reader.rotated(first.tokens[first.rows], marks, length),
        token_ids=reader.token_ids(PROBES),
    )


def read_archives(subject: Subject, probes: list[Probe]) -> Reading:
    """The same formulas on what torch.load makes of Meta's shards. Raises ModuleNotFoundError where it is missing."""
    open_shard, numbers, version = pytorch_readers.archives()
    return by_the_book(
        MetaTextbook(subject.directory, open_shard, numbers), "torch", version, probes
    )


READERS: dict[str, dict[str, Reader]] = {
    "export": {"numpy": read_numpy, "transformers": pytorch_readers.read},
    "adapter": {"numpy": read_numpy, "peft": pytorch_readers.read},
    "meta": {"numpy": read_numpy, "torch": read_archives},
    "gguf": {"numpy": read_numpy, "llama.cpp": llamacpp_reader.read},
}
"""By kind of subject."""


def read_all(subject: Subject, probes: list[Probe]) -> tuple[list[Reading], dict[str, str]]:
    """(what the readers make of the probes, why the others did not run)."""
    readings, missing = [], {}
    for name, read in READERS[subject.kind].items():
        try:
            readings.append(read(subject, probes))
        except ModuleNotFoundError as error:
            missing[name] = f"{error.name} is not installed"
        except llamacpp_reader.TooLong as error:
            missing[name] = str(error)
    return readings, missing

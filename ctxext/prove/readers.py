"""The readers of an artifact: the numpy reference always, others where they are installed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ctxext import progress
from ctxext.interop.pth import open_archive
from ctxext.prove import llamacpp_reader, pytorch_readers
from ctxext.prove.artifact import Artifact
from ctxext.prove.reader_output import NotRun, ReaderInput, ReaderOutput, text_lengths
from ctxext.prove.reference.gguf import GGUFReference
from ctxext.prove.reference.hf import HFReference
from ctxext.prove.reference.llama import ReferenceReader
from ctxext.prove.reference.meta import MetaReference
from ctxext.prove.token_texts import texts_for

Reader = Callable[[Artifact, list[ReaderInput]], ReaderOutput]


def _open_meta(artifact: Artifact) -> ReferenceReader:
    return MetaReference(artifact.path, open_archive, lambda entry: entry.read())


REFERENCES: dict[str, Callable[[Artifact], ReferenceReader]] = {
    "hf": lambda artifact: HFReference(artifact.base, open_archive=open_archive),
    "peft": lambda artifact: HFReference(
        artifact.base, artifact.adapter, open_archive=open_archive
    ),
    "meta": _open_meta,
    "gguf": lambda artifact: GGUFReference(artifact.path),
}
"""The reference reader of every format, and of an adapter."""


def read_numpy(artifact: Artifact, inputs: list[ReaderInput]) -> ReaderOutput:
    """The reference reader: float64 throughout, exact angles."""
    reader = REFERENCES[artifact.format](artifact)
    return _evaluate(reader, "numpy", np.__version__, artifact, inputs)


def read_archives(artifact: Artifact, inputs: list[ReaderInput]) -> ReaderOutput:
    """The same formulas on Meta's shards as torch.load reads them.

    Raises ModuleNotFoundError where torch is missing.
    """
    open_shard, to_numpy, version = pytorch_readers.archives()
    reader = MetaReference(artifact.path, open_shard, to_numpy)
    return _evaluate(reader, "torch", version, artifact, inputs)


def _evaluate(
    reader: ReferenceReader,
    name: str,
    version: str,
    artifact: Artifact,
    inputs: list[ReaderInput],
) -> ReaderOutput:
    if reader.library:
        version += f" with quantized weights from {reader.library}"
    first = inputs[0]
    texts = texts_for(artifact)
    positions = first.positions[first.compared]
    length = int(first.positions[-1]) + 1
    of_rope: dict[str, Any] = {}
    if reader.has_rotary:
        inv_freq, attention_factor = reader.rope(length)
        angles = np.outer(positions, inv_freq)
        tables = (attention_factor * np.cos(angles), attention_factor * np.sin(angles))
        of_rope = {
            "inv_freq": inv_freq,
            "attention_factor": attention_factor,
            "tables": tables,
            "ropes": [reader.rope(length) for length in text_lengths(first)],
        }
    logits = []
    reader.told = progress.tell
    for number, x in enumerate(inputs):
        with progress.as_part(number, len(inputs)):
            logits.append(reader.logits(x.tokens, x.positions, x.compared))
    return ReaderOutput(
        name,
        version,
        logits,
        rounded=reader.rounded,
        **of_rope,
        rotated=reader.rotated(first.tokens[first.compared], positions, length),
        token_ids=reader.token_ids(texts),
        vocabulary=reader.vocabulary(),
        reads_model=reader.reads_model,
    )


OTHER_READERS: dict[str, dict[str, Reader]] = {
    "hf": {"transformers": pytorch_readers.read},
    "peft": {"peft": pytorch_readers.read},
    "meta": {"torch": read_archives},
    "gguf": {"llama.cpp": llamacpp_reader.read},
}
"""Readers of other projects, by format."""


def read_all(
    artifact: Artifact, inputs: list[ReaderInput]
) -> tuple[list[ReaderOutput], dict[str, str]]:
    """(the output of each reader, the reason why each other one did not run)."""
    outputs = []
    not_run = {}
    readers = {"numpy": read_numpy, **OTHER_READERS.get(artifact.format, {})}
    for name, read in readers.items():
        try:
            with progress.part(f"reading with {name}"):
                outputs.append(read(artifact, inputs))
        except ModuleNotFoundError as error:
            not_run[name] = f"{error.name} is not installed"
        except (llamacpp_reader.InputTooLong, NotRun) as error:
            not_run[name] = str(error)
    return outputs, not_run

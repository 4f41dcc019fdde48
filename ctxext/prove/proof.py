"""The proof of an export: what readers make of it beside what we do, as data, and in its model card."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ctxext import loading
from ctxext.files import write_json, write_text
from ctxext.interop import peft
from ctxext.interop.hf_weights import slots
from ctxext.interop.model_card import with_proof
from ctxext.interop.tensor_blocks import numpy_dtype
from ctxext.model.lm import LM
from ctxext.parallel import distributed
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.prove.artifact import Subject
from ctxext.prove.compare import compare
from ctxext.prove.gguf_parameters import q8_0
from ctxext.prove.known_incompatibilities import traps
from ctxext.prove.proof_text import describe
from ctxext.prove.reader_output import continuation, window_probe
from ctxext.prove.readers import read_all

EVERY_POSITION = 2e10  # parameters x tokens up to which a proof reads the whole window


def prove(
    directory: str | Path,
    *,
    against: LM | str | Path | None = None,
    checkpoint: int | str = "latest",
    methods: tuple[Any, ...] = (),
    original: int | None = None,
) -> dict[str, Any]:
    """Compare an export (HF, Meta, GGUF), or a PEFT adapter on its base, with `against` in every reader there is.

    against: a model, a run (its `checkpoint`) or an HF directory, under `methods` if given; by default our own reading
    of the same files, which GGUF has not. For an adapter an HF directory is the base, in place of the one that it
    names. `original`: the window of pre-training, for Meta's directories without rope.json.
    Writes proof.json (FILE.proof.json beside FILE.gguf) and fills the proof section of the model card. "equal" in the
    result is the verdict. Raises ValueError for what cannot be read and for a base that does not fit, OSError if it
    cannot be written.
    """
    directory, base = Path(directory), None
    if (
        isinstance(against, str | Path)
        and peft.is_adapter(directory)
        and not loading.is_run(loading.locate(against))
    ):
        against, base = None, against
    if isinstance(against, str | Path):
        against = loading.load(against, checkpoint=checkpoint)
    elif checkpoint != "latest":
        raise ValueError(f"checkpoint {checkpoint} is one of a run; name that with --against RUN")
    if methods:
        if against is None:
            raise ValueError(
                "methods are those of the model that an export is compared with; name it with --against"
            )
        against = against.with_method(*methods)
    subject = Subject.of(directory, base, original)
    read = subject.open(ONE_DEVICE if against is None else against.mesh, against)
    ours = (
        read
        if against is None
        else LM(
            against.config,
            read.params,
            against.tokenizer,
            scaling=against.scaling,
            mesh=against.mesh,
        )
    )
    dtypes = subject.dtypes()
    different = [] if against is None else _different_weights(read.params, against.params, dtypes)
    # A scaling is looked at beyond the window of pre-training, also if it declares none.
    window = ours.config.max_position_embeddings
    length = max(subject.window, window + 1)
    marks = [0, window - 1, window, length - 1]
    every = ours.config.num_parameters * length <= EVERY_POSITION
    probe = window_probe(marks, ours.config.vocab_size, every=every)
    probes = [probe, continuation(ours, probe.tokens, length)]
    readings, missing = read_all(subject, probes)
    readers = [compare(ours, reading, probes) for reading in readings]
    proof = {
        "equal": not different and all(reader["equal"] for reader in readers),
        "kind": subject.kind,
        "against": f"our own reading of the {subject.name}"
        if against is None
        else "the model that was exported",
        "dtype": _dtype(dtypes),
        "original_max_position_embeddings": window,
        "max_position_embeddings": length,
        "positions": marks,
        "tokens_read": len(probe.tokens),
        "tokens_continued": len(probes[1].rows),
        "weights_that_differ": different,
        "readers": readers,
        "readers_not_run": missing,
        "traps": [dataclasses.asdict(trap) for trap in traps(subject)],
    }
    if subject.kind == "adapter":
        proof |= {"base": str(subject.base), "base_checked": subject.recorded}
    distributed.broadcast_from_primary(lambda: write_json(subject.report, proof))
    if (card := directory / "README.md").is_file():
        distributed.broadcast_from_primary(
            lambda: write_text(card, with_proof(card.read_text(), f"```\n{describe(proof)}\n```"))
        )
    return proof


def _dtype(dtypes: dict[str, str]) -> str:
    """That of all tensors, or of GGUF's matrices, whose vectors are float32."""
    kinds = set(dtypes.values())
    return min(kinds - {"float32"}) if len(kinds) == 2 and "float32" in kinds else min(kinds)


def _different_weights(params: Any, given: Any, dtypes: dict[str, str]) -> list[str]:
    """Names of tensors that are not the given ones rounded to the stored dtype, bit by bit."""
    read, wanted = slots(params), slots(given)
    names = [n for n in wanted if n in read and n in dtypes and read[n].shape == wanted[n].shape]
    equal = [
        n for n in names if np.array_equal(_rounded(wanted[n].get(), dtypes[n]), read[n].get())
    ]
    return sorted((wanted.keys() | read.keys()) - set(equal))


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return q8_0(values) if dtype == "q8_0" else values.astype(numpy_dtype(dtype)).astype(np.float32)

"""The proof of an export: what every reader makes of it, compared with the model, as data."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ctxext import loading, progress
from ctxext.files import write_json, write_text
from ctxext.interop import peft_reader
from ctxext.interop.generation_config import different_settings, extended_generation_config
from ctxext.interop.hf_weights import slots
from ctxext.interop.lazy_tensor import STORAGE_DTYPES, numpy_dtype
from ctxext.interop.model_card import code_block, with_proof
from ctxext.methods import label
from ctxext.model.lm import LM
from ctxext.model.lora import merge_layers
from ctxext.model.trainable import LoRA
from ctxext.parallel import distributed
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.prove.adapter_settings import compare_adapter
from ctxext.prove.artifact import Artifact
from ctxext.prove.compare import compare
from ctxext.prove.file_digests import changed_files
from ctxext.prove.gguf_parameters import ROUNDED
from ctxext.prove.known_incompatibilities import known_incompatibilities
from ctxext.prove.proof_text import describe
from ctxext.prove.reader_output import continuation_input, window_input
from ctxext.prove.readers import read_all
from ctxext.prove.recorded import proof_file, read_recorded
from ctxext.prove.settings import SettingsComparison, compare_settings
from ctxext.prove.token_texts import texts_for
from ctxext.rundir import RunDir

EVERY_POSITION = 2e10
"""Parameters x tokens up to which a proof reads every position of the window."""
SUM_TOLERANCE = 1e-6
"""Of the largest weight: how far sums of the same products in float32 may be apart."""


def prove(
    directory: str | Path,
    *,
    against: LM | str | Path | None = None,
    checkpoint: int | str = "latest",
    methods: tuple[Any, ...] = (),
    original: int | None = None,
    seq_len: int | None = None,
    allow_shorter: bool = False,
    bos: bool | None = None,
    adapter: str | Path | None = None,
) -> dict[str, Any]:
    """Compare an export, or a PEFT adapter on its base, with `against` in every reader.

    `against`: a model, a run (its `checkpoint`) or an HF directory, under `methods` if given; by
    default the same files as ctxext reads them. For an adapter an HF directory is its base, in
    place of the one that it names. `original`: the window of pre-training in tokens, for files that
    do not declare it: Meta's directories without rope.json, some of GGUF. `seq_len`: the extended
    window that the files should declare, by default the one that `export.export` chooses for
    `against`. `allow_shorter`: see `LM.with_method`. `bos`: whether texts begin with BOS in the
    checkpoint `against`, if it is not as its files say. `adapter`: a PEFT directory that was merged
    into the checkpoint `against` before the export; weights that it changed may differ by rounding.

    Writes proof.json (next to FILE.gguf: FILE.proof.json) with digests of all files, and fills in
    the proof section of the model card. Without a model to compare with, a recorded proof that has
    one is kept, and files that are not those of the recorded proof are not equal. "equal" in the
    result is the verdict. Raises ValueError for files that cannot be read and for a base that does
    not fit, OSError if the proof cannot be written.
    """
    path = Path(directory)
    compared = _open_against(path, against, checkpoint, methods, allow_shorter, bos, adapter)
    artifact = Artifact.recognize(path, compared.base, original)
    model = compared.model
    if seq_len is not None and model is None:
        raise ValueError(
            "--seq-len is of the model that an export is compared with; name it with --against"
        )
    lengths = compared.lengths if seq_len is None else (seq_len,)
    recorded = read_recorded(path) if model is None else None
    with progress.part("digests of the files"):
        files = distributed.broadcast_from_primary(artifact.digests)
    changes = {} if recorded is None else changed_files(recorded.files, files)
    settings = SettingsComparison()
    try:
        if model is not None:
            settings = compare_settings(artifact, model, lengths)
        if artifact.format == "peft":
            different, noted = compare_adapter(artifact, compared.lora)
            settings = dataclasses.replace(
                settings, different=[*settings.different, *different], noted=noted
            )
        comparison = _compare(artifact, model, settings, compared.merged)
    except ValueError as error:
        notes = list(settings.different)
        if recorded is not None:
            notes.append(recorded.state(changes))
        raise ValueError("; ".join([str(error), *notes])) from None
    equal = (
        not comparison["weights_that_differ"]
        and not comparison["settings_that_differ"]
        and not comparison["generation_settings_that_differ"]
        and not changes
        and all(reader["equal"] for reader in comparison["readers"])
    )
    proof = {
        "equal": equal,
        "format": artifact.format,
        "against": compared.name or f"our own reading of the {artifact.noun}",
        "compared_with_model": model is not None,
        "adapter": None if adapter is None else str(adapter),
        **comparison,
        "files": files,
        "files_that_differ": changes,
    }
    if recorded is None or not (recorded.with_model or changes):
        _save(artifact, proof)
        return proof
    kept = {"file": str(recorded.path), "equal": recorded.equal, "against": recorded.against}
    return proof | {"equal": equal and recorded.equal, "recorded": kept}


def _compare(
    artifact: Artifact, model: LM | None, settings: SettingsComparison, merged: frozenset[str]
) -> dict[str, Any]:
    """What the readers make of the files, and what is stored in them, compared with the model."""
    stored = artifact.open(ONE_DEVICE if model is None else model.mesh, model)
    if model is None:
        ours = stored
    else:  # the stored weights, but the tokenizer and frequencies of the model
        ours = LM(
            model.config, stored.params, model.tokenizer, scaling=model.scaling, mesh=model.mesh
        )
    base = {}
    trained = stored
    if artifact.format == "peft":
        base = {"base": str(artifact.base), "base_checked": artifact.base_is_recorded}
    if artifact.quantize != "none" and model is not None:
        # Readers open the base as it is stored, the run trained it quantized.
        base["base_quantized"] = artifact.quantize
        trained = artifact.open(model.mesh, model, as_trained=True)
    return {
        **base,
        **_stored_values(artifact, trained, model, merged),
        "settings_that_differ": settings.different,
        "settings_not_known": settings.unknown,
        "settings_noted": settings.noted,
        **_readings(artifact, ours, settings.window or artifact.window),
        "known_incompatibilities": [
            dataclasses.asdict(known) for known in known_incompatibilities(artifact, ours.tokenizer)
        ],
    }


def _stored_values(
    artifact: Artifact, stored: LM, model: LM | None, merged: frozenset[str]
) -> dict[str, Any]:
    """Weights and generation settings in the files that are not those of the exported model."""
    dtypes = artifact.dtypes()
    weights: list[str] = []
    rounded: list[str] = []
    settings: list[str] = []
    if model is not None:
        exported = merge_layers(model.params)
        with progress.part("comparing the weights"):
            weights = _different_weights(stored.params, exported, dtypes)
        rounded = [
            name
            for name in weights
            if name in merged and _differ_by_rounding(name, stored.params, exported, dtypes)
        ]
        settings = _different_generation_settings(artifact, stored, model)
    return {
        "dtype": _matrix_dtype(dtypes),
        "weights_that_differ": sorted(set(weights) - set(rounded)),
        "weights_that_differ_by_rounding": rounded,
        "generation_settings_that_differ": settings,
    }


def _readings(artifact: Artifact, ours: LM, declared: int) -> dict[str, Any]:
    """Every reader's view of the files, compared with `ours` in the `declared` window L'."""
    window = ours.config.max_position_embeddings
    # A scaling is compared beyond the window of pre-training, even if it declares no longer one.
    length = max(declared, window + 1)
    positions = [0, window - 1, window, length - 1]
    if not ours.config.layers.rotates:  # nor has it a scaling
        length = declared
        positions = [0, window - 1, length - 1]
    every = ours.config.num_parameters * length <= EVERY_POSITION
    first = window_input(positions, ours.config.vocab_size, every=every)
    with progress.part("writing tokens to compare"):
        continuation = continuation_input(ours, first.tokens, length)
    inputs = [first, continuation]
    outputs, not_run = read_all(artifact, inputs)
    compared = []
    for output in outputs:
        with progress.part(f"comparing with {output.name}"):
            compared.append(compare(ours, output, inputs, texts_for(artifact)))
    return {
        "original_max_position_embeddings": window,
        "max_position_embeddings": length,
        "positions": positions,
        "tokens_read": len(first.tokens),
        "tokens_continued": len(continuation.compared),
        "readers": compared,
        "readers_not_run": not_run,
    }


def _save(artifact: Artifact, proof: dict[str, Any]) -> None:
    """Write the proof next to the files, and into their model card."""
    distributed.broadcast_from_primary(lambda: write_json(proof_file(artifact.path), proof))
    card = artifact.path / "README.md"
    if card.is_file():
        text = code_block(describe(proof))
        distributed.broadcast_from_primary(
            lambda: write_text(card, with_proof(card.read_text(), text))
        )


class _Against(NamedTuple):
    """The model that an artifact is compared with, and its name; the base of an adapter.

    `lengths`: those that an export of the model may be written for, unless one is given. `merged`:
    the names of weights that an adapter has changed. `lora`: how the run that an adapter is
    compared with trained.
    """

    model: LM | None = None
    name: str = ""
    base: str | Path | None = None
    lengths: tuple[int, ...] = ()
    merged: frozenset[str] = frozenset()
    lora: LoRA | None = None


def _open_against(
    path: Path,
    against: LM | str | Path | None,
    checkpoint: int | str,
    methods: tuple[Any, ...],
    allow_shorter: bool,
    bos: bool | None,
    adapter: str | Path | None,
) -> _Against:
    base = None
    if adapter is not None:
        _check_adapter(path, against)
    name = "the model that was exported"
    seq_lens: tuple[int, ...] = ()
    lora = None
    if isinstance(against, str | Path) and peft_reader.is_adapter(path):
        source = loading.locate(against)
        if loading.is_run(source):
            trainable = loading.trainable_of(RunDir(source))
            lora = trainable if isinstance(trainable, LoRA) else None
        else:
            base = against
            against = None
    if isinstance(against, str | Path):
        name = _name(path, against, checkpoint)
        seq_lens = _training_lengths(against)
        against = loading.load(against, checkpoint=checkpoint, bos=bos, adapter=adapter)
        if adapter is not None:
            name += f" with the adapter {adapter} merged"
    elif bos is not None:
        raise ValueError(
            "--bos and --no-bos are of the model that an export is compared with; name it with "
            "--against"
        )
    elif checkpoint != "latest":
        raise ValueError(f"checkpoint {checkpoint} is one of a run; name that with --against RUN")
    if methods:
        if against is None:
            raise ValueError(
                "methods are those of the model that an export is compared with; name it with "
                "--against"
            )
        against = against.with_method(*methods, allow_shorter=allow_shorter)
        name += f" with {label(methods)}"
    if against is None:
        return _Against(base=base)
    context = against.context
    seq_lens = (against.config.max_position_embeddings, *seq_lens)
    lengths = tuple(context.export_length(against.scaling, seq_len) for seq_len in seq_lens)
    merged: frozenset[str] = frozenset()
    if adapter is not None:
        changes = peft_reader.read(adapter, against.config)
        merged = frozenset(changes.low_rank | changes.replaced)
    return _Against(against, name, lengths=tuple(dict.fromkeys(lengths)), merged=merged, lora=lora)


def _check_adapter(path: Path, against: LM | str | Path | None) -> None:
    """Raise ValueError for an adapter that is merged into nothing, or into its own base."""
    if peft_reader.is_adapter(path):
        raise ValueError(
            f"{path} is itself a PEFT adapter; prove it on its base, --against BASE, without "
            "--adapter"
        )
    if not isinstance(against, str | Path):
        raise ValueError(
            "--adapter was merged into the model that an export is compared with; name that model "
            "with --against BASE"
        )


def _training_lengths(against: str | Path) -> tuple[int, ...]:
    """The length that a run trained at, for which `ctxext run` writes its export."""
    source = loading.locate(against)
    if not loading.is_run(source):
        return ()
    return (RunDir(source).settings()["train"]["seq_len"],)


def _name(path: Path, against: str | Path, checkpoint: int | str) -> str:
    """What an artifact is compared with, in words. Raises ValueError if that is the artifact."""
    source = loading.locate(against)
    if source.resolve() == path.resolve():
        raise ValueError(
            f"--against {against} is the export itself; name the run or the checkpoint that it was "
            "written from"
        )
    if loading.is_run(source):
        return f"the run {against} after {loading.checkpoint_step(source, checkpoint)} steps"
    return f"the checkpoint {against}"


def _matrix_dtype(dtypes: dict[str, str]) -> str:
    """The dtype of all tensors, or the types of GGUF's matrices, whose vectors are float32."""
    names = set(dtypes.values())
    if len(names) > 1:
        names.discard("float32")
    return ", ".join(sorted(names))


def _different_generation_settings(artifact: Artifact, stored: LM, model: LM) -> list[str]:
    """The keys of generation_config.json that are not what the model's own file becomes."""
    if artifact.format != "hf":  # no other format has the file
        return []
    expected = extended_generation_config(
        model.generation_config, model.config, window=artifact.window
    )
    return different_settings(stored.generation_config, expected, model.config)


def _different_weights(stored: Any, exported: Any, dtypes: dict[str, str]) -> list[str]:
    """Names of tensors that are not the exported ones rounded to the stored dtype, bit by bit.

    How another program rounds to another type is not known here: those have to be the same numbers.
    """
    actual, expected = slots(stored), slots(exported)

    def equal(name: str) -> bool:
        if name not in actual or name not in dtypes:
            return False
        if actual[name].shape != expected[name].shape:
            return False
        return np.array_equal(_rounded(expected[name].get(), dtypes[name]), actual[name].get())

    def num_values(name: str) -> float:
        return float(np.prod(expected[name].shape))

    same = {name for name in progress.each(expected, num_values) if equal(name)}
    return sorted((expected.keys() | actual.keys()) - same)


def _differ_by_rounding(name: str, stored: Any, exported: Any, dtypes: dict[str, str]) -> bool:
    """Whether a merged tensor differs by one step of its dtype, or of a sum in float32.

    Programs add up the product of an adapter in different orders.
    """
    actual, expected = slots(stored), slots(exported)
    is_same_kind = name in dtypes and name in actual and dtypes[name] not in ROUNDED
    if not is_same_kind or actual[name].shape != expected[name].shape:
        return False
    values = expected[name].get()
    step = float(ml_dtypes.finfo(numpy_dtype(dtypes[name])).eps)
    tolerance = step * np.abs(values) + SUM_TOLERANCE * np.abs(values).max()
    return bool((np.abs(actual[name].get() - values) <= tolerance).all())


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype in ROUNDED:
        return ROUNDED[dtype](values)
    if dtype not in STORAGE_DTYPES:
        return values
    return values.astype(numpy_dtype(dtype)).astype(np.float32)

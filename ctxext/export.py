"""Write a model for other readers, in one of the formats of `ctxext.interop.formats`."""

import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ctxext import loading, progress, report
from ctxext.attention import Attention, Causal
from ctxext.evals.record import EvaluatedModel, read_records
from ctxext.experiment import BUNDLED
from ctxext.files import read_json
from ctxext.interop import hf, peft_base, peft_writer
from ctxext.interop.formats import FORMATS as FORMATS
from ctxext.interop.formats import find_format, recognize
from ctxext.interop.hf_weights import StoredModel, WriteOptions, lazy_tensors, storage_dtype
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.model_card import public_command, public_name, versions_text
from ctxext.interop.native_attention import native_config
from ctxext.interop.ropespec import LARGEST_DIVISOR, rope_spec
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.context import DeclaredContext
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.model.lora import merge_layers
from ctxext.model.trainable import LoRA
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.rope import Rope, RopeScaling, rope_at
from ctxext.rundir import RunDir, git_commit, versions
from ctxext.serialization import read_saved


def export(
    lm: LM,
    out: str | Path,
    *,
    to: str = "hf",
    dtype: str = "bfloat16",
    seq_len: int | None = None,
    card: dict[str, Any] | None = None,
    max_shard_size: int = 5 * 10**9,
    shards: int | None = None,
    allow_shorter: bool = False,
) -> Path:
    """Write `lm` to `out` in the format `to`, a name of `FORMATS`: a directory, for gguf a file.

    `seq_len`: the extended window L', tokens; by default what the checkpoint declares, or factor x
    L under another scaling. The other arguments are those of `WriteOptions`. Raises ValueError,
    before anything is written, for a format, dtype or method that cannot be written and, unless
    `allow_shorter`, for less context than the checkpoint of `lm` declares.
    """
    tensors = lazy_tensors(lm.config, merge_layers(lm.params))
    options = WriteOptions(dtype, card, max_shard_size, shards)
    return _write(lm, tensors, Path(out), to, options, seq_len=seq_len, allow_shorter=allow_shorter)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    methods: Iterable[RopeScaling | Attention] = (),
    to: str = "hf",
    dtype: str | None = None,
    seq_len: int | None = None,
    max_shard_size: int = 5 * 10**9,
    shards: int | None = None,
    original: int | None = None,
    bos: bool | None = None,
    allow_shorter: bool = False,
    command: str = "",
) -> Path:
    """Like `export`, for a checkpoint on disk: its tensors pass through memory one at a time.

    `dtype`: by default as they are stored, or float32 if they are mixed. `original`: the window L
    of pre-training where the source, in Meta's format, does not declare it. `bos`: whether texts
    begin with BOS, by default as the source's tokenizer does. `command`: the command line, for the
    card. Raises ValueError as `export` and `loading.load` do.
    """
    path = loading.locate(source)
    methods = tuple(methods)
    if loading.is_run(path):
        raise ValueError(
            f"{source} is a run directory, not a checkpoint; write one with: ctxext export"
        )
    checkpoint = loading.read_checkpoint(path, original)
    config = checkpoint.config
    lm = LM(
        config,
        param_shapes(config),
        loading.choose_bos(checkpoint.tokenizer, bos, path),
        scaling=checkpoint.scaling,
        generation_config=checkpoint.generation_config,
        about=checkpoint.about,
        declared_context=checkpoint.context,
    ).with_method(*methods, allow_shorter=allow_shorter)
    options = WriteOptions(
        dtype or storage_dtype(checkpoint.tensors.values()),
        card={
            "base model": public_name(source),
            **({"method": label(methods)} if methods else {}),
            "command": public_command(command),
        },
        max_shard_size=max_shard_size,
        shards=shards,
    )
    return _write(
        lm,
        checkpoint.tensors,
        Path(out),
        to,
        options,
        seq_len=seq_len,
        allow_shorter=allow_shorter,
    )


def stored_dtype(source: str | Path) -> str:
    """The number type that a checkpoint's tensors are stored in, or float32 if they are mixed."""
    return storage_dtype(loading.read_checkpoint(loading.locate(source)).tensors.values())


def _write(
    lm: LM,
    tensors: dict[str, LazyTensor],
    out: Path,
    to: str,
    options: WriteOptions,
    *,
    seq_len: int | None,
    allow_shorter: bool,
) -> Path:
    window = seq_len or lm.context.export_length(lm.scaling, lm.config.max_position_embeddings)
    check(lm.config, lm.scaling, lm.attention, to=to, window=window, dtype=options.dtype)
    if not allow_shorter:
        check_length(lm.config, lm.scaling, lm.context, window)
    config = config_with(lm.attention, lm.config, to=to)
    if options.shards is not None and not find_format(to).takes_shards:
        raise ValueError("only Meta's format has a number of shards; --shards needs --to meta")
    model = StoredModel(
        config, lm.scaling, window, tensors, lm.tokenizer, lm.generation_config, lm.about
    )
    options = dataclasses.replace(options, card=_with_versions(options.card or {}))
    with progress.part(f"writing {out}"):
        find_format(to).write(out, model, options)
    return out


def _with_versions(card: dict[str, Any]) -> dict[str, Any]:
    """The facts with the versions and the commit that wrote the files, unless they have others.

    Facts without a text are left out.
    """
    written_by = {"versions": versions_text(versions()), "commit": git_commit()}
    facts = card if "versions" in card else card | written_by
    return {name: fact for name, fact in facts.items() if fact}


def check(
    config: LlamaConfig,
    scaling: RopeScaling,
    attention: Attention,
    *,
    to: str,
    window: int,
    dtype: str,
) -> None:
    """Raise ValueError, with the reason, for a format, dtype or method that cannot be written.

    `window`: the extended window L', tokens.
    """
    output = find_format(to)
    config = config_with(attention, config, to=to)
    output.check(config, scaling, window=window, dtype=dtype)


def check_length(
    config: LlamaConfig, scaling: RopeScaling, context: DeclaredContext, window: int
) -> None:
    """Raise ValueError if the files would declare less context than the checkpoint does.

    `window`: the extended window L' that is asked for, tokens.
    """
    if scaling.depends_on_length:  # its files declare where the growth begins
        return
    context.check_length(rope_spec(scaling, config, window).length, scaling, asked=window)


def config_with(attention: Attention, config: LlamaConfig, *, to: str) -> LlamaConfig:
    """The shape of a model that attends so by itself, as the format `to` holds it.

    Raises ValueError for attention for which the format has no field.
    """
    if attention == Causal():
        return config
    native = native_config(config, attention) if to == "hf" else None
    if native is None:
        raise ValueError(
            f"{type(attention).__name__} is a way to run a model, for which the {to} format has no "
            "field; export with causal attention (in an experiment: export=None) and choose it "
            "again when loading"
        )
    return native


def run_card(run: RunDir, model: EvaluatedModel) -> dict[str, Any]:
    """The facts for the card of a run's checkpoint: its training, and what was measured of it.

    Next to its own results stand those of variants without training and of baselines that were
    trained as long, not those of other checkpoints. It has no results before it was evaluated.
    """
    records = read_records(run.records_file)
    shown = [
        record for record in records if record.model == model or _compares(record.model, model)
    ]
    is_evaluated = any(record.model == model for record in records)
    note = merge_note(run)
    return {
        "method": model.label,
        "experiment": run.settings()["name"],
        **report.provenance(run, model.steps),
        **({"weights": note} if note else {}),
        "summary": report.tables(shown) if is_evaluated else "",
    }


def merge_note(run: RunDir) -> str:
    """What the weights of a run on a quantized base are, in words; empty for another run."""
    quantize = (run.settings()["trainable"] or {}).get("quantize", "none")
    if quantize == "none":
        return ""
    return f"the base, trained in {quantize}, dequantized, with the adapters merged"


def _compares(other: EvaluatedModel, model: EvaluatedModel) -> bool:
    """Whether a variant belongs on the card of a model: not another checkpoint of the same run."""
    is_changed = other.trained_with or other.adapter
    is_run_alike = (other.dtype, other.bos) == (model.dtype, model.bos)
    return other.steps in (0, model.steps) and is_run_alike and not is_changed


def export_adapter(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    checkpoint: int | str = "latest",
    mesh: Mesh = ONE_DEVICE,
    trust: bool = False,
) -> Path:
    """Write what a LoRA run trained as a PEFT directory, to be loaded on `base`.

    `base` is by default the run's own base; it is not copied. PEFT has no field for frequencies, so
    the base must have those of the run in its own config.json. For a later `prove`, that file and a
    checksum of the base's parameters are stored with the adapter, and how the run quantized them.
    Raises ValueError for a base that
    has other frequencies (with the command that writes a right one), that is another model, or that
    no config.json can describe.
    """
    path = loading.locate(source)
    if not loading.is_run(path):
        raise ValueError(f"{source} is not a run directory; --to peft writes what a run trained")
    run = RunDir(path)
    config, scaling = loading.read_config(path, trust=trust)
    settings = run.settings()
    trained_with = read_saved(run.config_file, Attention, key="attention", trust=trust)
    config_with(trained_with.after_training, config, to="peft")
    # The base has to declare these frequencies.
    window = config.max_position_embeddings
    check(config, scaling, Causal(), to="hf", window=window, dtype="float32")
    trainable, params = loading.load_trained(run, config, mesh, checkpoint=checkpoint)
    if not isinstance(trainable, LoRA):
        raise ValueError(
            f"{source} did not train with --method lora; export the whole model with --to hf"
        )
    base_directory = _locate_base(base, settings["init"], run)
    base = base or settings["init"]
    if base is None or base_directory is None or not _is_hf(base_directory):
        raise ValueError(
            "PEFT loads an adapter on a base in HF format, not on "
            f"{base or 'random parameters'}; export that with --to hf and name it with --base"
        )
    base_rope = hf.read_config(base_directory)
    lengths = (config.max_position_embeddings, settings["train"]["seq_len"])
    if not all(same_rope((config, scaling), base_rope, length) for length in lengths):
        raise ValueError(
            f"the run has other frequencies ({label([scaling])}) than {base}, and an adapter "
            f"cannot carry them; write a base that has them: ctxext export "
            f"{shlex.quote(str(base))} --method NAME ... --out SCALED, then name it with --base "
            "SCALED"
        )
    loading.load_frozen(run, config, base=base, mesh=mesh, trust=trust)  # refuses other weights
    of_base = {
        "checksum": run.base_checksum(),
        "dtype": settings["train"]["dtype"],
    }
    if trainable.quantize != "none":
        of_base["quantize"] = trainable.quantize
    recorded = {"config.json": read_json(base_directory / "config.json"), peft_base.BASE: of_base}
    # Anything else is a name on the hub, which PEFT resolves too.
    is_local = Path(base).exists() or base == BUNDLED
    name = str(base_directory.resolve()) if is_local else str(base)
    peft_writer.write(out, config, trainable, params, base=name, extra_files=recorded)
    return Path(out)


def _is_hf(path: Path) -> bool:
    return not loading.is_run(path) and recognize(path) == "hf"


def _locate_base(base: str | Path | None, init: str | None, run: RunDir) -> Path | None:
    """The place of the base that is given, or of the run's own; None if it has none."""
    if base is not None:
        return loading.locate(base)
    if init is None:
        return None
    try:
        return loading.locate(init)
    except ValueError as error:
        raise ValueError(
            f"the base of {run.path} cannot be opened: {error}; name another place with --base"
        ) from None


def same_rope(
    one: tuple[LlamaConfig, RopeScaling], other: tuple[LlamaConfig, RopeScaling], seq_len: int
) -> bool:
    """True if both rotate alike at this length, to the precision that a config.json has.

    That is float32, and a very large divisor in place of a frequency of zero.
    """
    a, b = (rope_at(scaling, config.rope_base(), seq_len) for config, scaling in (one, other))
    has_window = {kind.window is not None for kind in one[0].layers.kinds}
    if False in has_window and not _rotate_alike(a, b):
        return False
    return True not in has_window or _rotate_alike(a.of_sliding_layers, b.of_sliding_layers)


def _rotate_alike(a: Rope, b: Rope) -> bool:
    same_frequencies = np.allclose(a.inv_freq, b.inv_freq, rtol=1e-6, atol=1 / LARGEST_DIVISOR)
    same_factor = np.isclose(a.attention_factor, b.attention_factor, rtol=1e-6)
    return bool(same_frequencies and same_factor) and a.leading is None and b.leading is None

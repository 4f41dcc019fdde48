"""Open a model: a checkpoint, a run directory, a name on the hub, or the bundled base."""

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ctxext import progress
from ctxext.assets import TINY_LLAMA
from ctxext.attention import Attention, Kernel
from ctxext.experiment import BUNDLED, Experiment
from ctxext.files import read_json
from ctxext.interop import hf, hub, packaged, peft_base, peft_reader
from ctxext.interop.formats import FORMATS, recognize
from ctxext.interop.generation_config import read_generation_config
from ctxext.interop.gguf import is_gguf, refuse_directory
from ctxext.interop.hf_weights import StoredModel, assemble, slots
from ctxext.interop.peft_merge import merge, trained_whole
from ctxext.interop.peft_reader import Adapter
from ctxext.interop.validation import SIZE, check_shape
from ctxext.model.config import LlamaConfig
from ctxext.model.context import DeclaredContext
from ctxext.model.decoder import Params, init_params, param_shapes
from ctxext.model.generation import Semantics
from ctxext.model.lm import LM
from ctxext.model.lora import materialize_merged, merge_layers
from ctxext.model.quantized import (
    Quantize,
    cast_floats,
    has_quantized,
    hold,
    is_quantized,
    quantize_stack,
    quantized_shapes,
)
from ctxext.model.trainable import Full, Trainable, join, split
from ctxext.nearest import nearest
from ctxext.parallel.mesh import ONE_DEVICE, Mesh, shardings
from ctxext.rope import Angles, RopeScaling, Unscaled
from ctxext.rundir import RunDir
from ctxext.serialization import read_saved
from ctxext.tokenization.tokenizer import JSON, MODEL, Tokenizer, load_tokenizer
from ctxext.training.checkpoint import find_step, load_params
from ctxext.training.checksums import parameter_checksum

LOG = logging.getLogger("ctxext")


def locate(source: str | Path) -> Path:
    """The local path of a source: itself, the bundled base, or a download (extra `hub`).

    Also a model that a Python package carries, by its name. Raises ValueError if there is nothing,
    with the nearest of these names.
    """
    if Path(source).exists():
        return Path(source)
    if str(source) == BUNDLED:
        return TINY_LLAMA
    if str(source) in packaged.MODELS:
        return packaged.find(str(source))
    close = nearest(str(source), [BUNDLED, *packaged.MODELS])
    if close:
        raise ValueError(
            f"{source} does not exist; did you mean {close!r}? Or give a checkpoint directory, or "
            "a hub name (owner/model)"
        )
    return hub.resolve(str(source))


def name_of(source: str | Path) -> str:
    """The name of a model in records and pages: what opens it again, of a path the last part."""
    path = locate(source)
    is_packaged = str(source) in packaged.MODELS and path != Path(source)
    return str(source) if is_packaged else path.resolve().name


def is_here(source: str) -> bool:
    """True if a source can be opened without a download."""
    return source == BUNDLED or source in packaged.MODELS or Path(source).exists()


def is_run(path: Path) -> bool:
    """True for a run directory, False for a checkpoint in any format."""
    return (path / "base" / "model.json").is_file()


def open_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint, of a run, or in a file. Raises ValueError if there is none."""
    path = locate(source)
    if path.is_file():
        if is_gguf(path):
            return read_checkpoint(path).tokenizer
        if path.suffix == ".model":
            return Tokenizer({MODEL: path.read_bytes()})
        if path.suffix != ".json":
            raise ValueError(
                f"{path} is not a tokenizer: give {MODEL}, {JSON}, or the directory of a checkpoint"
            )
        path = path.parent
    if is_run(path):
        return load_tokenizer(path / "base")
    if not any((path / name).exists() for name in (MODEL, JSON)):
        refuse_directory(path)
    return load_tokenizer(path)


def read_checkpoint(path: Path, original: int | None = None) -> StoredModel:
    """A checkpoint in any format that ctxext reads, before its weights are read.

    `original`: the window of pre-training in tokens, which Meta's own checkpoints do not declare,
    and some GGUF files. Raises ValueError for a checkpoint that is incomplete or not supported.
    """
    return FORMATS[recognize(path)].read(path, original)


def read_config(source: str | Path, *, trust: bool = False) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and frequencies of a checkpoint or a run; reads no weights. `trust`: see `load`."""
    path = locate(source)
    if is_run(path):
        config = read_saved(path / "base" / "model.json", LlamaConfig)
        scaling = read_saved(path / "base" / "scaling.json", RopeScaling, trust=trust)
        return config, scaling
    if recognize(path) == "hf":  # config.json is enough
        return hf.read_config(path)
    checkpoint = read_checkpoint(path)
    return checkpoint.config, checkpoint.scaling


def read_context(source: str | Path, *, trust: bool = False) -> DeclaredContext:
    """The context that a checkpoint or a run declares; reads no weights. `trust`: see `load`."""
    path = locate(source)
    config, scaling = read_config(path, trust=trust)
    original = config.max_position_embeddings
    if is_run(path):
        return _context_of_run(RunDir(path), original, scaling, trust=trust)
    declared = hf.window(path) if recognize(path) == "hf" else read_checkpoint(path).window
    return DeclaredContext.of(original, scaling, declared)


def _context_of_run(
    run: RunDir, original: int, scaling: RopeScaling, *, trust: bool
) -> DeclaredContext:
    if not run.context_file.is_file():
        raise ValueError(
            f"{run.context_file} is missing: restore it, or train again with this version"
        )
    base_scaling = read_saved(run.context_file, RopeScaling, key="base_scaling", trust=trust)
    declared = read_json(run.context_file).get("declared")
    try:
        check_shape(declared, SIZE, "declared")
    except ValueError as error:
        raise ValueError(f"{run.context_file}: {error}") from None
    context = DeclaredContext.of(original, scaling, declared)
    return dataclasses.replace(context, base_scaling=base_scaling)


def checkpoint_step(source: str | Path, checkpoint: int | str = "latest") -> int:
    """The training steps of a run's checkpoint; 0 for a model that is not a run.

    `checkpoint`: the "latest", the "best" (by `train.keep_best`), or a number of steps. Raises
    ValueError, listing the checkpoints that exist, for one that does not.
    """
    path = locate(source)
    if is_run(path):
        return find_step(RunDir(path).checkpoints, checkpoint)
    if checkpoint not in ("latest", 0):
        raise ValueError(
            f"{source} is not a run directory and has no checkpoint {checkpoint}; leave out "
            "--checkpoint"
        )
    return 0


def load(
    path: str | Path,
    *,
    method: RopeScaling | Attention | Iterable[Any] | None = None,
    adapter: str | Path | None = None,
    checkpoint: int | str = "latest",
    dtype: str = "float32",
    kernel: Kernel = "blocked",
    angles: Angles = "exact",
    mesh: Mesh = ONE_DEVICE,
    trust: bool = False,
    original: int | None = None,
    bos: bool | None = None,
    semantics: Semantics = "incremental",
    allow_shorter: bool = False,
) -> LM:
    """Open an HF or Meta directory, a GGUF file, a run, a hub name, "tiny-llama" or "smollm2".

    `method`: frequencies, attention or a tuple of both, in place of what the checkpoint carries,
    which `Unscaled` and None keep; plain RoPE is `Plain`. `allow_shorter`: accept a factor that
    gives less context than the checkpoint declares.
    `dtype`: the compute dtype, in which the parameters of a checkpoint are held; those of a run are
    float32. A run on a quantized base holds that quantized, see `LM`.
    `adapter`: a PEFT directory to merge into the parameters. `checkpoint`: which one of a run, see
    `checkpoint_step`. `mesh`: the devices that the parameters are divided among; each device
    reads only its own slices. `trust`: import the Python files that a run's methods come from.
    `original`: the window of pre-training in tokens, where Meta's format or a GGUF file does not
    declare it.
    `semantics`: see `LM`. `bos`: whether texts begin with BOS; by default as the checkpoint's
    tokenizer does. Raises ValueError for a checkpoint that is incomplete, corrupt, or has a scaling
    that is not supported.
    """
    path = locate(path)
    if peft_reader.is_adapter(path):
        raise ValueError(f"{path} is a PEFT adapter: open its base, and give this as --adapter")
    step = checkpoint_step(path, checkpoint)
    stored = None if is_run(path) else read_checkpoint(path, original)
    config = read_config(path, trust=trust)[0] if stored is None else stored.config
    # A wrong adapter is refused before anything large is read.
    changes = None if adapter is None else peft_reader.read(adapter, config)
    with progress.part(f"loading {path}"):
        if stored is None:
            lm = _load_run(RunDir(path), step, mesh, dtype=dtype, trust=trust)
        else:
            lm = _load_checkpoint(stored, param_shapes(config, dtype), mesh)
    lm = dataclasses.replace(
        lm,
        tokenizer=choose_bos(lm.tokenizer, bos, path),
        dtype=dtype,
        kernel=kernel,
        angles=angles,
        semantics=semantics,
    )
    if adapter is not None and changes is not None:
        lm = lm.merged()
        _note_what_differs(Path(adapter), changes, lm, path)
        lm = dataclasses.replace(lm, params=merge(lm.params, changes, config))
    methods = [method] if isinstance(method, RopeScaling | Attention) else list(method or ())
    return lm.with_method(*methods, allow_shorter=allow_shorter)


def choose_bos(tokenizer: Tokenizer, bos: bool | None, path: Path) -> Tokenizer:
    """The tokenizer with BOS before a text, without, or for None as its files say.

    Raises ValueError, naming the checkpoint `path`, if they contradict each other.
    """
    try:
        chosen = tokenizer.with_bos(bos)
        chosen.adds_bos  # noqa: B018
        return chosen
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _load_checkpoint(checkpoint: StoredModel, shapes: Params, mesh: Mesh) -> LM:
    """The parameters in the dtypes of `shapes`, each device reading its own slices."""
    shapes = mesh.shard(shapes)
    params = assemble(shapes, slots(shapes), checkpoint.tensors, _put_slices)
    return LM(
        checkpoint.config,
        params,
        checkpoint.tokenizer,
        scaling=checkpoint.scaling,
        mesh=mesh,
        generation_config=checkpoint.generation_config,
        about=checkpoint.about,
        declared_context=checkpoint.context,
    )


def _put_slices(leaf: Any, read: Callable[..., Any]) -> Any:
    if is_quantized(leaf):
        whole = slice(None)
        return quantize_stack(leaf, lambda i: read((slice(i, i + 1), whole, whole))[0])
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)


def _load_run(run: RunDir, checkpoint: int | str, mesh: Mesh, *, dtype: str, trust: bool) -> LM:
    config, scaling = read_config(run.path, trust=trust)
    trained_with = read_saved(run.config_file, Attention, key="attention", trust=trust)
    return LM(
        config,
        load_run_params(run, config, mesh, checkpoint=checkpoint, dtype=dtype, trust=trust),
        load_tokenizer(run.base),
        scaling=scaling,
        attention=trained_with.after_training,
        mesh=mesh,
        generation_config=read_generation_config(run.base),
        about=run.about(),
        declared_context=read_context(run.path, trust=trust),
    )


def trained_on(lm: LM, adapter: Adapter, recorded: Mapping[str, str]) -> bool:
    """Whether a model holds the parameters that an adapter records as those of its base.

    recorded: their number type, checksum and quantization, without what the adapter replaces.
    """
    replaced = trained_whole(adapter, lm.params, lm.config)
    nothing = r"(?!)"
    pattern = "|".join(f"^{re.escape(path)}$" for path in sorted(replaced)) or nothing
    frozen = split(lm.params, pattern)[1]
    held = _quantized(frozen, recorded.get("quantize", "none"), lm.mesh)
    return parameter_checksum(cast_floats(held, recorded["dtype"])) == recorded["checksum"]


def _quantized(params: Params, quantize: Any, mesh: Mesh) -> Params:
    if quantize == "none":
        return params
    return hold(params, mesh.shard(quantized_shapes(params, quantize)))


def _note_what_differs(directory: Path, adapter: Adapter, lm: LM, base: Path) -> None:
    """Warn of an adapter that has another base or another tokenizer, as far as its files tell."""
    if names := peft_base.other_tokenizer_files(directory, lm.tokenizer):
        LOG.warning(
            "%s of the adapter %s are not those of its base %s and are not used: copy them there "
            "if the adapter was trained with them",
            ", ".join(names),
            directory,
            base,
        )
    recorded = peft_base.recorded_base(directory)
    stored_as = str(jax.tree.leaves(lm.params)[0].dtype)
    # What was rounded to bfloat16 has another checksum in float32.
    if recorded is not None and recorded["dtype"] in (stored_as, "bfloat16"):
        if not trained_on(lm, adapter, recorded):
            LOG.warning(
                "%s does not hold the parameters that the adapter %s was trained on",
                base,
                directory,
            )
        elif "quantize" in recorded:
            LOG.warning(
                "the adapter %s was trained on %s in %s and is merged into it as it is stored, "
                "which is not quite the trained model: export that from its run, --to hf",
                directory,
                base,
                recorded["quantize"],
            )
    elif named := peft_base.another_base(directory, base):
        LOG.warning(
            "the adapter %s names %s as its base and is merged into %s: if that is another model, "
            "the adapter was not trained for it",
            directory,
            named,
            base,
        )


def merge_adapter(lm: LM, directory: Path, base: Path) -> LM:
    """The model, which is that in `base`, with a PEFT directory merged into its parameters."""
    adapter = peft_reader.read(directory, lm.config)
    _note_what_differs(directory, adapter, lm, base)
    return dataclasses.replace(lm, params=merge(lm.params, adapter, lm.config))


def merge_as_trained(lm: LM, directory: Path, quantize: Quantize) -> LM:
    """Like `merge_adapter`, into the float kernels that the quantized ones stand for."""
    adapter = peft_reader.read(directory, lm.config)
    held = _quantized(lm.params, quantize, lm.mesh)
    params = materialize_merged(merge_layers(held))
    return dataclasses.replace(lm, params=merge(params, adapter, lm.config))


def base_config(experiment: Experiment) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and frequencies that an experiment starts from; reads no weights.

    Raises ValueError if it has no base.
    """
    if experiment.init is not None:
        return read_config(experiment.init)
    if experiment.model is None:
        raise ValueError(
            f"experiment {experiment.name!r} needs a base: give --init DIR, or set `model` in the "
            "file"
        )
    return experiment.model, Unscaled()


def base_context(experiment: Experiment) -> DeclaredContext:
    """The context that the base of an experiment declares; reads no weights.

    Raises ValueError if it has no base.
    """
    config, scaling = base_config(experiment)
    if experiment.init is None:
        return DeclaredContext.of(config.max_position_embeddings, scaling)
    return _as_base(read_context(experiment.init))


def _as_base(context: DeclaredContext) -> DeclaredContext:
    """A run as the base of the next one: `none` is the run as it is, not what it began from."""
    return dataclasses.replace(context, base_scaling=None)


def load_base(experiment: Experiment, *, for_training: bool = False) -> LM:
    """The model an experiment starts from, float32: a checkpoint, or random parameters.

    Kernels that the experiment quantizes are read quantized, one layer at a time, so that float32
    copies of them never fill a device. `for_training`: other parameters that are not trained are
    read in the compute dtype, to which training would cast them anyway.
    """
    mesh = experiment.mesh
    config, scaling = base_config(experiment)
    trainable = experiment.trainable
    if experiment.init is not None:
        path = locate(experiment.init)
        if is_run(path):
            lm = load(path, mesh=mesh, bos=experiment.bos)
            params = merge_layers(lm.params)
            held = hold(params, mesh.shard(trainable.held_shapes(param_shapes(config))))
            return dataclasses.replace(lm, params=held, declared_context=_as_base(lm.context))
        dtype = experiment.train.dtype if for_training else "float32"
        lm = _load_checkpoint(read_checkpoint(path), trainable.base_shapes(config, dtype), mesh)
        return dataclasses.replace(
            lm,
            tokenizer=choose_bos(lm.tokenizer, experiment.bos, path),
            declared_context=_as_base(lm.context),
        )
    if experiment.tokenizer is None:
        raise ValueError(
            f"experiment {experiment.name!r} names no base: give --init DIR (or, to start from "
            "random parameters, set `tokenizer` to a directory)"
        )
    params = _random_params(config, experiment.seed, mesh)
    params = hold(params, mesh.shard(trainable.held_shapes(param_shapes(config))))
    tokenizer = open_tokenizer(experiment.tokenizer)
    tokenizer = choose_bos(tokenizer, experiment.bos, Path(experiment.tokenizer))
    return LM(config, params, tokenizer, scaling=scaling, mesh=mesh)


def _random_params(config: LlamaConfig, seed: int, mesh: Mesh) -> Params:
    def put(leaf: jax.ShapeDtypeStruct, values: Any) -> jax.Array:
        return _put_slices(leaf, np.asarray(values).__getitem__)

    return jax.tree.map(put, mesh.shard(param_shapes(config)), init_params(config, seed))


def load_run_params(
    run: RunDir,
    config: LlamaConfig,
    mesh: Mesh,
    *,
    checkpoint: int | str = "latest",
    dtype: str = "float32",
    trust: bool = False,
) -> Params:
    """All parameters of a run's checkpoint, trained and frozen ones: merged, and float32.

    On a quantized base they are not merged: its kernels stay quantized, and what else is frozen is
    held in `dtype`, as in training.
    """
    trainable, params = load_trained(run, config, mesh, checkpoint=checkpoint)
    if trainable == Full():
        return params
    frozen = load_frozen(run, config, mesh=mesh, trust=trust)
    if has_quantized(frozen):
        return trainable.hold(join(params, cast_floats(frozen, dtype)))
    merged = trainable.merge(join(params, frozen))
    return jax.device_put(merged, shardings(mesh.shard(param_shapes(config))))


def trainable_of(run: RunDir) -> Trainable:
    """The parameters that a run trained, as its settings name them."""
    return read_saved(run.config_file, Trainable, key="trainable")


def load_trained(
    run: RunDir, config: LlamaConfig, mesh: Mesh = ONE_DEVICE, *, checkpoint: int | str = "latest"
) -> tuple[Trainable, Params]:
    """The `Trainable` of a run, and its trained parameters at a checkpoint."""
    trainable = trainable_of(run)
    shapes, _ = trainable.shapes(config)
    return trainable, load_params(run.checkpoints, mesh.shard(shapes), which=checkpoint)[0]


def load_frozen(
    run: RunDir,
    config: LlamaConfig,
    *,
    base: str | Path | None = None,
    mesh: Mesh = ONE_DEVICE,
    trust: bool = False,
) -> Params:
    """The parameters that a run did not train, read from its own base or from `base`.

    They are float32, but for kernels that the run quantized. Raises ValueError if the base cannot
    be opened, or does not hold the parameters that the run was trained on (bit for bit in its
    compute dtype).
    """
    settings = run.settings()
    trainable = trainable_of(run)
    source = base or settings["init"]
    if source is None:
        params = _random_params(config, settings["seed"], mesh)
    else:
        try:
            params = _load_params_of_base(locate(source), trainable, mesh, trust=trust)
        except ValueError as error:
            raise ValueError(
                f"{run.path} holds only what it trained, and its base {source} cannot be opened: "
                f"{error}"
            ) from None
    frozen = split(trainable.init(params, settings["seed"]), trainable.pattern(config))[1]
    frozen = hold(frozen, mesh.shard(trainable.held_shapes(frozen)))
    checksum = parameter_checksum(cast_floats(frozen, settings["train"]["dtype"]))
    if checksum != run.base_checksum():
        raise ValueError(
            f"{source or 'this version'} does not hold the parameters that {run.path} was trained "
            "on: restore them, or train again"
        )
    return frozen


def _load_params_of_base(path: Path, trainable: Trainable, mesh: Mesh, *, trust: bool) -> Params:
    """All parameters of the base of a run, float32, but for those that `trainable` quantizes."""
    if is_run(path):
        return load(path, mesh=mesh, trust=trust).merged().params
    if peft_reader.is_adapter(path):
        raise ValueError(f"{path} is a PEFT adapter, not a base")
    checkpoint = read_checkpoint(path)
    shapes = trainable.base_shapes(checkpoint.config, "float32")
    return _load_checkpoint(checkpoint, shapes, mesh).params

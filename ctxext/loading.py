"""From a name or a directory to a model one can ask: HF checkpoints, run directories, the bundled base."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.assets import TINY_LLAMA
from ctxext.attention import Attention, Kernel
from ctxext.experiment import BUNDLED, Experiment
from ctxext.files import read_json
from ctxext.interop import hf, hub, meta, peft
from ctxext.interop.hf_weights import Checkpoint, assemble, find_weights, slots
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, init_params, param_shapes
from ctxext.model.lm import LM
from ctxext.model.trainable import Full, Trainable, join, split
from ctxext.parallel.mesh import ONE_DEVICE, Mesh, shardings
from ctxext.rope import Angles, RopeScaling, Unscaled
from ctxext.rundir import RunDir
from ctxext.serialization import from_json
from ctxext.tokenization.tokenizer import load_tokenizer
from ctxext.training.checkpoint import find_step, load_params
from ctxext.training.checksums import parameter_checksum


def locate(source: str | Path) -> Path:
    """A local directory: the bundled base by name, the path itself, or a hub download (extra `hub`)."""
    if str(source) == BUNDLED and not Path(BUNDLED).exists():
        return TINY_LLAMA
    return Path(source) if Path(source).exists() else hub.resolve(str(source))


def is_run(path: Path) -> bool:
    """True for a run directory, False for a checkpoint in HF format."""
    return (path / "base" / "model.json").is_file()


def read_checkpoint(path: Path, original: int | None = None) -> Checkpoint:
    """A directory in HF or Meta format, before its numbers are read.

    `original`: the window of pre-training in tokens, which Meta's own checkpoints do not say.
    """
    if meta.is_meta(path):
        return meta.read(path, original)
    if original is not None:
        raise ValueError(
            f"--original is for Meta's format; config.json in {path} says the window of pre-training"
        )
    config, scaling = hf.read_config(path)
    tokenizer = load_tokenizer(path)
    return Checkpoint(config, scaling, hf.window(path), find_weights(path, config), tokenizer)


def declared_window(source: str | Path) -> int | None:
    """The extended window L' that an HF directory declares, which need not be factor x L; None for a run."""
    path = locate(source)
    return (
        None
        if is_run(path)
        else read_checkpoint(path).window
        if meta.is_meta(path)
        else hf.window(path)
    )


def step_of(source: str | Path, checkpoint: int | str = "latest") -> int:
    """Steps behind a checkpoint of a run: the "latest", the "best" (of the lowest training loss), or after so many.

    0 for an HF directory. Raises ValueError, listing those that are there, for a checkpoint that is not.
    """
    path = locate(source)
    if is_run(path):
        return find_step(RunDir(path).checkpoints, checkpoint)
    if checkpoint not in ("latest", 0):
        raise ValueError(
            f"{source} is no run directory and has no checkpoint {checkpoint}; leave --checkpoint out"
        )
    return 0


def base_config(experiment: Experiment) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and frequencies that an experiment starts from; reads no weights. Raises ValueError if it names none."""
    if experiment.init is not None:
        path = locate(experiment.init)
        return run_base(path, trust=False) if is_run(path) else hf.read_config(path)
    if experiment.model is None:
        raise ValueError(
            f"experiment {experiment.name!r} needs a base: give --init DIR, or set `model` in the file"
        )
    return experiment.model, Unscaled()


def open_base(experiment: Experiment, *, to_train: bool = False) -> LM:
    """The model an experiment starts from, float32: a checkpoint, or random parameters of shape `model`.

    `to_train`: parameters that training leaves as they are are read in the compute dtype, which training gives them
    anyway, so that float32 copies of them never fill a device.
    """
    mesh, (config, scaling) = experiment.mesh, base_config(experiment)
    if experiment.init is not None:
        path = locate(experiment.init)
        if not to_train or is_run(path):
            return load(path, mesh=mesh)
        shapes = mesh.shard(experiment.trainable.base_shapes(config, experiment.train.dtype))
        params = hf.load_params(path, config, shapes=shapes, make=_spread)
        return LM(config, params, load_tokenizer(path), scaling=scaling, mesh=mesh)
    if experiment.tokenizer is None:
        raise ValueError(
            f"experiment {experiment.name!r} names no base: give --init DIR (or, to start from random "
            "parameters, set `tokenizer` to a directory)"
        )
    tokenizer = load_tokenizer(locate(experiment.tokenizer))
    return LM(config, _random(config, experiment.seed, mesh), tokenizer, scaling=scaling, mesh=mesh)


def _random(config: LlamaConfig, seed: int, mesh: Mesh) -> Params:
    whole, shapes = init_params(config, seed), mesh.shard(param_shapes(config))
    return jax.tree.map(
        lambda leaf, values: _spread(leaf, np.asarray(values).__getitem__), shapes, whole
    )


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
) -> LM:
    """Open an HF directory, a Meta directory, a run directory, a hub name, or "tiny-llama".

    `method`: frequencies, attention or a tuple of both, in place of what the checkpoint carries. `adapter`: a PEFT
    directory to merge into the parameters. `checkpoint`: which one of a run, see `step_of`. `mesh`: the devices to
    share the parameters out over; only a device's own slices are read for it. `trust`: import the Python files that
    a run's methods come from. `original`: the window of pre-training, tokens, where Meta's format does not say it.
    Raises ValueError for a checkpoint that is incomplete, wrong, or carries a scaling that is not understood.
    """
    path = locate(path)
    if peft.is_adapter(path):
        raise ValueError(f"{path} is a PEFT adapter: open its base, and give this as --adapter")
    step = step_of(path, checkpoint)
    options: dict[str, Any] = {"dtype": dtype, "kernel": kernel, "angles": angles, "mesh": mesh}
    if is_run(path):
        run = RunDir(path)
        config, scaling = run_base(path, trust=trust)
        params = _run_params(run, config, mesh, trust=trust, checkpoint=step)
        attention = from_json(read_json(run.config_file)["attention"], trust=trust)
        lm = LM(
            config,
            params,
            load_tokenizer(path / "base"),
            scaling=scaling,
            attention=attention,
            **options,
        )
    else:
        found = read_checkpoint(path, original)
        shapes = mesh.shard(param_shapes(found.config, dtype))
        params = assemble(shapes, slots(shapes), found.tensors, _spread)
        lm = LM(found.config, params, found.tokenizer, scaling=found.scaling, **options)
    if adapter is not None:
        lm = adapted(lm, Path(adapter))
    methods = [method] if isinstance(method, RopeScaling | Attention) else list(method or ())
    return lm.with_method(*methods)


def _spread(leaf: jax.ShapeDtypeStruct, read: Callable[..., Any]) -> jax.Array:
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)


def run_base(path: Path, *, trust: bool) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and frequencies of a run directory's model; reads no weights."""
    model, scaling = (read_json(path / "base" / name) for name in ("model.json", "scaling.json"))
    return from_json(model), from_json(scaling, trust=trust)


def trained(
    run: RunDir, config: LlamaConfig, mesh: Mesh = ONE_DEVICE, *, checkpoint: int | str = "latest"
) -> tuple[Trainable, Params]:
    """What a run trains, and a checkpoint of it."""
    trainable = from_json(read_json(run.config_file)["trainable"])
    shapes, _ = trainable.shapes(config)
    return trainable, load_params(run.checkpoints, mesh.shard(shapes), which=checkpoint)[0]


def frozen(
    run: RunDir,
    config: LlamaConfig,
    *,
    base: str | Path | None = None,
    mesh: Mesh = ONE_DEVICE,
    trust: bool = False,
) -> Params:
    """The parameters that a run left as they were, float32, from its own base or from `base`.

    Raises ValueError if that cannot be opened or does not hold them, bit for bit in the run's compute dtype.
    """
    settings = read_json(run.config_file)
    trainable = from_json(settings["trainable"])
    source = base or settings["init"]
    if source is None:
        params = _random(config, settings["seed"], mesh)
    else:
        try:
            params = load(source, mesh=mesh, trust=trust).params
        except ValueError as error:
            raise ValueError(
                f"{run.path} holds only what it trained, and its base {source} cannot be opened: {error}"
            ) from None
    rest = split(trainable.init(params, settings["seed"]), trainable.pattern(config))[1]
    kind = jnp.dtype(settings["train"]["dtype"])
    if parameter_checksum(jax.tree.map(lambda x: x.astype(kind), rest)) != read_json(
        run.provenance_file
    ).get("base"):
        raise ValueError(
            f"{source or 'this version'} does not hold the parameters that {run.path} was trained on: "
            "restore them, or train again"
        )
    return rest


def _run_params(
    run: RunDir, config: LlamaConfig, mesh: Mesh, *, trust: bool, checkpoint: int | str = "latest"
) -> Params:
    trainable, params = trained(run, config, mesh, checkpoint=checkpoint)
    if trainable == Full():
        return params
    merged = trainable.merge(join(params, frozen(run, config, mesh=mesh, trust=trust)))
    return jax.device_put(merged, shardings(mesh.shard(param_shapes(config))))


def adapted(lm: LM, directory: Path) -> LM:
    """The model with a PEFT directory merged into its parameters."""
    lora, params = peft.read(directory, lm.config)
    rest = split(lora.init(lm.params, 0), lora.pattern(lm.config))[1]
    merged = lora.merge(join(params, rest))
    back = jax.tree.map(
        lambda x, old: jax.device_put(jnp.asarray(x, old.dtype), old.sharding), merged, lm.params
    )
    return dataclasses.replace(lm, params=back)

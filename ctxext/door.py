"""From a name or a directory to a model one can ask: HF checkpoints, run directories, the bundled base."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ctxext import checkpoint
from ctxext.assets import TINY_LLAMA
from ctxext.attention import Attention, Kernel
from ctxext.config import LlamaConfig
from ctxext.experiment import BUNDLED, Experiment, from_json
from ctxext.files import read_json
from ctxext.interop import hf, hub
from ctxext.lm import LM
from ctxext.model import init_params, param_shapes
from ctxext.rope import Angles, RopeScaling, Unscaled
from ctxext.rundir import RunDir
from ctxext.sharding import ONE_DEVICE, Mesh
from ctxext.tokenizer import load_tokenizer


def locate(source: str | Path) -> Path:
    """A local directory: the bundled base by name, the path itself, or a hub download (extra `hub`)."""
    if str(source) == BUNDLED and not Path(BUNDLED).exists():
        return TINY_LLAMA
    return Path(source) if Path(source).exists() else hub.resolve(str(source))


def is_run(path: Path) -> bool:
    """True for a run directory, False for a checkpoint in HF format."""
    return (path / "base" / "model.json").is_file()


def declared_window(source: str | Path) -> int | None:
    """The extended window L' that an HF directory declares, which need not be factor x L; None for a run."""
    path = locate(source)
    return None if is_run(path) else hf.window(path)


def base_config(experiment: Experiment) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and frequencies that an experiment starts from; reads no weights. Raises ValueError if it names none."""
    if experiment.init is not None:
        path = locate(experiment.init)
        return _run_base(path, trust=False) if is_run(path) else hf.read_config(path)
    if experiment.model is None:
        raise ValueError(f"experiment {experiment.name!r} needs a base: give --init DIR, or set `model` in the file")
    return experiment.model, Unscaled()


def open_base(experiment: Experiment) -> LM:
    """The model an experiment starts from, float32: a checkpoint, or random parameters of shape `model`."""
    if experiment.init is not None:
        return load(experiment.init, mesh=experiment.mesh)
    config, scaling = base_config(experiment)
    if experiment.tokenizer is None:
        raise ValueError(f"experiment {experiment.name!r} names no base: give --init DIR (or, to start from random "
                         "parameters, set `tokenizer` to a directory)")  # fmt: skip
    tokenizer = load_tokenizer(locate(experiment.tokenizer))
    mesh = experiment.mesh
    whole, shapes = init_params(config, experiment.seed), mesh.shard(param_shapes(config))
    params = jax.tree.map(lambda leaf, values: _spread(leaf, np.asarray(values).__getitem__), shapes, whole)
    return LM(config, params, tokenizer, scaling=scaling, mesh=mesh)


def load(
    path: str | Path,
    *,
    method: RopeScaling | Attention | Iterable[Any] | None = None,
    dtype: str = "float32",
    kernel: Kernel = "blocked",
    angles: Angles = "exact",
    mesh: Mesh = ONE_DEVICE,
    trust: bool = False,
) -> LM:
    """Open an HF directory, a run directory (its newest checkpoint), a hub name, or "tiny-llama".

    `method`: frequencies, attention or a tuple of both, in place of what the checkpoint carries. `mesh`: the devices
    to share the parameters out over; only a device's own slices are read for it. `trust`: import the Python files that
    a run's methods come from.
    Raises ValueError for a checkpoint that is incomplete, wrong, or carries a scaling that is not understood.
    """
    path = locate(path)
    options: dict[str, Any] = {"dtype": dtype, "kernel": kernel, "angles": angles, "mesh": mesh}
    if is_run(path):
        run = RunDir(path)
        config, scaling = _run_base(path, trust=trust)
        params, _ = checkpoint.load_params(run.checkpoints, mesh.shard(param_shapes(config)))
        attention = from_json(read_json(run.config_file)["attention"], trust=trust)
        lm = LM(config, params, load_tokenizer(path / "base"), scaling=scaling, attention=attention, **options)
    else:
        config, scaling = hf.read_config(path)
        tokenizer = load_tokenizer(path)
        params = hf.load_params(path, config, dtype, shapes=mesh.shard(param_shapes(config, dtype)), make=_spread)
        lm = LM(config, params, tokenizer, scaling=scaling, **options)
    methods = [method] if isinstance(method, RopeScaling | Attention) else list(method or ())
    return lm.with_method(*methods)


def _spread(leaf: jax.ShapeDtypeStruct, read: Callable[..., Any]) -> jax.Array:
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)


def _run_base(path: Path, *, trust: bool) -> tuple[LlamaConfig, RopeScaling]:
    model, scaling = (read_json(path / "base" / name) for name in ("model.json", "scaling.json"))
    return from_json(model), from_json(scaling, trust=trust)

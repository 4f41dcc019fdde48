"""An experiment is a frozen value in a Python file; here it is declared and loaded."""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from ctxext.attention import KERNELS, Attention, Causal, Kernel
from ctxext.data import Source
from ctxext.evals import expected
from ctxext.interop.formats import find_format
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import COMPUTE_DTYPES, REMAT
from ctxext.model.trainable import Full, Trainable
from ctxext.optim import Optim
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.positions import Contiguous, Positions
from ctxext.rope import RopeScaling
from ctxext.serialization import to_json

BUNDLED = "tiny-llama"
"""The base model inside the package."""
MUTABLE_FIELDS = ("mesh", "expect")
"""Fields of an experiment that decide nothing of its result, and may change between starts of a run."""


@dataclasses.dataclass(frozen=True)
class Train:
    """How long and how: `steps` optimiser steps of batch_size x accumulate rows of `seq_len` tokens."""

    type_tag: ClassVar[str] = "train"
    steps: int
    seq_len: int
    batch_size: int
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters and optimiser state are float32."""
    remat: Literal["none", "attention", "full"] = "none"
    """What the backward pass computes again: nothing, each layer but its attention, or all of it; see `ctxext plan`."""
    kernel: Kernel = "blocked"
    log_every: int = 10
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    checkpoint_minutes: float | None = None
    """Minutes after which a checkpoint is due as well."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    keep_best: bool = False
    """Keep the one whose steps since the one before had the lowest mean training loss too, for `--checkpoint best`."""
    monitor_every: int = 100
    """Steps between looks at fixed rows (`ctxext.training.monitor`), of runs with at least as many; 0 for none."""
    drift_alarm: float = 0.1
    """Nats by which the loss on short held-out text may rise over step 0 before a run says so."""

    def __post_init__(self) -> None:
        for field in (
            "seq_len",
            "batch_size",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "keep",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field} must be at least 1, got {getattr(self, field)}")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise ValueError(
                f"train.checkpoint_minutes must be above 0, got {self.checkpoint_minutes}"
            )
        for field in ("steps", "monitor_every", "drift_alarm"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"train.{field} must not be negative, got {getattr(self, field)}")
        for field, known in (("dtype", COMPUTE_DTYPES), ("remat", REMAT), ("kernel", KERNELS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"train.{field} {getattr(self, field)!r} is not known; choose {' or '.join(known)}"
                )


@dataclasses.dataclass(frozen=True)
class Export:
    """The format that a finished run is written in: a name of `ctxext.interop.formats.FORMATS`."""

    type_tag: ClassVar[str] = "export"
    to: str = "hf"
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        find_format(self.to)  # raises ValueError for an unknown name


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Base checkpoint, method (three seams), data, training, evaluations. Everything that decides the result.

    `init`: an HF or run directory, a hub name, "tiny-llama" (bundled), or None to start `model` from scratch.
    `zero_shot`: methods to evaluate on the base without training, beside the trained one.
    `baselines`: frequencies to train with the very same budget, data and seed, for comparison with `rope`.
    `expect`: published numbers for the trained result, which reports hold against what `evals` measured.
    """

    type_tag: ClassVar[str] = "experiment"
    name: str
    data: Source
    optim: Optim
    train: Train
    mesh: Mesh = ONE_DEVICE
    """Devices to share the work out over; it decides nothing but the rounding."""
    init: str | None = None
    model: LlamaConfig | None = None
    tokenizer: str | None = None
    """Directory of the tokenizer when starting from scratch; with `init` it is the checkpoint's."""
    rope: RopeScaling | None = None
    """None keeps the frequencies that the checkpoint has."""
    attention: Attention = Causal()
    positions: Positions = Contiguous()
    trainable: Trainable = Full()
    evals: tuple[Any, ...] = ()
    expect: tuple[expected.Expected, ...] = ()
    zero_shot: tuple[RopeScaling | Attention, ...] = ()
    baselines: tuple[RopeScaling, ...] = ()
    export: Export | None = Export()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.expect:
            expected.check(self.expect, self.evals)

    def effective_scaling(self, base: RopeScaling) -> RopeScaling:
        """The scaling that is trained: `rope`, or that of the base checkpoint where it is None."""
        return self.rope or base

    @property
    def fingerprint(self) -> str:
        """Eight hex digits over what may not change: all but `train.steps` and MUTABLE_FIELDS; 4 and 4.0 are the same number."""
        config = json.loads(json.dumps(to_json(self)), parse_int=float)
        del config["train"]["steps"]
        config = {name: value for name, value in config.items() if name not in MUTABLE_FIELDS}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def load_experiment(
    file: str | Path, base_config: Callable[[], LlamaConfig] | None = None
) -> Experiment:
    """The `experiment` of a Python file: a value, or a function of the base's LlamaConfig that returns one.

    The function form is for lengths that follow the window of the checkpoint; `base_config` is asked only then.
    Raises ValueError if the file is missing or holds no experiment.
    """
    value = getattr(_module(file), "experiment", None)
    if callable(value) and base_config is not None:
        value = value(base_config())
    if not isinstance(value, Experiment):
        raise ValueError(f"{file} defines no `experiment = Experiment(...)`")
    return value


def load_sweep(
    file: str | Path, base_config: Callable[[], LlamaConfig] | None = None
) -> dict[str, Experiment]:
    """The experiments that `sweep()` of a Python file yields, by name; `sweep(config)` gets the base's LlamaConfig.

    Raises ValueError if there is none, or two have one name.
    """
    function: Any = getattr(_module(file), "sweep", None)
    if function is None:
        raise ValueError(
            f"{file} defines no sweep(); let one yield experiments that differ in their names"
        )
    wanted = inspect.signature(function).parameters
    found = list(function(base_config()) if wanted and base_config is not None else function())
    named = {one.name: one for one in found if isinstance(one, Experiment)}
    if not found or len(named) != len(found):
        raise ValueError(
            f"sweep() of {file} has to yield experiments, at least one, each with a name of its own"
        )
    return named


def _module(file: str | Path) -> ModuleType:
    path = Path(file)
    if not path.is_file():
        raise ValueError(
            f"{file} does not exist; give an experiment file such as experiments/demo.py"
        )
    spec = importlib.util.spec_from_file_location(f"_ctxext_experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # a variant imports the experiment next to it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module

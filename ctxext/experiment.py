"""An experiment: a frozen value that a Python file declares."""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from ctxext.attention import KERNELS, Attention, Causal, Kernel
from ctxext.data import Source
from ctxext.data.held_out import HELD_OUT
from ctxext.evals import expected
from ctxext.evals.budget import read_budget
from ctxext.files import read_json
from ctxext.interop.formats import find_format
from ctxext.losses import CrossEntropy, Lengths, Loss
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.context import meant_scaling
from ctxext.model.decoder import COMPUTE_DTYPES
from ctxext.model.remat import REMAT
from ctxext.model.trainable import Full, Trainable
from ctxext.optim import Optim
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.positions import Contiguous, Positions
from ctxext.rope import RopeScaling
from ctxext.serialization import read_saved, to_json

BUNDLED = "tiny-llama"
"""The base model inside the package."""
TRAIN_LOSS = "train_loss"
"""The name of the training loss for `train.keep_best`."""
MUTABLE_FIELDS = ("mesh", "expect", "allow_shorter", "budget")
"""Fields of an experiment that do not affect its result and may change when a run is resumed.

A budget only leaves out questions, and those of a smaller one are among those of a larger one.
"""


@dataclasses.dataclass(frozen=True)
class Train:
    """How to train: `steps` x batch_size x accumulate rows of `seq_len` tokens."""

    type_tag: ClassVar[str] = "train"
    steps: int
    """Optimiser steps."""
    seq_len: int
    """Tokens per row."""
    batch_size: int
    """Rows that all devices compute at once."""
    accumulate: int = 1
    """Batches whose gradients are added for one step."""
    held_out: float = HELD_OUT
    """The share of documents in files of text that training does not see, by the hash of their
    text; 0 for none. Prepared tokens have the share that they were prepared with."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype, in which frozen parameters are kept; trained ones and the optimiser state are
    float32."""
    remat: Literal["none", "attention", "full", "offload"] = "none"
    """Recompute in the backward pass nothing, each layer without its attention, or all of it; with
    "offload" the inputs of the layers wait in the memory of the host meanwhile. `ctxext plan` shows
    the cost."""
    kernel: Kernel = "blocked"
    """The attention kernel; "auto" takes the best one that can do the method exactly."""
    rope_length: Literal["batch", "document"] = "batch"
    """Whose length chooses the frequencies of a method that has others for long texts, such as
    LongRope: that of the longest row of a batch, or of each document by itself (the mixed windows
    of LongRoPE2, arXiv 2502.20082)."""
    log_every: int = 10
    """Steps between lines of `metrics.jsonl`."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    checkpoint_minutes: float | None = None
    """Minutes after which a checkpoint is written too; None for no limit."""
    keep: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: str | None = None
    """Keep the best checkpoint too, for `--checkpoint best`: by "train_loss", the mean training
    loss since the checkpoint before, or by a measure of `eval_every` such as "passkey@8192". A
    checkpoint then follows each evaluation that is better than all before it."""
    result: Literal["latest", "best"] = "latest"
    """The checkpoint that a run evaluates and exports at its end; "best" is that of `keep_best`."""
    eval_every: int = 0
    """Steps between small evaluations during training, which are also done before the first step
    and after the last; 0 for none. They use other questions than `evals`, so that a choice by them
    does not flatter the result."""
    eval_set: tuple[str, ...] = ("retrieval", "loss")
    """The measures: "retrieval" for all retrieval tasks of `evals` (passkey if there are none), or
    the names of some of them; "loss" for the loss of held-out text, from the run's own data if it
    has documents of the length. Measures are called "passkey@8192"; "retrieval@8192" is the
    mean over tasks."""
    eval_lengths: tuple[int, ...] = ()
    """Their lengths in tokens; by default the window of the base and the target of the method."""
    eval_questions: int = 10
    """Questions per task and length, rounded to as many for each depth."""
    stop_by: str | None = None
    """Stop early by this measure of `eval_every`: after `stop_patience` evaluations in a row that
    are not better by more than `stop_min_difference` than the last that was."""
    stop_patience: int = 3
    """Evaluations without progress after which `stop_by` stops."""
    stop_min_difference: float = 0.0
    """The difference that counts as progress for `stop_by`: a share of answers, or nats."""
    monitor_every: int = 100
    """Steps between evaluations of fixed rows (`ctxext.training.monitor`) in runs with at least as
    many steps; 0 for none."""
    drift_alarm: float = 0.1
    """Nats by which the loss on short held-out text may exceed that of step 0 before a warning."""

    @property
    def keep_best_measure(self) -> str | None:
        """The measure of `eval_every` that the best checkpoint is chosen by, if it is one."""
        return None if self.keep_best == TRAIN_LOSS else self.keep_best

    def __post_init__(self) -> None:
        positive = (
            "seq_len",
            "batch_size",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "keep",
            "eval_questions",
            "stop_patience",
        )
        for field in positive:
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field} must be at least 1, got {getattr(self, field)}")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise ValueError(
                f"train.checkpoint_minutes must be above 0, got {self.checkpoint_minutes}"
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(f"train.held_out is a share from 0 to below 1, got {self.held_out}")
        self._check_evaluations()
        for field in ("steps", "monitor_every", "drift_alarm", "eval_every", "stop_min_difference"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"train.{field} must not be negative, got {getattr(self, field)}")
        choices = (
            ("dtype", COMPUTE_DTYPES),
            ("remat", REMAT),
            ("kernel", KERNELS),
            ("rope_length", ("batch", "document")),
        )
        for field, known in choices:
            if getattr(self, field) not in known:
                raise ValueError(
                    f"train.{field} {getattr(self, field)!r} is not known; choose "
                    f"{' or '.join(known)}"
                )

    def _check_evaluations(self) -> None:
        """Raise ValueError for choices that refer to evaluations that are not made."""
        for field, measure in (("keep_best", self.keep_best_measure), ("stop_by", self.stop_by)):
            if measure is not None and not self.eval_every:
                others = f', or "{TRAIN_LOSS}"' if field == "keep_best" else ""
                raise ValueError(
                    f"train.{field} {measure!r} is measured during training only with "
                    f"train.eval_every, such as 20; set it{others}"
                )
        if self.result not in ("latest", "best"):
            raise ValueError(f"train.result is latest or best, got {self.result!r}")
        if self.result == "best" and self.keep_best is None:
            raise ValueError("train.result best needs train.keep_best, which says what is the best")
        if any(length < 2 for length in self.eval_lengths):
            raise ValueError(f"train.eval_lengths must be at least 2: {list(self.eval_lengths)}")
        if self.eval_every and not self.eval_set:
            raise ValueError("train.eval_set is empty: name what to measure, or set eval_every 0")


@dataclasses.dataclass(frozen=True)
class Export:
    """The format that a finished run is written in: a name of `ctxext.interop.formats.FORMATS`."""

    type_tag: ClassVar[str] = "export"
    to: str = "hf"
    """A name of `ctxext.interop.formats.FORMATS`."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """The dtype of the exported parameters."""

    def __post_init__(self) -> None:
        find_format(self.to)  # raises ValueError for an unknown name


@dataclasses.dataclass(frozen=True, repr=False)
class Experiment:
    """Everything that determines a result: base, method, data, training, evaluations."""

    type_tag: ClassVar[str] = "experiment"
    name: str
    """The name of the run directory and of the run in trackers."""
    data: Source
    """The training data."""
    optim: Optim
    """The optimiser."""
    train: Train
    """Length, batch and precision of the training."""
    mesh: Mesh = ONE_DEVICE
    """The devices to spread the work over. It changes results only by rounding."""
    init: str | None = None
    """An HF or run directory, a GGUF file, a hub name, "tiny-llama" (bundled), "smollm2" (in a
    package), or None to train `model` from scratch."""
    model: LlamaConfig | None = None
    """The shape to train from scratch, or the shape that `init` is expected to have."""
    tokenizer: str | None = None
    """A directory with the tokenizer of a model from scratch; with `init` it is the checkpoint's.
    """
    bos: bool | None = None
    """Whether every text begins with BOS, in training, evaluation and export; None: as the
    checkpoint's tokenizer does."""
    rope: RopeScaling | None = None
    """The frequencies to train; None and `Unscaled` keep those of the checkpoint."""
    attention: Attention = Causal()
    """Who attends to whom in training; and afterwards, unless it only makes training cheaper, as
    `s2-attn` does: evaluations and exports are then with full attention."""
    positions: Positions = Contiguous()
    """The positions of tokens in training."""
    trainable: Trainable = Full()
    """Which parameters are trained, and in which form."""
    loss: Loss = CrossEntropy()
    """The objective of training. Evaluations report the plain loss, whatever this is."""
    evals: tuple[Any, ...] = ()
    """Evaluations, run before and after training."""
    budget: str = "full"
    """How much of `evals` is asked: "small", "medium", "full" for all of it, or a number of minutes
    for all evaluations of a run together. A budget never asks more than `evals`."""
    expect: tuple[expected.Expected, ...] = ()
    """Published numbers for the trained result, which reports compare with the measured ones."""
    zero_shot: tuple[RopeScaling | Attention, ...] = ()
    """Methods to evaluate on the base without training, next to the trained one."""
    baselines: tuple[RopeScaling, ...] = ()
    """Frequencies to train with the same budget, data and seed, for comparison with `rope`."""
    export: Export | None = Export()
    """The format of the exported result; None exports nothing."""
    allow_shorter: bool = False
    """Accept factors and lengths that give less context than the base checkpoint declares."""
    seed: int = 0
    """The seed of initialisation, data order and dropout."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {self.seed}")
        read_budget(self.budget)  # raises ValueError for one that is unknown
        if self.expect:
            expected.check(self.expect, self.evals)

    def __repr__(self) -> str:
        """Short: name, base, method and amount of training; `to_json` has everything."""
        parts = (self.rope, self.attention, self.positions, self.trainable, self.loss)
        plain = (None, Causal(), Contiguous(), Full(), CrossEntropy())
        method = label(part for part in parts if part not in plain)
        train = self.train
        rows = f"{train.batch_size * train.accumulate} x {train.seq_len:,} tokens"
        base = self.init or ("from scratch" if self.model else "no base")
        evals = f"{len(self.evals)} evaluations"
        return f"Experiment({self.name}: {base}, {method}, {train.steps} steps of {rows}, {evals})"

    def effective_scaling(self, base: RopeScaling) -> RopeScaling:
        """The scaling that is trained, over a base checkpoint that carries `base`."""
        return meant_scaling(self.rope, base)

    @property
    def evaluated_attention(self) -> Attention:
        """The attention of the trained model, in evaluations during training too."""
        return self.attention.after_training

    @property
    def training_data(self) -> Source:
        """The data without the documents that are held out of training."""
        return self.data.training_part(self.train.held_out)

    def as_baseline(self, rope: RopeScaling) -> "Experiment":
        """The same training under other frequencies, for comparison; it evaluates nothing else."""
        return dataclasses.replace(
            self,
            name=f"{self.name}-{self.baseline_slug(rope)}",
            rope=rope,
            zero_shot=(),
            baselines=(),
            expect=(),
            export=None,
        )

    def baseline_slug(self, rope: RopeScaling) -> str:
        """The name of the directory of one of the baselines."""
        return re.sub(r"[^a-z0-9]+", "-", label([rope]).lower()).strip("-")

    @property
    def trained_length(self) -> int:
        """The longest context that is trained, tokens: of the rows, or as far as positions reach.

        PoSE, for example, trains distances up to L' in rows of far fewer tokens.
        """
        reach = getattr(self.positions, "max_position_embeddings", 0)
        return max(self.train.seq_len, reach)

    def lengths(self, window: int) -> Lengths:
        """The lengths of this run on a base with this window of pre-training, for its loss."""
        return Lengths(self.train.seq_len, window, self.trained_length)

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of every field that may not change when a run is resumed.

        These are all but `train.steps` and MUTABLE_FIELDS; 4 and 4.0 are the same number.
        """
        config = json.loads(json.dumps(to_json(self)), parse_int=float)
        del config["train"]["steps"]
        config = {name: value for name, value in config.items() if name not in MUTABLE_FIELDS}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


BaseConfig = Callable[[], tuple[LlamaConfig, int]]
"""Reads the configuration of the base and the extended window L' that it declares, in tokens."""


def load_experiment(
    file: str | Path, base_config: BaseConfig | None = None, *, trust: bool = False
) -> Experiment:
    """The `experiment` of a Python file: a value, or a function of the base.

    FILE.json is the config.json of a run, whose code is imported only with `trust`.

    The function form is for lengths that depend on the base: `experiment(config)`, whose
    `max_position_embeddings` is the window of pre-training, or `experiment(config, declared)` with
    the extended window that the base declares. `base_config` is called only for it. Raises
    ValueError if the file is missing or declares no experiment.
    """
    if Path(file).suffix == ".json":
        return _load_saved(Path(file), trust=trust)
    experiment = getattr(_import_file(file), "experiment", None)
    if callable(experiment) and base_config is not None:
        experiment = _call_with_base(experiment, base_config)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{file} defines no `experiment = Experiment(...)`")
    return experiment


def _load_saved(file: Path, *, trust: bool) -> Experiment:
    """The experiment that a run saved. Raises ValueError, naming the file, for another one."""
    content = read_json(file)
    tag = content.get("__type__") if isinstance(content, dict) else None
    if tag != Experiment.type_tag:
        raise ValueError(
            f"{file} is not the config.json of a run; give that of a run directory, or an "
            "experiment file such as experiments/demo.py"
        )
    return read_saved(file, Experiment, trust=trust)


def load_sweep(file: str | Path, base_config: BaseConfig | None = None) -> dict[str, Experiment]:
    """The experiments that `sweep()` of a Python file yields, by name.

    `sweep(config)` and `sweep(config, declared)` are called as in `load_experiment`. Raises
    ValueError if there is no such function, if it yields nothing, and if two experiments have the
    same name.
    """
    function: Any = getattr(_import_file(file), "sweep", None)
    if function is None:
        raise ValueError(
            f"{file} defines no sweep(); write one that yields experiments with different names"
        )
    yielded = function() if base_config is None else _call_with_base(function, base_config)
    experiments = list(yielded)
    by_name = {each.name: each for each in experiments if isinstance(each, Experiment)}
    if not experiments or len(by_name) != len(experiments):
        raise ValueError(
            f"sweep() of {file} must yield experiments, at least one, each with its own name"
        )
    return by_name


def _call_with_base(function: Callable[..., Any], base_config: BaseConfig) -> Any:
    """The function's value for the base, of which it takes nothing, the shape, or both."""
    count = len(inspect.signature(function).parameters)
    return function(*base_config()[:count]) if count else function()


def _import_file(file: str | Path) -> ModuleType:
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
    # A variant of an experiment imports the file next to it.
    directory = str(path.resolve().parent)
    sys.path.insert(0, directory)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(directory)
    return module

"""What a run does, stage by stage, and how long each stage takes, known before it starts.

The time of evaluations is that of `ctxext.price`. A training step takes

    matrix FLOPs / r1 + attention FLOPs / r2

of the forward and backward pass and of what is recomputed (`plan.flops.step_flops`), at the rates
that short readings had; on a run that has trained before, what its last steps took. The other
stages take seconds, and only that is claimed for them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from ctxext import loading
from ctxext.evals import Eval, evaluated_model
from ctxext.evals.work import Call, num_tokens, readings
from ctxext.evaluate import Asked, Counted, works_of
from ctxext.experiment import Experiment
from ctxext.methods import label
from ctxext.model.lm import LM
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.plan.accelerators import GIB
from ctxext.plan.flops import step_flops
from ctxext.plan.job import Job
from ctxext.plan.memory import memory
from ctxext.price import Speed, Work, by_length, memory_text, reading
from ctxext.progress import duration
from ctxext.prove.proof import EVERY_POSITION
from ctxext.rundir import RunDir
from ctxext.stages.speeds import Speeds, measure_speeds, read_speeds, without_weights
from ctxext.training.evaluation_set import EvaluationSet

Kind = Literal["prepare", "train", "evaluate", "export", "prove", "report"]
WORTH_MEASURING = 2e12
"""Operations from which the speed is measured before a run: about ten seconds of two CPU cores."""
WORTH_MEASURING_DRY = 2e11
"""The same for a dry run, which was asked for the time."""
COMPILING_A_STEP = 2.0
"""Times that compiling a reading takes: a training step also has a backward pass."""
BYTES_PER_SECOND = 2e8
"""Of reading and writing weights."""
START_SECONDS, EXPORT_SECONDS, PROVE_SECONDS, REPORT_SECONDS = 2.0, 2.0, 10.0, 3.0
"""What these stages take at least."""
READERS = 6.0
"""What the readers of a proof take, in readings by the model itself: ours, and one in float64."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run."""

    kind: Kind
    name: str
    amount: str
    """What is to be done, in words; "done" if that is nothing."""
    seconds: float | None = None
    """Estimated time; None if it is not known."""
    texts: dict[int, int] | None = None
    """Of an evaluation, how many texts it reads, by their tokens with padding."""
    tokens: int | None = None
    """Of these texts, without padding."""

    @property
    def is_done(self) -> bool:
        return self.amount == DONE


DONE = "done"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The stages of a run in their order."""

    stages: tuple[Stage, ...]
    basis: str
    """What the times rest on, or why there are none."""
    memory: tuple[str, ...] = ()
    speeds: Speeds | None = None
    notes: tuple[str, ...] = ()
    """Sentences on evaluations that are not measured, or counted otherwise."""

    @property
    def seconds(self) -> float | None:
        """The time of everything that is left; None if that of a stage is not known."""
        seconds = [stage.seconds for stage in self.stages if not stage.is_done]
        return None if None in seconds else sum(filter(None, seconds))

    @property
    def total(self) -> str:
        """One line: the time of all stages, and what it rests on."""
        if self.seconds is None:
            return f"time: not estimated, {self.basis}"
        return f"in all about {duration(self.seconds)} on this device ({self.basis})"

    def lines(self) -> list[str]:
        """The stages with what they do and their times, the whole time, and the memory."""
        width = max(len(stage.name) for stage in self.stages)
        lines = ["stages:"]
        for stage in self.stages:
            time = "" if stage.seconds is None or stage.is_done else duration(stage.seconds)
            lines.append(f"  {stage.name:<{width}}  {time:>7}  {stage.amount}".rstrip())
        notes = [f"evaluations: {note}" for note in self.notes]
        return [*lines, self.total, *self.memory, *notes]

    def data(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "seconds": self.seconds,
            "basis": self.basis,
            "memory": list(self.memory),
            "notes": list(self.notes),
        }


@dataclasses.dataclass(frozen=True)
class Planned:
    """A stage before its time is known."""

    kind: Kind
    name: str
    amount: str
    seconds: Callable[[Speeds, set[tuple]], float] = lambda *_: 0.0
    """By the speeds and the shapes that were compiled before, to which it adds its own."""
    operations: float = 0.0
    works: tuple[Work, ...] = ()
    is_countable: bool = True


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of an experiment that are still to be done."""

    experiment: Experiment
    planned: tuple[Planned, ...]
    base: LM | None
    """None without a tokenizer, so that no evaluation can be counted."""
    evals: tuple[Eval, ...]
    run: RunDir | None

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        base: LM | None,
        evals: Sequence[Eval],
        run: RunDir | None = None,
        *,
        training_only: bool = False,
    ) -> "Plan":
        """Count what a run still has to do.

        base: the model that it starts from, with or without weights. run: its directory, if there
        is one; what that holds is not counted again.
        """
        stages = _Stages(experiment, base, evals, run)
        planned = stages.training_only() if training_only else stages.all()
        return cls(experiment, tuple(planned), base, tuple(evals), run)

    @property
    def operations(self) -> float:
        return sum(stage.operations for stage in self.planned)

    @property
    def works(self) -> list[Work]:
        return [work for stage in self.planned for work in stage.works]

    @property
    def is_countable(self) -> bool:
        """Whether the work of every stage is known."""
        return all(stage.is_countable for stage in self.planned)

    def speeds(self, *, dry: bool = False, always: bool = False) -> tuple[Speeds | None, str]:
        """The speed of this device, measured now or at an earlier start; or why it is not known.

        dry: `base` has no weights, and what can be timed is timed with zeros. always: also for
        little work.
        """
        known = read_speeds(self.run) if self.run is not None else None
        if known is not None:
            return known, ""
        if not always and self.operations < (WORTH_MEASURING_DRY if dry else WORTH_MEASURING):
            return None, "as it is too little work to time this device for"
        lm, reason = self.base, "as there is no tokenizer"
        if lm is not None and dry:
            lm, reason = without_weights(lm, self.experiment.mesh)
        if lm is None:
            return None, f"{reason}; `ctxext plan --topology` knows the steps of accelerators"
        return self.measure(lm), ""

    def measure(self, lm: LM | None = None) -> Speeds:
        """The speed of this device now, with `lm` in place of the base, which has no weights."""
        lm = lm or self.base
        assert lm is not None
        lengths = [call.padded[1] for work in self.works for call in work.calls]
        longest = max([*lengths, self.experiment.train.seq_len])
        return measure_speeds(lm, longest, self.experiment.train.dtype)

    def estimate(self, speeds: Speeds | None, reason: str = "") -> Estimate:
        """The stages with their times. reason: why the speeds are not known."""
        compiled: set[tuple] = set()
        stages = []
        for planned in self.planned:
            seconds = None
            if speeds is not None and planned.is_countable:
                seconds = planned.seconds(speeds, compiled)
            calls = [call for work in planned.works for call in work.calls]
            read = None, None
            if planned.works:
                read = dict(sorted(readings(calls).items())), num_tokens(calls)
            stages.append(Stage(planned.kind, planned.name, planned.amount, seconds, *read))
        basis = reason if speeds is None else speeds.basis
        if speeds is not None and not self.is_countable:
            basis = "as not all stages can be counted"
        return Estimate(tuple(stages), basis, tuple(self._memory()), speeds)

    def _memory(self) -> Iterator[str]:
        """Lines on the memory of training and of evaluations."""
        experiment = self.experiment
        if any(stage.kind == "train" and stage.amount != DONE for stage in self.planned):
            yield f"memory of training: {_training_memory(experiment)}"
        if any(work.calls for work in self.works):
            yield f"memory of evaluations: {memory_text(self.works)}"


class _Stages:
    """The stages of one experiment."""

    def __init__(
        self, experiment: Experiment, base: LM | None, evals: Sequence[Eval], run: RunDir | None
    ) -> None:
        self._experiment = experiment
        self._base = base
        self._evals = evals
        self._run = run
        self._counted: Counted = {}

    def all(self) -> Iterator[Planned]:
        experiment = self._experiment
        yield self._prepare()
        for method in experiment.zero_shot:
            yield self._evaluate(experiment, [method], steps=0)
        if experiment.train.steps:
            yield self._train(experiment, self._run)
        steps = _result_steps(experiment, self._run)
        yield self._evaluate(experiment, self._trained(experiment), steps=steps)
        if experiment.export is not None:
            yield self._export()
            yield self._prove()
        for rope in experiment.baselines if experiment.train.steps else ():
            variant = experiment.as_baseline(rope)
            run = None
            if self._run is not None:
                run = RunDir(self._run.baselines / experiment.baseline_slug(rope))
            yield self._train(variant, run)
            steps = _result_steps(variant, run)
            yield self._evaluate(variant, self._trained(variant), steps=steps)
        yield Planned("report", "report", "the page", lambda *_: REPORT_SECONDS)

    def training_only(self) -> Iterator[Planned]:
        yield self._prepare()
        yield self._train(self._experiment, self._run)

    def _trained(self, experiment: Experiment) -> list[Any]:
        """The methods of the trained model."""
        _, base_scaling = loading.base_config(experiment)
        return [experiment.effective_scaling(base_scaling), experiment.evaluated_attention]

    @functools.cached_property
    def _weight_bytes(self) -> float:
        config, _ = loading.base_config(self._experiment)
        return 4.0 * config.num_parameters

    def _prepare(self) -> Planned:
        size = self._weight_bytes
        return Planned(
            "prepare",
            "prepare",
            f"{size / 1e9:.2f} GB of weights to load",
            lambda *_: START_SECONDS + size / BYTES_PER_SECOND,
        )

    def _evaluate(self, experiment: Experiment, methods: Sequence[Any], *, steps: int) -> Planned:
        base = self._base
        if base is None:
            return Planned(
                "evaluate",
                f"evaluate {label(methods)}",
                "not counted without a tokenizer: give --init DIR",
                is_countable=False,
            )
        model = base.with_method(*methods, allow_shorter=True)
        described = evaluated_model(model, steps=steps, train_seq_len=experiment.train.seq_len)
        name = f"evaluate {described.label}"
        sink = None if self._run is None else self._run.records_file
        try:
            works = works_of(Asked(model, self._evals, described), sink, counted=self._counted)
        except ValueError as error:
            # A dry run of a recipe whose text is not there yet says so, and goes on.
            return Planned("evaluate", name, f"not counted: {error}", is_countable=False)
        calls = [call for work in works for call in work.calls]

        def seconds(speeds: Speeds, compiled: set[tuple]) -> float:
            new = set().union(*(work.shapes() for work in works)) - compiled
            compiled |= new
            total = sum(work.seconds(speeds.reading) for work in works)
            return total + len(new) * speeds.reading.compiling

        return Planned(
            "evaluate",
            name,
            f"{by_length(calls)} tokens; {num_tokens(calls):,} in all" if calls else DONE,
            seconds,
            sum(work.operations.total for work in works),
            tuple(works),
        )

    def _train(self, experiment: Experiment, run: RunDir | None) -> Planned:
        train = experiment.train
        left = max(0, train.steps - (run.steps_saved() if run is not None else 0))
        name = f"train {experiment.name}"
        if not left:
            return Planned("train", name, DONE)
        tokens = train.batch_size * train.accumulate * train.seq_len
        config, _ = loading.base_config(experiment)
        on_one = dataclasses.replace(experiment, mesh=ONE_DEVICE)
        flops = step_flops(Job.of(on_one, config, 1))
        monitored = _monitored(experiment, left) * flops.forward / train.accumulate
        steps = f"{left:,} steps" if left == train.steps else f"{left:,} of {train.steps:,} steps"
        amount = f"{steps}, {left * tokens:,} tokens, {left * flops.total:.2g} FLOPs"
        if train.eval_every and (missing := _missing_text(experiment)):
            amount += f"; evaluations during it are not counted: {missing} is not there"
            return Planned("train", name, amount, is_countable=False)
        during = self._during_training(experiment, left)

        def seconds(speeds: Speeds, compiled: set[tuple]) -> float:
            rates = speeds.training
            step = step_seconds(flops.total - flops.attention, flops.attention, rates)
            if speeds.tokens_per_second is not None and run is self._run:
                step = tokens / speeds.tokens_per_second
            compiling = COMPILING_A_STEP * rates.compiling
            evaluating = sum(work.seconds(speeds.reading) for work in during)
            return compiling + left * step + monitored / rates.matrices + evaluating

        return Planned(
            "train",
            name,
            amount,
            seconds,
            left * flops.total + monitored + sum(work.operations.total for work in during),
        )

    def _during_training(self, experiment: Experiment, left: int) -> list[Work]:
        """What is evaluated every `train.eval_every` of the last `left` steps."""
        every = experiment.train.eval_every
        base = self._base
        if not every or base is None:
            return []
        chosen = EvaluationSet.of(experiment, base.context, base.tokenizer)
        model = base.with_method(*self._trained(experiment), allow_shorter=True)
        asked = Asked(model, chosen.evals, evaluated_model(model))
        times = 1 + -(-left // every)
        return times * works_of(asked, None, counted=self._counted)

    def _export(self) -> Planned:
        size = self._weight_bytes
        if self._run is not None and self._run.export.exists():
            return Planned("export", "export", DONE)
        return Planned(
            "export",
            "export",
            f"{self._experiment.export.to}, {self._experiment.export.dtype}",  # pyright: ignore[reportOptionalMemberAccess]
            lambda *_: EXPORT_SECONDS + size / BYTES_PER_SECOND,
        )

    def _prove(self) -> Planned:
        size = self._weight_bytes
        base = self._base

        def seconds(speeds: Speeds, compiled: set[tuple]) -> float:
            if base is None:
                return PROVE_SECONDS
            length = self._experiment.trained_length
            work = reading(base, Call((length,), (1, length)))
            once = step_seconds(work.matrices, work.attention, speeds.reading)
            # A large model is read at a few positions only.
            is_large = base.config.num_parameters * length > EVERY_POSITION
            loading_them = 3 * size / BYTES_PER_SECOND
            return PROVE_SECONDS + loading_them + (0.0 if is_large else READERS * once)

        return Planned("prove", "prove", "the export in independent readers", seconds)


def _result_steps(experiment: Experiment, run: RunDir | None) -> int:
    """The steps of the checkpoint that is evaluated: of the last one, until the training is over.

    The best one may be an earlier one.
    """
    steps = experiment.train.steps
    if not steps or run is None or run.steps_saved() < steps or not loading.is_run(run.path):
        return steps
    return loading.checkpoint_step(run.path, experiment.train.result)


def _missing_text(experiment: Experiment) -> str:
    """The first text of the training that is not there, as in a dry run before it is; or ""."""
    paths = [text.path for text in experiment.data.text_on_disk()]
    return next((path for path in paths if not Path(path).expanduser().exists()), "")


def step_seconds(matrices: float, attention: float, speed: Speed) -> float:
    """Time of so many operations in matrices and in attention."""
    return matrices / speed.matrices + attention / speed.attention


def _monitored(experiment: Experiment, left: int) -> float:
    """Forward passes of a batch that the monitor makes during the last `left` steps."""
    train = experiment.train
    if not 0 < train.monitor_every <= train.steps:
        return 0.0
    config, _ = loading.base_config(experiment)
    window = min(1.0, config.max_position_embeddings / train.seq_len)
    return (1 + left / train.monitor_every) * (1 + window)


def _training_memory(experiment: Experiment) -> str:
    config, _ = loading.base_config(experiment)
    try:
        devices = experiment.mesh.build().size
    except ValueError:
        return f"mesh {experiment.mesh.text} is not for this machine; `ctxext plan` counts it"
    peak = memory(Job.of(experiment, config, devices), jax.default_backend()).peak
    return f"{peak / GIB:.2f} GiB per device at the peak of a step (arithmetic)"

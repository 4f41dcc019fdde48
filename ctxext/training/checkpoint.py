"""Checkpoints of a run: a pure dict {params, opt_state} per step, in directories named by the step.

A run that is evaluated during training also keeps the curve up to each checkpoint in it. They are
written in the background, appear complete or not at all, and carry checksums.
"""

import contextlib
import dataclasses
import itertools
import logging
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ctxext.experiment import TRAIN_LOSS
from ctxext.interop.validation import COUNT, FINITE, TEXT, Shape, check_shape, optional
from ctxext.parallel import distributed
from ctxext.training.checksums import (
    find_corruption,
    has_checksums,
    recorded_facts,
    write_checksums,
)
from ctxext.training.curve import Evaluated, best

KEEP = 2
PARAMS, OPT_STATE = "params", "opt_state"
EVALUATIONS = "evaluations"
SAVED_EVALUATIONS: Shape = {
    "best_by": optional(TEXT),
    "curve": [{"step": COUNT, "values": {"*": FINITE}}],
}
"""The evaluations during training up to a checkpoint, as JSON."""

# orbax logs every file that it opens; what a user must know, this module raises.
logging.getLogger("absl").setLevel(logging.ERROR)


@dataclasses.dataclass
class _Preserve(ocp.checkpoint_managers.PreservationPolicy):
    """Preserve the newest checkpoints and, if `best`, the one with the best known value."""

    keep: int
    best: str | None
    """The measure, see `train.keep_best`."""
    values: dict[int, float] = dataclasses.field(default_factory=dict)
    """The values of that measure by step."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        preserved = set(steps[max(0, len(steps) - self.keep) :])
        known = {step: self.values[step] for step in steps if step in self.values}
        if self.best and known:
            preserved.add(_best_step(known, self.best))
        return [step in preserved for step in steps]


def _best_step(values: Mapping[int, float], measure: str) -> int:
    """The first step with the best value; of the training loss, the lowest is the best."""
    if measure == TRAIN_LOSS:
        return min(sorted(values), key=values.__getitem__)
    found = best([Evaluated(step, {measure: values[step]}) for step in sorted(values)], measure)
    assert found is not None
    return found.step


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes what is being written.

    A checkpoint that was cut off while being written does not count. One that is corrupt is renamed
    to STEP.damaged, and the one before it is used. Raises OSError when no more can be written.

    keep: how many of the newest stay; best: the measure by which the best stays too, see
    `train.keep_best`.
    """

    def __init__(self, directory: Path, *, keep: int = KEEP, best: str | None = None) -> None:
        self.directory = Path(directory).absolute()
        self._policy = _Preserve(keep, best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True
        )
        self._manager = _manager(self.directory, options)
        self._finishing: threading.Thread | None = None
        self._failure: Exception | None = None
        self._num_bytes = 0
        for step in self._manager.all_steps():
            self._write_missing_checksums(step)
            loss = recorded_facts(self._path(step)).get("loss")
            with contextlib.suppress(ValueError):  # corrupt: `restore` will set it aside
                self._note_value(step, loss, self.curve(step))

    @property
    def latest(self) -> int | None:
        """Steps done in the newest complete checkpoint."""
        return self._manager.latest_step()

    def curve(self, step: int) -> list[Evaluated]:
        """The evaluations during training up to a checkpoint.

        Raises ValueError for what no run writes.
        """
        return _read_curve(self._manager, step)[1]

    def save(
        self,
        step: int,
        params: Any,
        opt_state: Any,
        *,
        loss: float | None = None,
        curve: Sequence[Evaluated] = (),
    ) -> None:
        """Copy the state now and write it in the background.

        loss: the mean training loss since the checkpoint before. curve: the evaluations so far. An
        existing checkpoint of this step is left alone. Raises OSError if this checkpoint, or the
        one begun before it, cannot be written.
        """
        with self._raising_oserror():
            self._join()
        if step in self._manager.all_steps():
            return
        self._note_value(step, loss, curve)
        items = {PARAMS: params, OPT_STATE: _flatten(opt_state)}
        self._num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        arguments: dict[str, Any] = {
            name: ocp.args.StandardSave(item) for name, item in items.items()
        }
        if curve:
            rows = [{"step": row.step, "values": dict(row.values)} for row in curve]
            arguments[EVALUATIONS] = ocp.args.JsonSave(
                {"best_by": self._policy.best, "curve": rows}
            )
        with self._raising_oserror():
            self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        self._finishing = threading.Thread(
            target=self._finish, args=(step, loss), name="checkpoint checksums"
        )
        self._finishing.start()

    def restore(self, params: Any, opt_state: Any) -> tuple[int, Any, Any] | None:
        """(step, params, opt_state) of the newest intact checkpoint, bit for bit, or None.

        The arguments give shapes and shardings. Raises ValueError if it is of another model.
        """
        self.wait()
        while (step := self.latest) is not None:
            problem = find_corruption(self._path(step))
            if problem is None:
                shapes = {PARAMS: params, OPT_STATE: _flatten(opt_state)}
                restored = _restore(self._manager, step, shapes)
                return step, restored[PARAMS], _unflatten(restored[OPT_STATE], opt_state)
            self._set_aside(step, problem)
            self._manager.reload()
        return None

    def wait(self) -> None:
        """Return when everything saved is on disk, with its checksums, in every process."""
        with self._raising_oserror():
            self._join()
            distributed.barrier()

    def close(self) -> None:
        """Finish what is being written. Raises OSError as `save` does."""
        with self._raising_oserror():
            try:
                self._join()
            finally:
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note_value(self, step: int, loss: float | None, curve: Sequence[Evaluated]) -> None:
        """Note a checkpoint's value of the measure that the best is chosen by, if it has one."""
        measure = self._policy.best
        value = loss if measure == TRAIN_LOSS else _value_at(step, curve, measure)
        if value is not None:
            self._policy.values[step] = value

    def _join(self) -> None:
        thread, self._finishing = self._finishing, None
        if thread is not None:
            thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _finish(self, step: int, loss: float | None) -> None:
        """In a thread: wait until the step is written, then write its checksums.

        Nothing else uses the manager until this has ended.
        """
        try:
            self._manager.wait_until_finished()
            if distributed.is_primary():
                write_checksums(self._path(step), {"loss": loss})
        except Exception as error:  # raised by `_join`
            self._failure = error

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    @distributed.primary_only
    def _write_missing_checksums(self, step: int) -> None:
        """Write those of a complete checkpoint whose process was killed before it could."""
        if not has_checksums(self._path(step)):
            write_checksums(self._path(step), {"loss": None})

    @distributed.primary_only
    def _set_aside(self, step: int, problem: str) -> None:
        name = f"{step}.damaged"
        for number in itertools.count(2):
            if not (self.directory / name).exists():
                break
            name = f"{step}.damaged.{number}"
        self._path(step).rename(self.directory / name)
        print(
            f"checkpoint {self._path(step)} is damaged ({problem}): renamed to {name}; "
            "the one before it is used",
            file=sys.stderr,
        )

    @contextlib.contextmanager
    def _raising_oserror(self) -> Iterator[None]:
        """Turn what orbax and its libraries raise, also for an earlier write, into one OSError."""
        try:
            yield
        except Exception as error:
            reason = self._no_space() if "No space left" in str(error) else _first_line(error)
            raise OSError(
                f"a checkpoint cannot be written under {self.directory} ({reason}); the one before "
                "it is complete, and the same command resumes from it"
            ) from error

    def _no_space(self) -> str:
        free = shutil.disk_usage(self.directory).free
        return f"no space left: it has {self._num_bytes:,} bytes, and {free:,} are free"


def find_step(directory: Path, which: int | str = "latest") -> int:
    """Find the steps done in the complete checkpoint `which` under `directory`.

    which: "latest", "best" (by the measure of the run's `train.keep_best`, or else the lowest
    training loss), or a number of steps. Raises ValueError, listing the existing checkpoints, if
    there is no such checkpoint.
    """
    with _reader(directory) as manager:
        steps = sorted(manager.all_steps())
        if steps and which == "best":
            return _find_best(Path(directory), manager, steps)
    if not steps:
        raise ValueError(f"no checkpoint under {directory}: train this run first")
    listed = ", ".join(map(str, steps))
    if which == "latest":
        return steps[-1]
    if str(which) not in map(str, steps):
        raise ValueError(f"no checkpoint {which} under {directory}; there are {listed}")
    return int(which)


def _find_best(directory: Path, manager: ocp.CheckpointManager, steps: Sequence[int]) -> int:
    """The best of some steps."""
    listed = ", ".join(map(str, steps))
    measure, _ = _read_curve(manager, steps[-1])
    if measure not in (None, TRAIN_LOSS):
        values = {step: _value_at(step, _read_curve(manager, step)[1], measure) for step in steps}
        known = {step: value for step, value in values.items() if value is not None}
        if not known:
            raise ValueError(
                f"the best checkpoint under {directory} is not known, because none of them was "
                f"evaluated; choose one of {listed}"
            )
        return _best_step(known, measure)
    losses: dict[int, Any] = {
        step: recorded_facts(directory / str(step)).get("loss") for step in steps
    }
    unknown = [step for step, loss in losses.items() if loss is None]
    if unknown:
        raise ValueError(
            f"the best checkpoint under {directory} is not known, because {unknown[0]} has no "
            f"loss recorded; choose one of {listed}"
        )
    return _best_step(losses, TRAIN_LOSS)


def _read_curve(manager: ocp.CheckpointManager, step: int) -> tuple[str | None, list[Evaluated]]:
    """(what the best is chosen by, the evaluations) that a checkpoint holds; (None, []) for none.

    Raises ValueError for what no run writes.
    """
    directory = Path(str(manager.directory)) / str(step)
    if not (directory / EVALUATIONS).is_dir():
        return None, []
    try:
        arguments = ocp.args.Composite(**{EVALUATIONS: ocp.args.JsonRestore()})
        saved = manager.restore(step, args=arguments)[EVALUATIONS]
        check_shape(saved, SAVED_EVALUATIONS, "it")
        curve = [Evaluated(row["step"], row["values"]) for row in saved["curve"]]
        return saved["best_by"], curve
    except Exception as error:  # whatever orbax and its libraries raise
        raise ValueError(
            f"{directory / EVALUATIONS} cannot be read ({_first_line(error)}): restore it, or "
            f"remove {directory} to resume from the checkpoint before it"
        ) from error


def _value_at(step: int, curve: Sequence[Evaluated], measure: str | None) -> float | None:
    """The value of a measure after a step; None if it was not evaluated then."""
    if measure is None or not curve or curve[-1].step != step:
        return None
    return curve[-1].values.get(measure)


def load_params(
    directory: Path, shapes: Any = None, *, which: int | str = "latest"
) -> tuple[Any, int]:
    """(parameters, steps done) of the checkpoint `which` under `directory`, see `find_step`.

    `shapes` with shardings put the parameters on those devices, whatever mesh they were saved from.
    Raises ValueError if there is no such checkpoint, or if it is damaged.
    """
    step = find_step(directory, which)
    path = Path(directory).absolute() / str(step)
    problem = find_corruption(path, part=PARAMS) if has_checksums(path) else None
    if problem is not None:
        raise ValueError(
            f"checkpoint {path} is damaged ({problem}): resume the training, which starts from the "
            "one before it, or read another with --checkpoint STEP"
        )
    with _reader(directory) as manager:
        return _restore(manager, step, {PARAMS: shapes})[PARAMS], step


class OtherModel(ValueError):
    """The checkpoint holds arrays of other names or shapes."""


def _manager(directory: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers: Any = {name: ocp.StandardCheckpointHandler() for name in (PARAMS, OPT_STATE)}
    handlers[EVALUATIONS] = ocp.JsonCheckpointHandler()
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _reader(directory: Path) -> ocp.CheckpointManager:
    if not Path(directory).is_dir():
        raise ValueError(f"no checkpoint under {directory}: train this run first")
    return _manager(Path(directory).absolute(), ocp.CheckpointManagerOptions(read_only=True))


def _restore(manager: ocp.CheckpointManager, step: int, shapes: dict[str, Any]) -> Any:
    """The items of a checkpoint that `shapes` names, checked to be of the same model."""
    checkpoint = f"checkpoint {manager.directory / str(step)}"
    arguments = {name: ocp.args.StandardRestore(item) for name, item in shapes.items()}
    try:
        metadata = manager.item_metadata(step)
        for name, expected in shapes.items():
            _check_shapes(checkpoint, _shapes(metadata[name].tree), _shapes(expected))
        return manager.restore(step, args=ocp.args.Composite(**arguments))
    except OtherModel:
        raise
    except Exception as error:  # whatever orbax and its libraries raise
        raise ValueError(
            f"{checkpoint} cannot be read ({_first_line(error)}): remove that directory to resume "
            "from the one before it"
        ) from error


def _check_shapes(
    checkpoint: str, saved: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    """Raise OtherModel for the first name with another shape; expecting nothing accepts all."""
    if not expected:
        return
    for name in [*expected, *saved]:
        if saved.get(name) != expected.get(name):
            raise OtherModel(
                f"{checkpoint} is of another model: {name} is {_describe(saved.get(name))} there, "
                f"{_describe(expected.get(name))} here"
            )


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"shape {shape}"


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _flatten(tree).items()}


def _flatten(state: Any) -> dict[str, Any]:
    """Leaves of an optimiser state by path, so that no optax class name reaches the disk."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unflatten(flat: dict[str, Any], like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flatten(like)])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

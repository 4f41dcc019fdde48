"""Checkpoints of a pure dict {params, opt_state}: asynchronous, atomic, sealed, the step in the directory's name."""

import contextlib
import dataclasses
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ctxext.parallel import distributed
from ctxext.training.checksums import damage, facts, seal, sealed

KEEP = 2
PARAMS, OPT_STATE = "params", "opt_state"

# It reports every file it opens; what a user must know, this module raises.
logging.getLogger("absl").setLevel(logging.ERROR)


def _flat(state: Any) -> dict[str, Any]:
    """Leaves of an optimiser state by path, so that no optax class name reaches the disk."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unflat(flat: dict[str, Any], like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flat(like)])


def _manager(directory: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers: Any = {name: ocp.StandardCheckpointHandler() for name in (PARAMS, OPT_STATE)}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


@dataclasses.dataclass
class _Preserve(ocp.checkpoint_managers.PreservationPolicy):
    """The newest ones and, if `best`, the one with the lowest known loss."""

    keep: int
    best: bool
    losses: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        known = [step for step in steps if step in self.losses]
        best = min(known, key=self.losses.__getitem__, default=None) if self.best else None
        return [step == best or place >= len(steps) - self.keep for place, step in enumerate(steps)]


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes what is being written.

    A checkpoint that was cut off while being written does not count, one that is damaged is renamed to STEP.damaged and
    the one before it used. Raises OSError when there is no room for another.

    keep: how many of the newest stay; best: the one of the lowest loss stays too.
    """

    def __init__(self, directory: Path, *, keep: int = KEEP, best: bool = False) -> None:
        self.directory = Path(directory).absolute()
        self._policy = _Preserve(keep, best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True
        )
        self._manager = _manager(self.directory, options)
        self._sealing: threading.Thread | None = None
        self._failure: Exception | None = None
        for step in self._manager.all_steps():
            self._seal_if_bare(
                step
            )  # of an older version, or of a process that was killed just before
            if (loss := facts(self._at(step)).get("loss")) is not None:
                self._policy.losses[step] = loss

    @property
    def latest(self) -> int | None:
        """Steps done in the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any, *, loss: float | None = None) -> None:
        """Copy the state now, write it in the background. An existing checkpoint of this step is left alone."""
        with self._writing():
            self._wait()
        if step in self._manager.all_steps():
            return
        if loss is not None:
            self._policy.losses[step] = loss
        items = {PARAMS: params, OPT_STATE: _flat(opt_state)}
        arguments = ocp.args.Composite(
            **{name: ocp.args.StandardSave(item) for name, item in items.items()}
        )
        with self._writing():
            self._manager.save(step, args=arguments, force=True)
        self._sealing = threading.Thread(target=self._finish, args=(step, loss), name="seal")
        self._sealing.start()

    def restore(self, params: Any, opt_state: Any) -> tuple[int, Any, Any] | None:
        """(step, params, opt_state) of the newest good checkpoint, bit for bit, or None; the arguments give shapes."""
        self.wait()
        while (step := self.latest) is not None:
            if wrong := damage(self._at(step)):
                self._set_aside(step, wrong)
                self._manager.reload()
                continue
            found = _restore(self._manager, step, {PARAMS: params, OPT_STATE: _flat(opt_state)})
            return step, found[PARAMS], _unflat(found[OPT_STATE], opt_state)
        return None

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        with self._writing():
            self._wait()
            distributed.barrier()  # until the first has sealed it

    def _wait(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _finish(self, step: int, loss: float | None) -> None:
        """In a thread: nobody else asks the manager for anything until it has ended."""
        try:
            self._manager.wait_until_finished()
            if distributed.is_primary():
                seal(self._at(step), loss=loss)
        except Exception as error:  # raised where it is waited for
            self._failure = error

    def _at(self, step: int) -> Path:
        return self.directory / str(step)

    @distributed.primary_only
    def _seal_if_bare(self, step: int) -> None:
        if not sealed(self._at(step)):
            seal(self._at(step), loss=None)

    @distributed.primary_only
    def _set_aside(self, step: int, wrong: str) -> None:
        names = (
            f"{step}.damaged{suffix}"
            for suffix in ("", *(f".{number}" for number in range(2, 1000)))
        )
        aside = next(path for name in names if not (path := self.directory / name).exists())
        self._at(step).rename(aside)
        print(
            f"checkpoint {self._at(step)} is damaged ({wrong}): renamed to {aside.name}, going on from the one "
            "before it",
            file=sys.stderr,
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # also of a write that began earlier; the libraries below raise whatever they met
            reason = "no space left" if "No space left" in str(error) else _first_line(error)
            raise OSError(
                f"a checkpoint cannot be written under {self.directory} ({reason}); the one before it is complete, so"
                " that the same command goes on from there"
            ) from error

    def close(self) -> None:
        with self._writing():
            try:
                self._wait()
            finally:
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _restore(manager: ocp.CheckpointManager, step: int, shapes: dict[str, Any]) -> Any:
    where = f"checkpoint {manager.directory / str(step)}"
    arguments = ocp.args.Composite(
        **{name: ocp.args.StandardRestore(item) for name, item in shapes.items()}
    )
    try:
        metadata = manager.item_metadata(step)
        for name, wanted in shapes.items():
            _check(where, _shapes(metadata[name].tree), _shapes(wanted))
        return manager.restore(step, args=arguments)
    except OtherModel:
        raise
    except Exception as error:  # the libraries below raise whatever they met
        raise ValueError(
            f"{where} cannot be read ({_first_line(error)}): remove that directory to go on from the one before it"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class OtherModel(ValueError):
    """The checkpoint holds arrays of other names or shapes."""


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _flat(tree).items()}


def _check(
    where: str, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    for name in [*wanted, *found] if wanted else ():
        if found.get(name) != wanted.get(name):
            there, here = (f"shape {s[name]}" if name in s else "missing" for s in (found, wanted))
            raise OtherModel(f"{where} is of another model: {name} is {there} there, {here} here")


def _reader(directory: Path) -> ocp.CheckpointManager:
    if not Path(directory).is_dir():
        raise ValueError(f"no checkpoint under {directory}: train this run first")
    return _manager(Path(directory).absolute(), ocp.CheckpointManagerOptions(read_only=True))


def find_step(directory: Path, which: int | str = "latest") -> int:
    """Steps done in the complete checkpoint `which`: "latest", "best" (the lowest training loss), or a number of steps.

    Raises ValueError, listing those that are there, if that is none of them.
    """
    with _reader(directory) as manager:
        steps = sorted(manager.all_steps())
    if not steps:
        raise ValueError(f"no checkpoint under {directory}: train this run first")
    if which == "best":
        losses: dict[int, Any] = {
            step: facts(Path(directory) / str(step)).get("loss") for step in steps
        }
        if unknown := [step for step, loss in losses.items() if loss is None]:
            raise ValueError(
                f"which checkpoint under {directory} is best cannot be said, as {unknown[0]} has no loss "
                f"with it; choose one of {', '.join(map(str, steps))}"
            )
        return min(losses, key=losses.__getitem__)
    if which != "latest" and str(which) not in map(str, steps):
        raise ValueError(
            f"no checkpoint {which} under {directory}; there are {', '.join(map(str, steps))}"
        )
    return steps[-1] if which == "latest" else int(which)


def load_params(
    directory: Path, shapes: Any = None, *, which: int | str = "latest"
) -> tuple[Any, int]:
    """Parameters alone and the steps they had, from the checkpoint `which` under `directory`, see `find_step`.

    `shapes` with shardings put them on those devices, whatever mesh they were saved from.

    Raises ValueError if there is none, or if it is damaged.
    """
    step = find_step(directory, which)
    where = Path(directory).absolute() / str(step)
    if sealed(where) and (wrong := damage(where, part=PARAMS)):
        raise ValueError(
            f"checkpoint {where} is damaged ({wrong}): train on, which starts from the one before it, or "
            "read another with --checkpoint STEP"
        )
    with _reader(directory) as manager:
        return _restore(manager, step, {PARAMS: shapes})[PARAMS], step

"""Checkpoints of a pure dict {params, opt_state}: asynchronous, atomic, the step in the directory's name."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

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


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes what is being written.

    A checkpoint that was cut off while being written does not count. Raises ValueError for one that is damaged, OSError
    when there is no room for another.
    """

    def __init__(self, directory: Path, *, keep: int = KEEP) -> None:
        self.directory = Path(directory).absolute()
        policy = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        self._manager = _manager(self.directory, options)

    @property
    def latest(self) -> int | None:
        """Steps done in the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any) -> None:
        """Copy the state now, write it in the background. An existing checkpoint of this step is left alone."""
        if step in self._manager.all_steps():
            return
        items = {PARAMS: params, OPT_STATE: _flat(opt_state)}
        arguments = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in items.items()})
        with self._writing():
            self._manager.save(step, args=arguments, force=True)

    def restore(self, params: Any, opt_state: Any) -> tuple[int, Any, Any] | None:
        """(step, params, opt_state) of the newest checkpoint, bit for bit, or None; the arguments give the shapes."""
        self.wait()
        step = self.latest
        if step is None:
            return None
        found = _restore(self._manager, step, {PARAMS: params, OPT_STATE: _flat(opt_state)})
        return step, found[PARAMS], _unflat(found[OPT_STATE], opt_state)

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

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
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _restore(manager: ocp.CheckpointManager, step: int, shapes: dict[str, Any]) -> Any:
    where = f"checkpoint {manager.directory / str(step)}"
    arguments = ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in shapes.items()})
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


def _check(where: str, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    for name in [*wanted, *found] if wanted else ():
        if found.get(name) != wanted.get(name):
            there, here = (f"shape {s[name]}" if name in s else "missing" for s in (found, wanted))
            raise OtherModel(f"{where} is of another model: {name} is {there} there, {here} here")


def _reader(directory: Path) -> ocp.CheckpointManager:
    if not Path(directory).is_dir():
        raise ValueError(f"no checkpoint under {directory}: train this run first")
    options = ocp.CheckpointManagerOptions(read_only=True)
    return _manager(Path(directory).absolute(), options)


def latest_step(directory: Path) -> int:
    """Steps done in the newest complete checkpoint under `directory`. Raises ValueError if there is none."""
    with _reader(directory) as manager:
        step = manager.latest_step()
    if step is None:
        raise ValueError(f"no checkpoint under {directory}: train this run first")
    return step


def load_params(directory: Path, shapes: Any = None) -> tuple[Any, int]:
    """Parameters alone and the steps they had, from the newest checkpoint under `directory`.

    `shapes` with shardings put them on those devices, whatever mesh they were saved from.

    Raises ValueError if there is none, or if it is damaged.
    """
    step = latest_step(directory)
    with _reader(directory) as manager:
        return _restore(manager, step, {PARAMS: shapes})[PARAMS], step

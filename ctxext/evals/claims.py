"""Which records a running process computes, so that no second process computes them too."""

import contextlib
import hashlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from ctxext.evals.record import EvaluatedModel
from ctxext.files import (
    InUse,
    check_places,
    exclusive_lock,
    read_json,
    waiting_lock,
    write_json,
)

FOLDER = ".claims"
"""Next to the records. A claim is the lock of its process, and a list of what is claimed."""
ADVICE = (
    "wait for it, stop it, or choose another --out; several processes share the work if each has "
    "its own --shard"
)


@contextlib.contextmanager
def claimed(sink: Path, model: EvaluatedModel, items: Iterable[str]) -> Iterator[None]:
    """Claim these items of a model in the records file `sink` until the block or the process ends.

    Raises InUse, naming the process, if another one is computing any of them.
    """
    wanted = {_digest(model, item) for item in items}
    folder = sink.parent / FOLDER
    check_places(sink.parent, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    message = f"{model.label} is being evaluated into {sink.parent}"
    own = folder / f"{secrets.token_hex(8)}.lock"
    with contextlib.ExitStack() as stack:
        with waiting_lock(folder / "lock"):
            for other in folder.glob("*.lock"):
                _check(other, wanted, message)
            stack.callback(_list_of(own).unlink, missing_ok=True)
            stack.enter_context(exclusive_lock(own, message, ADVICE, remove=True))
            write_json(_list_of(own), sorted(wanted))
        yield


def _check(other: Path, wanted: set[str], message: str) -> None:
    """Raise InUse if a running process claims one of `wanted`; clean up after a killed one."""
    try:
        with exclusive_lock(other, message, ADVICE, remove=True):
            _list_of(other).unlink(missing_ok=True)
    except InUse:
        if wanted.intersection(read_json(_list_of(other))):
            raise


def _list_of(lock: Path) -> Path:
    return lock.with_suffix(".json")


def _digest(model: EvaluatedModel, item: str) -> str:
    return hashlib.sha256(f"{model!r} {item}".encode()).hexdigest()[:16]

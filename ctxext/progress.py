"""How far long work is: told by those that do it, heard by whoever shows it.

A model cannot know which of many readings it does, and who counts the readings does not see into
one. So the model tells the share of its present call that is done. Work that has no one length,
such as a proof, tells which part it is at.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[float], None]
"""Takes the share of the present call that is done, 0 to 1."""

PartListener = Callable[[str], None]
"""Takes the part that the work is at, in words; "" for none in particular."""

_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar(
    "listener", default=None
)
_part_listener: contextvars.ContextVar[PartListener | None] = contextvars.ContextVar(
    "part listener", default=None
)
_part: contextvars.ContextVar[str] = contextvars.ContextVar("part", default="")


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """In the block, `listener` hears how far each call is."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def parts_heard_by(listener: PartListener) -> Iterator[None]:
    """In the block, `listener` hears which part the work is at."""
    token = _part_listener.set(listener)
    try:
        yield
    finally:
        _part_listener.reset(token)


def now_at(part: str) -> None:
    """The work is at this part from now on; "": at none in particular of the one around it."""
    part = part or _part.get()
    listener = _part_listener.get()
    if listener is not None:
        listener(part)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """In the block, the work is at this part; then again where it was before."""
    outer = _part.get()
    token = _part.set(name)
    now_at(name)
    try:
        yield
    finally:
        _part.reset(token)
        now_at(outer)


@contextlib.contextmanager
def as_part(number: int, count: int) -> Iterator[None]:
    """In the block, what is told is about part `number` (from 0) of `count` equal parts."""
    outer = _listener.get()
    if outer is None:
        yield
        return
    with heard_by(lambda share: outer((number + share) / count)):
        yield


def tell(share: float) -> None:
    """So much of the present call is done."""
    listener = _listener.get()
    if listener is not None:
        listener(min(1.0, share))


class Meter:
    """Adds up the operations of a call, and tells the share of them that is done."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._done = 0.0

    def add(self, operations: float) -> None:
        """So many more are done."""
        self._done += operations
        tell(self._done / self._total)


def each(items: Iterable[Item], size: Callable[[Item], float]) -> Iterator[Item]:
    """The items; whenever the next one is asked for, the share done by size is told."""
    listed = list(items)
    meter = Meter(sum(map(size, listed)))
    for item in listed:
        yield item
        meter.add(size(item))


def seconds_left(elapsed: float, done: float, left: float) -> float | None:
    """The time that is left at the pace so far; None before there is one.

    done and left: in one unit that time grows with, such as operations. To be counted from the
    first part that is done, as compiling comes before it.
    """
    return elapsed * left / done if done > 0 and elapsed > 0 else None


def left_text(elapsed: float, share: float) -> str:
    """The time that is left of a part, for the end of a line; "" before there is a pace."""
    left = seconds_left(elapsed, share, 1.0 - share)
    return "" if left is None or share >= 1 else f", about {duration(left)} left of it"


def duration(seconds: float) -> str:
    """A length of time in the unit that fits it: "40 s", "12 min", "3.7 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

"""The time that an accelerator was busy, from a profiler's trace: no host time, no gaps."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

LINES = ("Stream #", "XLA Ops")
"""How the names of lines with kernels begin in a device's plane: a GPU's streams, a TPU's core."""


def device_seconds(call: Callable[[], Any]) -> float | None:
    """Seconds in which the first accelerator worked on `call`; None on a CPU.

    `call` has to wait for its results.
    """
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            call()
        (path,) = Path(directory).rglob("*.xplane.pb")
        return busy_seconds(jax.profiler.ProfileData.from_file(str(path)))


def busy_seconds(profile: Any) -> float | None:
    """Seconds covered by kernels of the first device that ran any; None if there is none."""
    planes = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    for plane in sorted(planes, key=lambda plane: plane.name):
        nanoseconds = covered(
            (event.start_ns, event.end_ns)
            for line in plane.lines
            if line.name.startswith(LINES)
            for event in line.events
        )
        if nanoseconds:
            return nanoseconds / 1e9
    return None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total

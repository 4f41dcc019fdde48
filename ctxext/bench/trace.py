"""Time that an accelerator was busy, from a profiler's trace: without the host's share, and without gaps."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

LINES = ("Stream #", "XLA Ops")
"""How a plane's lines of kernels are named: a GPU's streams, a TPU's core."""


def device_seconds(call: Callable[[], Any]) -> float | None:
    """Seconds in which the first accelerator worked on `call`, which must wait for its results; None on a CPU."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            call()
        (path,) = Path(directory).rglob("*.xplane.pb")
        return busy(jax.profiler.ProfileData.from_file(str(path)))


def busy(profile: Any) -> float | None:
    """Seconds covered by at least one kernel of the first device's plane; None if the trace has none."""
    planes = sorted(
        (plane for plane in profile.planes if plane.name.startswith("/device:")),
        key=lambda x: x.name,
    )
    found = [
        covered(
            (event.start_ns, event.end_ns)
            for line in plane.lines
            if line.name.startswith(LINES)
            for event in line.events
        )
        for plane in planes
    ]
    return next((ns / 1e9 for ns in found if ns), None)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of these intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total

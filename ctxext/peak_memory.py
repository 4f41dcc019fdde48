"""The most memory that this process has used so far: of the host, and of its devices."""

import re
from pathlib import Path

import jax

GIB = 2**30
STATUS = Path("/proc/self/status")
"""Of Linux: what a process uses. `getrusage` would count the process that started it too."""


def host_bytes() -> int | None:
    """The largest resident set of this process; None where the system does not say."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def device_bytes() -> int | None:
    """The most that was allocated on one of the devices of this process; None where none says.

    CPUs say nothing: what they hold is memory of the host.
    """
    peaks = [(x.memory_stats() or {}).get("peak_bytes_in_use") for x in jax.local_devices()]
    return max((peak for peak in peaks if peak is not None), default=None)


def peaks() -> dict[str, float]:
    """GiB by the name of a metric, of what is known."""
    known = {"host_peak_gib": host_bytes(), "device_peak_gib": device_bytes()}
    return {name: size / GIB for name, size in known.items() if size is not None}

"""The peak memory of a process, against what the system says of it now."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ctxext import peak_memory

GIB = 2**30


def resident_bytes() -> int:
    """Of this process, now, by another file than the one that is tested."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_peak_of_the_host_stays_when_memory_is_freed(monkeypatch, tmp_path):
    before = peak_memory.host_bytes()
    assert before is not None
    more = before - resident_bytes() + 2**26
    held = np.ones(more, np.uint8)
    with_it = resident_bytes()
    del held
    peak = peak_memory.host_bytes()
    assert peak is not None
    assert with_it - 2**22 <= peak < with_it + 2**28
    assert resident_bytes() < peak
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "as on other systems")
    assert peak_memory.host_bytes() is None


def test_the_peak_of_devices_is_that_of_the_fullest_and_unknown_on_cpus(monkeypatch):
    assert peak_memory.device_bytes() is None
    assert list(peak_memory.peaks()) == ["host_peak_gib"]
    sizes = (3 * GIB, 5 * GIB)
    devices = [
        SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n, "bytes_in_use": 1})
        for n in sizes
    ]
    monkeypatch.setattr(peak_memory.jax, "local_devices", lambda: devices)
    monkeypatch.setattr(peak_memory, "host_bytes", lambda: GIB // 2)
    assert peak_memory.peaks() == pytest.approx({"host_peak_gib": 0.5, "device_peak_gib": 5.0})

"""Compiled programs: kept between commands, and what compiling took."""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHORTEST = 0.3
"""Seconds of compiling from which on a program is kept."""


def keep_programs() -> None:
    """Let jax keep compiled programs in the user's cache directory, unless JAX_COMPILATION_CACHE_DIR says otherwise.

    Before jax is imported. An empty JAX_COMPILATION_CACHE_DIR keeps none. A directory for every kind of processor: a
    home may be shared by machines that cannot run each other's programs.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(home / "ctxext" / f"programs-{_processor()}")
    )
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(SHORTEST))


def _processor() -> str:
    """A short name of what this machine's processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    able = next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )
    return hashlib.sha256(f"{platform.machine()} {able}".encode()).hexdigest()[:8]


@dataclasses.dataclass
class Compiled:
    """Programs that were compiled or read from the cache, and the seconds that both took."""

    programs: int = 0
    seconds: float = 0.0
    cached: int = 0

    @property
    def text(self) -> str:
        """To read, in one line."""
        return f"{self.programs} programs compiled in {self.seconds:.0f} s, {self.cached} of them from the cache"

    def _took(self, event: str, duration_secs: float, **kwargs: str | int | float) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.programs += 1
            self.seconds += duration_secs

    def _event(self, event: str, **kwargs: str | int | float) -> None:
        self.cached += event == "/jax/compilation_cache/cache_hits"


@contextmanager
def compiled() -> Iterator[Compiled]:
    """Counts what is compiled in the block."""
    from jax import monitoring

    count = Compiled()
    monitoring.register_event_duration_secs_listener(count._took)
    monitoring.register_event_listener(count._event)
    try:
        yield count
    finally:
        monitoring.unregister_event_duration_listener(count._took)
        monitoring.unregister_event_listener(count._event)

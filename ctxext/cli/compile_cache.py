"""Keep compiled programs between commands, and count what was compiled."""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIN_COMPILE_SECONDS = 0.3
"""Programs that took less time to compile are not kept."""


def keep_programs() -> None:
    """Let jax keep compiled programs in the user's cache directory.

    JAX_COMPILATION_CACHE_DIR names another one, or none if it is empty. Call it before jax is
    imported. Every kind of processor has its own directory, because machines that share a home may
    not be able to run each other's programs.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "ctxext" / f"programs-{_processor()}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_COMPILE_SECONDS))


def _processor() -> str:
    """A hash of the architecture and the instruction sets of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("flags", "Features"))]
    text = f"{platform.machine()} {features[0] if features else platform.processor()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclasses.dataclass
class CompilationCount:
    """How many programs were compiled or read from the cache, and the seconds that both took."""

    programs: int = 0
    seconds: float = 0.0
    cached: int = 0

    @property
    def text(self) -> str:
        """The count as one line."""
        compiled = f"{self.programs} programs compiled in {self.seconds:.0f} s"
        return f"{compiled}, {self.cached} of them from the cache"

    def _on_duration(self, event: str, duration_secs: float, **kwargs: str | int | float) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.programs += 1
            self.seconds += duration_secs

    def _on_event(self, event: str, **kwargs: str | int | float) -> None:
        self.cached += event == "/jax/compilation_cache/cache_hits"


@contextmanager
def count_compilations() -> Iterator[CompilationCount]:
    """Count what is compiled inside the block."""
    from jax import monitoring

    count = CompilationCount()
    monitoring.register_event_duration_secs_listener(count._on_duration)
    monitoring.register_event_listener(count._on_event)
    try:
        yield count
    finally:
        monitoring.unregister_event_duration_listener(count._on_duration)
        monitoring.unregister_event_listener(count._on_event)

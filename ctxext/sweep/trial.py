"""One experiment of a sweep as a command, and its outcome."""

import dataclasses
import difflib
import shlex
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from ctxext.child_python import python_command
from ctxext.files import check_place, make_parent, open_in_place
from ctxext.progress import duration

T = TypeVar("T")
TAIL = 12
"""Lines of the log that are kept of a failed trial."""


def choose(by_name: Mapping[str, T], patterns: Sequence[str]) -> dict[str, T]:
    """The trials whose names match any of the patterns, such as "yarn-*", in their order.

    Raises ValueError for a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in by_name):
            close = difflib.get_close_matches(pattern, by_name, 1) or list(by_name)[:1]
            raise ValueError(
                f"--trials: no trial is called {pattern}; there are {len(by_name)}, such as "
                f"{close[0]} (--dry-run lists them)"
            )
    return {
        name: value
        for name, value in by_name.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


@dataclasses.dataclass(frozen=True)
class Resources:
    """The resources of a trial, and how many run at a time; no launcher uses all of it."""

    jobs: int = 1
    cpus: int = 1
    gpus: int = 0
    minutes: int = 240
    retries: int = 0
    partition: str | None = None
    address: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    name: str
    status: int | None
    """Its exit status, 0 for success; None while it has not ended."""
    command: list[str]
    log: str
    tail: str = ""
    """The last lines of its log, if it failed."""
    seconds: float | None = None
    """How long its process ran, all starts together; None if that is not known."""
    at: str = ""
    """The last that it said, if it runs."""

    @property
    def text(self) -> str:
        """Such as: done in 3 min; FAILED with status 2 after 4 s: out of memory."""
        took = "" if self.seconds is None else duration(self.seconds)
        if self.status is None:
            return "not ended"
        if not self.status:
            return f"done in {took}" if took else "done"
        after = f" after {took}" if took else ""
        _, _, reason = self.tail.rpartition("\n")
        return f"FAILED with status {self.status}{after}{': ' if reason else ''}{reason}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A name, the command that runs or resumes it, and its run directory."""

    name: str
    command: tuple[str, ...]
    run: Path

    @classmethod
    def of(cls, file: str | Path, name: str, out: Path, arguments: Sequence[str]) -> "Trial":
        """`ctxext run FILE --trial NAME` with more arguments.

        Paths are absolute, because a launcher may run the command in another directory.
        """
        run = out.resolve() / name  # which must not be a link itself
        command = ("run", str(Path(file).resolve()), "--trial", name, "--run-dir", str(run))
        return cls(name, (*command, *arguments), run)

    @property
    def text(self) -> str:
        """The command as it can be pasted into a shell."""
        return shlex.join(["ctxext", *self.command])

    @property
    def log(self) -> Path:
        """The file of its output, next to the run directory."""
        return self.run.with_name(f"{self.run.name}.log")

    def start(self) -> subprocess.Popen:
        """Start the command in its own process and session, with its output appended to the log.

        Raises ValueError if the log or the run directory is a link.
        """
        make_parent(self.log)
        check_place(self.run)
        with open_in_place(self.log, "ab") as log:
            return subprocess.Popen(
                python_command("-u", "-m", "ctxext", *self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def perform(self, retries: int = 0) -> Outcome:
        """Start the command and wait, up to `retries` times more while it fails.

        If this process is stopped, the trial saves and stops too.
        """
        started = time.monotonic()
        status = self._wait_for(self.start())
        for _ in range(retries):
            if not status:
                break
            status = self._wait_for(self.start())
        return self.outcome(status, time.monotonic() - started)

    @staticmethod
    def _wait_for(process: subprocess.Popen) -> int:
        try:
            return process.wait()
        finally:
            stop([process])

    def outcome(self, status: int | None, seconds: float | None = None, at: str = "") -> Outcome:
        """The outcome for an exit status, with the end of the log if the trial failed."""
        tail = ""
        if status and self.log.exists():
            lines = self.log.read_text(errors="replace").splitlines()
            tail = "\n".join(lines[-TAIL:])
        return Outcome(self.name, status, list(self.command), str(self.log), tail, seconds, at)


def stop(processes: Collection[subprocess.Popen]) -> None:
    """Send SIGTERM to those that still run, which makes a run save, and wait until they end."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()

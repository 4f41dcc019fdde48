"""One experiment of a sweep as a command, and what became of it."""

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

TAIL = 12  # lines of a failed trial's log


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a trial may use, and how many run at a time; each launcher takes what it knows."""

    jobs: int = 1
    cpus: int = 1
    gpus: int = 0
    minutes: int = 240
    retries: int = 0
    partition: str | None = None
    address: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended: exit status (0: well), and the last lines of its log."""

    name: str
    status: int
    command: list[str]
    log: str
    tail: str = ""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A name, the command that runs or resumes it, and its run directory."""

    name: str
    command: tuple[str, ...]
    run: Path

    @classmethod
    def of(cls, file: str | Path, name: str, out: Path, given: Sequence[str]) -> "Trial":
        """`ctxext run FILE --trial NAME` with the overrides `given`; absolute, as a launcher may run it elsewhere."""
        run = (out / name).resolve()
        return cls(
            name,
            ("run", str(Path(file).resolve()), "--trial", name, "--run-dir", str(run), *given),
            run,
        )

    @property
    def text(self) -> str:
        """The command to read and to copy."""
        return shlex.join(["ctxext", *self.command])

    @property
    def log(self) -> Path:
        """Where its output goes, beside its run directory."""
        return self.run.with_name(f"{self.run.name}.log")

    def start(self) -> subprocess.Popen:
        """The command in a process and session of its own, its output appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "ctxext", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def perform(self, retries: int = 0) -> Outcome:
        """Start it and wait, up to `retries` times more while it fails. What stops us lets it save and stop, too."""
        process = self.start()
        try:
            status = process.wait()
        finally:
            stop([process])
        return self.perform(retries - 1) if status and retries else self.outcome(status)

    def outcome(self, status: int) -> Outcome:
        """With the end of the log if it failed."""
        lines = (
            self.log.read_text(errors="replace").splitlines()
            if status and self.log.exists()
            else []
        )
        return Outcome(
            self.name, status, list(self.command), str(self.log), "\n".join(lines[-TAIL:])
        )


def stop(processes: Collection[subprocess.Popen]) -> None:
    """SIGTERM to those that still run, on which a run saves, and wait until they have."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()

"""Trials on this machine, some at a time."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from ctxext.sweep.trial import Outcome, Resources, Trial, stop

PAUSE = 0.1  # seconds between looks


def launch(trials: Sequence[Trial], resources: Resources) -> Iterator[Outcome]:
    """`resources.jobs` at a time; each up to `retries` times more while it fails. Ctrl-C and SIGTERM stop them all."""
    waiting = [(trial, resources.retries) for trial in trials]
    running: dict[subprocess.Popen, tuple[Trial, int]] = {}
    with _terminable():
        try:
            while waiting or running:
                while waiting and len(running) < resources.jobs:
                    trial, retries = waiting.pop(0)
                    running[trial.start()] = trial, retries
                for process in [process for process in running if process.poll() is not None]:
                    trial, retries = running.pop(process)
                    if process.returncode and retries:
                        waiting.insert(0, (trial, retries - 1))
                    else:
                        yield trial.outcome(process.returncode)
                time.sleep(PAUSE)
        finally:
            stop(running)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM leaves the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

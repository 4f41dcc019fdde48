"""Run trials as processes of this machine."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from ctxext.sweep.trial import Outcome, Resources, Trial, stop

POLL_SECONDS = 0.1


def launch(trials: Sequence[Trial], resources: Resources) -> Iterator[Outcome]:
    """Run `resources.jobs` trials at a time, a failed one up to `resources.retries` times more.

    Ctrl-C and SIGTERM stop them all.
    """
    waiting = [(trial, resources.retries) for trial in trials]
    running: dict[subprocess.Popen, tuple[Trial, int]] = {}
    started: dict[str, float] = {}
    with _exit_on_sigterm():
        try:
            while waiting or running:
                while waiting and len(running) < resources.jobs:
                    trial, retries = waiting.pop(0)
                    started.setdefault(trial.name, time.monotonic())
                    running[trial.start()] = (trial, retries)
                ended = [process for process in running if process.poll() is not None]
                for process in ended:
                    trial, retries = running.pop(process)
                    if process.returncode and retries:
                        waiting.insert(0, (trial, retries - 1))
                    else:
                        seconds = time.monotonic() - started[trial.name]
                        yield trial.outcome(process.returncode, seconds)
                time.sleep(POLL_SECONDS)
        finally:
            stop(running)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Leave the block on SIGTERM, as on Ctrl-C, where nobody else sees to it, as the CLI does."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

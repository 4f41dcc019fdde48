"""A sign of life of long commands that have nothing else to say.

On a terminal that is a bar. In a log file, where silence cannot be told from a process that hangs,
it is a line now and then.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from ctxext.progress import duration, heard_by
from ctxext.terminal import PrintableStream

INTERVAL = 90.0
"""Seconds without output after which a line is printed: longer than between lines of progress."""


WITHOUT_BARS = ("export", "import", "prove")
"""Commands that show no bar themselves."""


def line(command: str, seconds: float) -> str:
    """The line that says how long a command has been at work."""
    return f"ctxext {command}: at work for {duration(seconds)}"


@contextlib.contextmanager
def sign_of_life(command: str, *, interval: float = INTERVAL) -> Iterator[None]:
    """In the block, print a line whenever nothing was printed on stderr for `interval` seconds.

    On a terminal, commands without a bar get one instead.
    """
    stream = sys.stderr
    if not isinstance(stream, PrintableStream):
        yield
        return
    if stream.raw.isatty():
        with _bar(command) if command in WITHOUT_BARS else contextlib.nullcontext():
            yield
        return
    started = time.monotonic()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(max(0.0, stream.written_at + interval - time.monotonic())):
            if time.monotonic() - stream.written_at >= interval:
                stream.write(f"{line(command, time.monotonic() - started)}\n")
                stream.flush()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def _bar(command: str) -> Iterator[None]:
    """In the block, a bar shows that the command is at work, and how far its present part is."""
    from ctxext.progress_bar import TerminalBar

    bar = TerminalBar(enabled=True, details="{task.elapsed:.0f} s", counts=False, transient=True)
    task = bar.add_task(f"ctxext {command}", total=None)

    def show(share: float) -> None:
        bar.update(task, completed=share, total=1.0)

    with bar, heard_by(show):
        yield

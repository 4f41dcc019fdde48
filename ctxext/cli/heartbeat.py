"""A sign of life now and then, where a long command has nothing else to say.

Only without a terminal: in a log file, silence cannot be told from a process that hangs.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from ctxext.progress import duration
from ctxext.terminal import PrintableStream

INTERVAL = 90.0
"""Seconds without output after which a line is printed: longer than between lines of progress."""


def line(command: str, seconds: float) -> str:
    """The line that says how long a command has been at work."""
    return f"ctxext {command}: at work for {duration(seconds)}"


@contextlib.contextmanager
def sign_of_life(command: str, *, interval: float = INTERVAL) -> Iterator[None]:
    """In the block, print a line whenever nothing was printed on stderr for `interval` seconds."""
    stream = sys.stderr
    if not isinstance(stream, PrintableStream) or stream.raw.isatty():
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

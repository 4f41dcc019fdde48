"""A sign of life of long commands that have nothing else to say.

On a terminal that is a bar. In a log file, where silence cannot be told from a process that hangs,
it is a line now and then.
"""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Iterator

from ctxext.progress import duration, heard_by, left_text, parts_heard_by
from ctxext.terminal import PrintableStream, printable_line

INTERVAL = 90.0
"""Seconds without output after which a line is printed: longer than between lines of progress."""
WITHOUT_BARS = ("export", "import", "prove")
"""Commands that show no bar themselves, and no lines of progress."""
INTERVAL_WITHOUT_BARS = 30.0
"""Seconds of the same for these."""


@dataclasses.dataclass
class Work:
    """How far a command is, as it tells it."""

    command: str
    """With what it is about, such as "prove runs/mine/export"."""
    started: float = dataclasses.field(default_factory=time.monotonic)
    part: str = ""
    part_began: float = dataclasses.field(default_factory=time.monotonic)
    share: float | None = None

    def begin(self, part: str) -> None:
        """The command is at another part."""
        self.part = part
        self.part_began = time.monotonic()
        self.share = None

    def hear(self, share: float) -> None:
        """So much of the part, or of a call of the model in it, is done."""
        self.share = share

    def line(self) -> str:
        """How long the command has been at work, what it is at, and how far that is."""
        text = f"ctxext {self.command}: at work for {duration(time.monotonic() - self.started)}"
        if self.part:
            text += f", {self.part}"
        if self.share is not None:
            elapsed = time.monotonic() - self.part_began
            text += f", {self.share:.0%}{left_text(elapsed, self.share)}"
        return printable_line(text)


@contextlib.contextmanager
def sign_of_life(
    command: str, subject: str = "", *, interval: float | None = None
) -> Iterator[None]:
    """In the block, print a line whenever nothing was printed on stderr for `interval` seconds.

    subject: what the command is about, its first argument. interval: by default that of the
    command. On a terminal, commands without a bar get one instead.
    """
    if interval is None:
        interval = INTERVAL_WITHOUT_BARS if command in WITHOUT_BARS else INTERVAL
    stream = sys.stderr
    if not isinstance(stream, PrintableStream):
        yield
        return
    if stream.raw.isatty():
        with _bar(command) if command in WITHOUT_BARS else contextlib.nullcontext():
            yield
        return
    work = Work(f"{command} {subject}".rstrip())
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(max(0.0, stream.written_at + interval - time.monotonic())):
            if time.monotonic() - stream.written_at >= interval:
                stream.write(f"{work.line()}\n")
                stream.flush()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with heard_by(work.hear), parts_heard_by(work.begin):
            yield
    finally:
        is_over.set()
        thread.join()


def _bar(command: str) -> contextlib.AbstractContextManager[None]:
    """In the block, a bar shows that the command is at work, and how far its present part is."""
    from ctxext.progress_bar import WorkBar

    return WorkBar(f"ctxext {command}").shown()

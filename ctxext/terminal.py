"""Output in which nothing that a stranger wrote commands the terminal or misleads the eye.

Names of tensors and files, labels, and messages of templates come from the internet. Printed raw,
an escape sequence in them would rename the window, clear the screen or rewrite lines above it, and
marks that reverse or hide text would show one name as another.
"""

import contextlib
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
"""C0 and C1 but for tab and newline, separators of lines, and halves of surrogate pairs."""
INVISIBLE = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Characters of format, such as those that change the direction of text, and blank letters."""
JOINERS = r"\u200c\u200d"
"""Invisible too; the writing of Persian, of Indian languages and of emoji needs them."""

_MISLEADING = re.compile(f"[{CONTROLS}{INVISIBLE}{JOINERS}]")
_MISLEADING_IN_TEXT = re.compile(f"[{CONTROLS}{INVISIBLE}]")


def printable(text: str, *, joiners: bool = False) -> str:
    r"""The text with control and invisible characters spelled as Python does, such as \x1b.

    Tabs and newlines stay. `joiners`: keep those that joined-up writing and emoji need.
    """
    return (_MISLEADING_IN_TEXT if joiners else _MISLEADING).sub(_spelled, text)


def printable_line(text: str) -> str:
    """The text as `printable` in one line, for a name, which could imitate a line of output."""
    return re.sub(r"[\t\n]", _spelled, printable(text))


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class PrintableStream:
    """A stream that spells what is `printable` only so.

    It calls itself no terminal, so that libraries do not colour what they print.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.written_at = time.monotonic()
        """When something was written last."""
        self._line_can_be_redrawn = True

    def write(self, text: str) -> int:
        """Write the text, printable; a progress bar may return to the start of its own line."""
        self.written_at = time.monotonic()
        head = ""
        if self._line_can_be_redrawn and text.startswith("\r"):
            head = "\r"
        elif text:
            self._line_can_be_redrawn = text.endswith("\n")
        self.raw.write(head + printable(text.removeprefix(head)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Always false."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw_stream(stream: Any) -> Any:
    """What a stream writes to, if it is a PrintableStream; otherwise the stream itself."""
    return stream.raw if isinstance(stream, PrintableStream) else stream


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Everything that is printed in the block, and a traceback that ends it, is `printable`."""
    stdout = sys.stdout
    stderr = sys.stderr
    sys.stdout = PrintableStream(raw_stream(stdout))
    sys.stderr = PrintableStream(raw_stream(stderr))
    sys.excepthook = _print_traceback
    wrapped = (sys.stdout, sys.stderr)
    try:
        yield
    finally:
        # Output that another one has replaced meanwhile stays as it is.
        if sys.stdout is wrapped[0]:
            sys.stdout = stdout
        if sys.stderr is wrapped[1]:
            sys.stderr = stderr


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """In place of Python's own `sys.excepthook`."""
    lines = traceback.format_exception(kind, error, trace)
    raw_stream(sys.stderr).write(printable("".join(lines)))


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """In the block, a warning that was logged before is not logged again.

    A command opens a checkpoint several times: for its window, its dtype and its numbers.
    """
    logged: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_known = text in logged
        logged.add(text)
        return not is_known

    logger = logging.getLogger("ctxext")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


@contextlib.contextmanager
def raw_errors() -> Iterator[None]:
    """Leave standard error to a library that draws on the terminal, and prints no strange text."""
    before = sys.stderr
    sys.stderr = raw_stream(before)
    try:
        yield
    finally:
        sys.stderr = before


def write_model_text(text: str) -> None:
    """Write to standard output what a model has generated.

    A terminal gets it printable; a pipe or a file gets the text as it is.
    """
    stream = raw_stream(sys.stdout)
    stream.write(printable(text, joiners=True) if stream.isatty() else text)
    stream.flush()

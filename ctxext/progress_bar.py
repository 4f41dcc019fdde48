"""A progress bar on the terminal."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ctxext.terminal import PrintableStream, raw_stream

SPEED_PERIOD = 600.0
"""Seconds of the past that the time left is estimated from: more than a slow step takes."""


class TerminalBar(Progress):
    """A bar on standard error, if that is a terminal; what is printed meanwhile appears above it.

    `details`: a format of the fields of a task, which follows its count. `counts`: show how many of
    how many are done, and the time left at that pace; otherwise `details` say so. `transient`: it
    disappears when it is done. The name of a task is to be `printable`.
    """

    def __init__(
        self, *, enabled: bool, details: str = "", counts: bool = True, transient: bool = False
    ) -> None:
        console = Console(file=raw_stream(sys.stderr))
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *([MofNCompleteColumn()] if counts else []),
            *([TextColumn(details)] if details else []),
            *([TimeRemainingColumn()] if counts else []),
            console=console,
            speed_estimate_period=SPEED_PERIOD,
            transient=transient,
            disable=not (enabled and console.is_terminal),
        )

    def start(self) -> None:
        """Show the bar."""
        super().start()
        if not self.disable:
            # rich has put its own streams in place of the printable ones, until the bar stops.
            sys.stdout = PrintableStream(sys.stdout)
            sys.stderr = PrintableStream(sys.stderr)

"""A line now and then: how much is done, how fast, how long it will take."""

import sys
import time
from collections.abc import Sequence

from ctxext.prepare.chunks import Unit

SECONDS = 5.0
"""Between two lines."""


class Progress:
    """Bytes done of `units`, of which `todo` are not done yet."""

    def __init__(self, units: Sequence[Unit], todo: Sequence[Unit], *, enabled: bool) -> None:
        self._total = sum(unit.size for unit in units)
        self._before = self._done = self._total - sum(unit.size for unit in todo)
        self._tokens, self._enabled = 0, enabled
        self._clock = self._said = time.perf_counter()
        if enabled and self._before:
            self._say(f"goes on: {len(units) - len(todo)} of {len(units)} units are done")

    def update(self, unit: Unit, tokens: int) -> None:
        """A unit is written."""
        self._done += unit.size
        self._tokens += tokens
        now = time.perf_counter()
        if self._enabled and (now - self._said > SECONDS or self._done == self._total):
            self._said, passed = now, now - self._clock
            left = passed * (self._total - self._done) / max(self._done - self._before, 1)
            self._say(
                f"{self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB  {self._tokens:,} tokens  "
                f"{self._tokens / passed:,.0f} tokens/s  {left:.0f} s left"
            )

    def _say(self, text: str) -> None:
        print(f"prepare: {text}", file=sys.stderr, flush=True)

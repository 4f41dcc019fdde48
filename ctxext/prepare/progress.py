"""Progress lines: how much is done, how fast, how long it will take."""

import sys
import time
from collections.abc import Sequence

from ctxext.prepare.chunks import Chunk

INTERVAL = 5.0
"""Seconds between two lines."""


class Progress:
    """Counts the bytes of `chunks` that are done; `missing` are not done yet."""

    def __init__(self, chunks: Sequence[Chunk], missing: Sequence[Chunk], *, enabled: bool) -> None:
        self._total = sum(chunk.size for chunk in chunks)
        self._before = self._total - sum(chunk.size for chunk in missing)
        self._done = self._before
        self._tokens = 0
        self._enabled = enabled
        self._started = time.perf_counter()
        self._last_line = self._started
        if enabled and self._before:
            done = len(chunks) - len(missing)
            _print(f"resumed: {done} of {len(chunks)} chunks are done")

    def update(self, chunk: Chunk, num_tokens: int) -> None:
        """Count a chunk whose shard was written."""
        self._done += chunk.size
        self._tokens += num_tokens
        now = time.perf_counter()
        is_due = now - self._last_line > INTERVAL or self._done == self._total
        if not self._enabled or not is_due:
            return
        self._last_line = now
        elapsed = now - self._started
        left = elapsed * (self._total - self._done) / max(self._done - self._before, 1)
        _print(
            f"{self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB  {self._tokens:,} tokens  "
            f"{self._tokens / elapsed:,.0f} tokens/s  {left:.0f} s left"
        )


def _print(text: str) -> None:
    print(f"prepare: {text}", file=sys.stderr, flush=True)

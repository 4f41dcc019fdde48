"""Many processes that encode units, each with a tokenizer of its own; they end when what started them has ended."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

from ctxext.prepare.chunks import Unit
from ctxext.prepare.encode import Recipe, encode
from ctxext.tokenization.tokenizer import Tokenizer

_tokenizer: Tokenizer | None = None  # of this worker


def encode_all(
    todo: dict[Path, Unit], recipe: Recipe, tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Unit, int]]:
    """Write every part that is to be done; yields its unit and number of tokens as it is, in any order.

    Raises ValueError if a file cannot be read or a worker dies; what is written stays.
    """
    if workers == 1 or len(todo) < 2:
        for part, unit in todo.items():
            yield unit, encode(unit, recipe, tokenizer, part)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(todo)), spawn, _begin, (tokenizer.files,))
    try:
        futures = {pool.submit(_work, unit, recipe, part): unit for part, unit in todo.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker was killed, for lack of memory most likely: run the same command again, with fewer "
            "--workers; what is done stays done"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(files: dict[str, bytes]) -> None:
    global _tokenizer
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the first process, which lets us finish
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer = Tokenizer(files)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(unit: Unit, recipe: Recipe, part: Path) -> int:
    assert _tokenizer is not None
    return encode(unit, recipe, _tokenizer, part)

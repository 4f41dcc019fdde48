"""Processes that encode chunks, each with its own tokenizer; they end with their parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

from ctxext.child_python import safe_path
from ctxext.prepare.chunks import Chunk
from ctxext.prepare.encode import Recipe, encode
from ctxext.tokenization.tokenizer import Tokenizer

_tokenizer: Tokenizer | None = None
"""In a worker: its own."""


def encode_all(
    missing: dict[Path, Chunk], recipe: Recipe, tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Chunk, int]]:
    """Write every missing shard; yield its chunk and number of tokens when done, in any order.

    Raises ValueError if a file cannot be read or a worker dies; finished shards stay.
    """
    if workers == 1 or len(missing) < 2:
        for shard, chunk in missing.items():
            yield chunk, encode(chunk, recipe, tokenizer, shard)
        return
    spawn = multiprocessing.get_context("spawn")
    with safe_path():  # the pool starts a process that watches semaphores
        pool = ProcessPoolExecutor(min(workers, len(missing)), spawn, _start, (tokenizer.files,))
    try:
        with safe_path():  # the first tasks start the workers
            futures = {
                pool.submit(_encode, chunk, recipe, shard): chunk
                for shard, chunk in missing.items()
            }
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker was killed, most likely for lack of memory: run the same command again with "
            "fewer --workers; finished work is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(files: dict[str, bytes]) -> None:
    global _tokenizer
    # Ctrl-C is for the parent, which lets the workers finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer = Tokenizer(files)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _encode(chunk: Chunk, recipe: Recipe, shard: Path) -> int:
    assert _tokenizer is not None
    return encode(chunk, recipe, _tokenizer, shard)

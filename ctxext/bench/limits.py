"""What the hardware allows: how fast memory is read, and how much of an accelerator's peak a step takes."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ctxext.attention import Causal
from ctxext.bench.cases import Work
from ctxext.plan.accelerators import of_kind
from ctxext.plan.flops import layer_matrices, visible_pairs


def read_bandwidth(size: int = 2**28, rounds: int = 7) -> float:
    """Bytes/s at which all cores together read memory that no cache holds; the best of some rounds."""
    numbers, workers = np.ones(size // 4, np.float32), os.cpu_count() or 1
    parts = np.array_split(numbers, workers)

    def seconds(pool: ThreadPoolExecutor) -> float:
        started = time.perf_counter()
        list(pool.map(np.max, parts))
        return time.perf_counter() - started

    with ThreadPoolExecutor(workers) as pool:
        return size / min(seconds(pool) for _ in range(rounds))


def decode_bytes(work: Work) -> float:
    """Bytes that have to be read for one new token of every row: all matrices once, and the keys and values so far."""
    shape, width = work.shape, 4 if work.dtype == "float32" else 2
    matrices = (
        shape.num_hidden_layers * layer_matrices(shape) + shape.vocab_size * shape.hidden_size
    )
    slots = work.seq_len + (work.new_tokens + 1) / 2
    numbers = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return width * (matrices + work.batch * slots * numbers)


def roofline(work: Work, seconds: float, bandwidth: float) -> float:
    """The share of `bandwidth`, bytes/s, at which a decode of so many seconds reads what it has to."""
    return (work.new_tokens - 1) * decode_bytes(work) / seconds / bandwidth


def model_flops(work: Work) -> float:
    """Operations of a training step's forward and backward pass, which MFU counts (arXiv 2204.02311)."""
    shape = work.shape
    matrices = (
        shape.num_hidden_layers * layer_matrices(shape) + shape.vocab_size * shape.hidden_size
    )
    attention = (
        4 * shape.num_attention_heads * shape.head_dim * visible_pairs(Causal(), work.seq_len)
    )
    return 3 * work.batch * (2 * matrices * work.seq_len + shape.num_hidden_layers * attention)


def mfu(work: Work, seconds: float, device_kind: str) -> float | None:
    """Model FLOPs utilisation of a step; None where no peak in bfloat16 is known, or the step has another dtype."""
    device = of_kind(device_kind)
    if device is None or device.flops is None or work.dtype != "bfloat16":
        return None
    return model_flops(work) / seconds / device.flops

"""Limits of the hardware: memory bandwidth, and the peak of an accelerator."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ctxext.attention import Causal
from ctxext.bench.cases import BenchmarkCase
from ctxext.model.config import LlamaConfig
from ctxext.plan.accelerators import of_kind
from ctxext.plan.flops import layer_matrices, visible_pairs


def read_bandwidth(size: int = 2**28, rounds: int = 7) -> float:
    """The bytes per second at which all cores together read memory that no cache holds.

    `size` in bytes; the best of `rounds` counts.
    """
    numbers = np.ones(size // 4, np.float32)
    workers = os.cpu_count() or 1
    parts = np.array_split(numbers, workers)

    def seconds(pool: ThreadPoolExecutor) -> float:
        started = time.perf_counter()
        list(pool.map(np.max, parts))
        return time.perf_counter() - started

    with ThreadPoolExecutor(workers) as pool:
        return size / min(seconds(pool) for _ in range(rounds))


def decode_bytes(case: BenchmarkCase) -> float:
    """Bytes to read for one new token per row: all matrices once, and the cache so far."""
    shape = case.shape
    width = 4 if case.dtype == "float32" else 2
    cached_tokens = case.seq_len + (case.new_tokens + 1) / 2
    numbers = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return width * (_matrices(shape) + case.batch * cached_tokens * numbers)


def roofline(case: BenchmarkCase, seconds: float, bandwidth: float) -> float:
    """The share of `bandwidth` (bytes/s) that a decode of `seconds` reaches."""
    return (case.new_tokens - 1) * decode_bytes(case) / seconds / bandwidth


def model_flops(case: BenchmarkCase) -> float:
    """Operations of a training step, forward and backward, as MFU counts (arXiv 2204.02311)."""
    shape = case.shape
    pairs = visible_pairs(Causal(), case.seq_len)
    attention = shape.num_hidden_layers * 4 * shape.num_attention_heads * shape.head_dim * pairs
    return 3 * case.batch * (2 * _matrices(shape) * case.seq_len + attention)


def operations(case: BenchmarkCase) -> float:
    """Operations in matrix products that the result of a case needs; 0 for a decode.

    The limit of a decode is memory, see `roofline`. Attention counts five products in the backward
    pass to two in the forward pass, as the scores are recomputed (arXiv 2205.14135).
    """
    shape = case.shape
    T, D, V = case.seq_len, shape.hidden_size, shape.vocab_size
    of_layer = 4 * shape.num_attention_heads * shape.head_dim * visible_pairs(Causal(), T)
    layers = shape.num_hidden_layers * (2 * T * layer_matrices(shape) + of_layer)
    by_part = {
        "product": 2 * T**3,
        "step": model_flops(case),
        "prefill": case.batch * (layers + 2 * D * V),  # logits of the last token only
        "decode": 0,
        "attention": 3.5 * case.batch * of_layer,
        "loss": 6 * case.batch * T * D * V,
    }
    return by_part[case.part]


def _matrices(shape: LlamaConfig) -> int:
    """Parameters in matrix products: the output, but not the embedding, which is looked up."""
    layers = shape.num_hidden_layers * layer_matrices(shape)
    return layers + shape.vocab_size * shape.hidden_size


def mfu(case: BenchmarkCase, seconds: float, device_kind: str) -> float | None:
    """Model FLOPs utilisation of a training step.

    None where no peak in bfloat16 is known, or the step has another dtype.
    """
    device = of_kind(device_kind)
    if device is None or device.flops is None or case.dtype != "bfloat16":
        return None
    return model_flops(case) / seconds / device.flops

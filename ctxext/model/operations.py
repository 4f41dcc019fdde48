"""Floating-point operations of reading and of writing, 2 per multiply-add."""

import functools

from ctxext.attention import Attention
from ctxext.attention.visible import visible_pairs
from ctxext.model.config import LlamaConfig

LEAST_ROWS = 64
"""A step of decoding takes as long as reading this many tokens at least: it reads all weights."""


def layer_matrices(config: LlamaConfig) -> int:
    """Entries of the matrices of one layer."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    matrices_of_mlp = 3 if config.parts.gated else 2
    heads = config.num_attention_heads + config.num_key_value_heads
    return D * 2 * heads * H + matrices_of_mlp * D * F


_pairs = functools.lru_cache(maxsize=4096)(visible_pairs)


def layer_operations(
    config: LlamaConfig, attention: Attention, layer: int, first: int, stop: int
) -> int:
    """Operations of a layer for the tokens `first` to `stop` of one text."""
    pairs = _pairs(attention, stop, config.layer_kinds[layer].window, first=first)
    of_pairs = 4 * config.num_attention_heads * config.head_dim * pairs
    return 2 * layer_matrices(config) * (stop - first) + of_pairs


def projection_operations(config: LlamaConfig, num_tokens: int) -> int:
    """Operations of the logits of so many tokens."""
    return 2 * config.vocab_size * config.hidden_size * num_tokens


def step_operations(config: LlamaConfig, rows: int, slots: int) -> int:
    """Operations of one step of decoding, which writes a token of each of `rows` continuations.

    slots: of the cache of one text. Few rows count as more, as a step reads all weights.
    """
    matrices = config.num_hidden_layers * 2 * layer_matrices(config)
    matrices += projection_operations(config, 1)
    per_slot = config.num_hidden_layers * 4 * config.num_attention_heads * config.head_dim
    return matrices * max(rows, LEAST_ROWS) + per_slot * rows * slots

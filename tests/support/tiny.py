"""A model small enough for every test: 2 layers, 64 wide, 4 query and 2 key heads.

Its logits are of the order of one.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.attention import Causal
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, param_shapes
from ctxext.model.loss import batch_loss

VOCAB = 97
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=32,
)


def config(**changes: Any) -> LlamaConfig:
    """CONFIG with some fields changed."""
    return dataclasses.replace(CONFIG, **changes)


@functools.cache
def params(config: LlamaConfig = CONFIG, seed: int = 0) -> Params:
    """Parameters that give sharp attention and logits of about one; norms and biases are random."""
    rng = np.random.default_rng(seed)

    def randomise(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        noise = rng.normal(size=x.shape).astype(np.float32)
        if name == "weight":
            return 1 + 0.3 * noise
        if name == "embedding":
            return 0.2 * noise if config.tie_word_embeddings else noise
        if name == "bias":
            return 0.3 * noise
        return 1.5 * x.shape[-2] ** -0.5 * noise

    with jax.ensure_compile_time_eval():
        arrays = jax.tree_util.tree_map_with_path(randomise, param_shapes(config))
        return jax.tree.map(jax.numpy.asarray, arrays)


def lm(config: LlamaConfig = CONFIG, seed: int = 0, **options: Any) -> Any:
    """An LM without a tokenizer."""
    from ctxext.model.lm import LM

    return LM(config, params(config, seed), None, **options)


def loss(params: Params, arrays: Any, rotation: Any, **changes: Any) -> jax.Array:
    """The summed loss of a batch, as training computes it; `changes` replace its settings."""
    settings: dict[str, Any] = {
        "config": CONFIG,
        "attention": Causal(),
        "kernel": "blocked",
        "dtype": "float32",
        "remat": "none",
    }
    return batch_loss(params, arrays, rotation, **settings | changes)[0]


def tokens(rows: int, length: int, seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    """Random token ids, int32 [rows, length]."""
    return np.random.default_rng(seed).integers(0, vocab, (rows, length)).astype(np.int32)


def next_token_batch(tokens: np.ndarray) -> dict[str, jax.Array]:
    """A batch of whole documents in which every token but the last predicts the next."""
    B, T = tokens.shape
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "weights": np.broadcast_to(np.arange(T) < T - 1, (B, T)).astype(np.float32),
        "positions": np.broadcast_to(np.arange(T), (B, T)).astype(np.int32),
        "segment_ids": np.ones((B, T), np.int32),
    }
    return {name: jnp.asarray(x) for name, x in batch.items()}

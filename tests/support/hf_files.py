"""Hugging Face directories of parameter trees, written and read in one call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.interop import hf
from ctxext.interop.hf_weights import (
    StoredModel,
    WriteOptions,
    assemble,
    lazy_tensors,
    read_whole,
    slots,
)
from ctxext.interop.lazy_tensor import Index
from ctxext.interop.stored_weights import find_weights
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, param_shapes
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import Tokenizer


def stored_model(
    config: LlamaConfig,
    params: Params,
    scaling: RopeScaling,
    tokenizer: Tokenizer,
    *,
    seq_len: int | None = None,
) -> StoredModel:
    """A tree of parameters, ready to be written."""
    window = seq_len or config.max_position_embeddings
    return StoredModel(config, scaling, window, lazy_tensors(config, params), tokenizer)


def write_hf(
    directory: str | Path,
    config: LlamaConfig,
    params: Params,
    scaling: RopeScaling,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    seq_len: int | None = None,
    max_shard_size: int = 5 * 10**9,
    card: dict[str, Any] | None = None,
) -> None:
    """`hf.write` for a tree of parameters."""
    model = stored_model(config, params, scaling, tokenizer, seq_len=seq_len)
    hf.write(directory, model, WriteOptions(dtype, card, max_shard_size))


def read_params(
    directory: str | Path,
    config: LlamaConfig,
    dtype: str = "float32",
    *,
    shapes: Params | None = None,
    make_leaf: Callable[[Any, Callable[[Index], np.ndarray]], Any] = read_whole,
) -> Params:
    """The parameter tree of a directory in `dtype`, or in the dtypes of `shapes`, leaf by leaf."""
    shapes = param_shapes(config, dtype) if shapes is None else shapes
    return assemble(shapes, slots(shapes), find_weights(directory, config), make_leaf)

"""The layout of Meta's checkpoints: tensor names, shards, and the row order of queries and keys.

Meta rotates neighbouring rows (2j, 2j + 1) of a head where Hugging Face rotates halves (j, j +
d/2).
"""

import functools
import re

import numpy as np

from ctxext.interop.lazy_tensor import Index, LazyTensor
from ctxext.model.config import LlamaConfig

# HF's name -> Meta's, and the dimension that is divided among shards: 0 or 1 of [out, in], or None
# for tensors that every shard has a copy of.
OUTER = {
    "model.embed_tokens": ("tok_embeddings", 1),
    "model.norm": ("norm", None),
    "lm_head": ("output", 0),
}
LAYER = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}


def meta_name(name: str) -> tuple[str, int | None]:
    """Meta's name of an HF tensor, and the dimension that is divided among shards."""
    stem = name.removesuffix(".weight")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if layer is None:
        new_name, dim = OUTER[stem]
        return f"{new_name}.weight", dim
    new_name, dim = LAYER[layer[2]]
    return f"layers.{layer[1]}.{new_name}.weight", dim


def shard_shape(shape: tuple[int, ...], dim: int | None, num_shards: int) -> tuple[int, ...]:
    """The shape of one shard of a tensor."""
    return tuple(size // num_shards if i == dim else size for i, size in enumerate(shape))


def rotary_heads(name: str, config: LlamaConfig) -> int | None:
    """The heads of a query or key projection, whose rows the formats order differently."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return counts.get(name.removesuffix(".weight").rpartition(".")[2])


def to_interleaved(array: np.ndarray, heads: int | None) -> np.ndarray:
    """From HF's order of rows [heads d, in] to Meta's: row c d/2 + j of a head becomes row 2j + c.

    `heads` None: a tensor that is not rotated, returned as it is.
    """
    return array if heads is None else _swap_pairs(array, heads, (2, -1))


def to_halves(array: np.ndarray, heads: int | None) -> np.ndarray:
    """From Meta's order of rows [heads d, in] to HF's: row 2j + c of a head becomes row c d/2 + j.

    `heads` None: a tensor that is not rotated, returned as it is.
    """
    return array if heads is None else _swap_pairs(array, heads, (-1, 2))


def _swap_pairs(array: np.ndarray, heads: int, pairs: tuple[int, int]) -> np.ndarray:
    return array.reshape(heads, *pairs, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def join_shards(
    name: str, shards: list[LazyTensor], dim: int | None, heads: int | None
) -> LazyTensor:
    """The tensor that `shards` hold together, in HF's layout.

    Reading it raises ValueError if the shards should hold equal copies and do not.
    """
    shape = tuple(
        size * len(shards) if i == dim else size for i, size in enumerate(shards[0].shape)
    )
    in_order = heads is None and (dim == 0 or len(shards) == 1)
    chunks = ()
    if in_order and all(shard.chunks for shard in shards):
        chunks = tuple(chunk for shard in shards for chunk in shard.chunks)
    read = functools.partial(_read, name, shards, shape, dim, heads)
    return LazyTensor(shape, shards[0].dtype, read, chunks, shards[0].file)


def _read(
    name: str,
    shards: list[LazyTensor],
    shape: tuple[int, ...],
    dim: int | None,
    heads: int | None,
    index: Index | None = None,
) -> np.ndarray:
    slices = [slice(None)] * len(shape) if index is None else index
    spans = [part.indices(size)[:2] for part, size in zip(slices, shape, strict=True)]
    if heads is None:
        return _join(name, shards, dim, spans)
    # Whole heads are read, as their rows have to be reordered.
    head_dim = shape[0] // heads
    start, stop = spans[0]
    first_head = start // head_dim
    end_head = -(-stop // head_dim)
    spans[0] = (first_head * head_dim, end_head * head_dim)
    rows = to_halves(_join(name, shards, dim, spans), end_head - first_head)
    offset = first_head * head_dim
    return rows[start - offset : stop - offset]


def _join(
    name: str, shards: list[LazyTensor], dim: int | None, spans: list[tuple[int, int]]
) -> np.ndarray:
    index = [slice(*span) for span in spans]
    if dim is None:
        first, *copies = [shard.read(tuple(index)) for shard in shards]
        if any(not np.array_equal(first, copy) for copy in copies):
            raise ValueError(
                f"{shards[0].describe(name)} differs from that of another shard, which should hold "
                "a copy of it; the shards are of different models"
            )
        return first
    size = shards[0].shape[dim]
    start, stop = spans[dim]
    parts = []
    for i in range(start // size, -(-stop // size)):
        index[dim] = slice(max(start - i * size, 0), min(stop - i * size, size))
        parts.append(shards[i].read(tuple(index)))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, dim)

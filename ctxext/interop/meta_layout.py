"""Where Meta's checkpoints keep what: names, shards, and the rows of queries and keys.

Meta rotates neighbouring rows (2j, 2j + 1) of a head where Hugging Face rotates halves (j, j + d / 2).
"""

import functools
import re

import numpy as np

from ctxext.interop.tensor_blocks import Entry, Index
from ctxext.model.config import LlamaConfig

# HF's name -> Meta's, and the dimension that the shards divide: 0 columns, 1 rows of the product; None: copied to each.
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


def place(name: str) -> tuple[str, int | None]:
    """Meta's name of an HF tensor, and the dimension that the shards divide."""
    stem = name.removesuffix(".weight")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    new, dim = LAYER[layer[2]] if layer else OUTER[stem]
    return f"layers.{layer[1]}.{new}.weight" if layer else f"{new}.weight", dim


def part(shape: tuple[int, ...], dim: int | None, shards: int) -> tuple[int, ...]:
    """The shape of one shard's part."""
    return tuple(n // shards if i == dim else n for i, n in enumerate(shape))


def rotary_heads(name: str, config: LlamaConfig) -> int | None:
    """The number of heads whose rows the two formats order differently: those of queries and of keys."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return counts.get(name.removesuffix(".weight").rpartition(".")[2])


def neighbours(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """From HF's order of rows [heads d, in] to Meta's: row c d/2 + j of a head becomes row 2j + c."""
    return rows if heads is None else _swapped(rows, heads, (2, -1))


def halves(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """From Meta's order of rows [heads d, in] to HF's: row 2j + c of a head becomes row c d/2 + j."""
    return rows if heads is None else _swapped(rows, heads, (-1, 2))


def _swapped(rows: np.ndarray, heads: int, pairs: tuple[int, int]) -> np.ndarray:
    return rows.reshape(heads, *pairs, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def joined(name: str, parts: list[Entry], dim: int | None, heads: int | None) -> Entry:
    """The tensor that the shards' `parts` make, in HF's layout. Reading raises ValueError if copies differ."""
    shape = tuple(n * len(parts) if i == dim else n for i, n in enumerate(parts[0].shape))
    in_order = (
        heads is None and (dim == 0 or len(parts) == 1) and all(part.pieces for part in parts)
    )
    pieces = tuple(piece for part in parts for piece in part.pieces) if in_order else ()
    return Entry(
        shape, parts[0].dtype, functools.partial(_read, name, parts, shape, dim, heads), pieces
    )


def _read(
    name: str,
    parts: list[Entry],
    shape: tuple[int, ...],
    dim: int | None,
    heads: int | None,
    index: Index | None = None,
) -> np.ndarray:
    spans = [slice(None)] * len(shape) if index is None else index
    (start, stop), *rest = [span.indices(size)[:2] for span, size in zip(spans, shape, strict=True)]
    if heads is None:
        return _join(name, parts, dim, [(start, stop), *rest])
    d = shape[0] // heads  # whole heads, as their rows are mixed
    low, high = start // d * d, -(-stop // d) * d
    return halves(_join(name, parts, dim, [(low, high), *rest]), (high - low) // d)[
        start - low : stop - low
    ]


def _join(
    name: str, parts: list[Entry], dim: int | None, spans: list[tuple[int, int]]
) -> np.ndarray:
    index = [slice(*span) for span in spans]
    if dim is None:
        first, *others = [entry.read(tuple(index)) for entry in parts]
        if any(not np.array_equal(first, other) for other in others):
            raise ValueError(
                f"{name} differs between shards, which hold copies of it; they are of different models"
            )
        return first
    size, (start, stop) = parts[0].shape[dim], spans[dim]
    pieces = []
    for i in range(start // size, -(-stop // size)):
        index[dim] = slice(max(start - i * size, 0), min(stop - i * size, size))
        pieces.append(parts[i].read(tuple(index)))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, dim)

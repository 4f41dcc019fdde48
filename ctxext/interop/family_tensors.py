"""The tensors of a family's files by Llama's names, and back.

Only names change, but for queries, keys and values that a file holds as one matrix: reading takes
rows out of it, and writing puts them together.
"""

import re
from collections.abc import Mapping

import numpy as np

from ctxext.interop.families import family_of
from ctxext.interop.families.llama import LLAMA
from ctxext.interop.lazy_tensor import Index, LazyTensor
from ctxext.model.config import LlamaConfig

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTER = {
    LLAMA.embedding: "embedding",
    LLAMA.norm: "norm",
    LLAMA.norm.replace("weight", "bias"): "norm",
    LLAMA.lm_head: "lm_head",
}
"""Llama's name outside the layers -> the field of `Family` with the family's."""


def stored_name(name: str, config: LlamaConfig) -> str:
    """The name in a file of the tensor that Llama's files call `name`.

    Of a fused matrix, that of the whole.
    """
    family = family_of(config)
    module, _, leaf = name.rpartition(".")
    if name in OUTER:
        return f"{getattr(family, OUTER[name]).rpartition('.')[0]}.{leaf}"
    layer = re.fullmatch(rf"{re.escape(LLAMA.layers)}\.(\d+)\.(.+)", module)
    assert layer is not None, name
    if family.fused is not None and layer[2] in PROJECTIONS:
        own_module = family.fused.name
    else:
        own_module = family.modules(config).get(layer[2], layer[2])
    return f"{family.layers}.{layer[1]}.{own_module}.{leaf}"


def to_stored(tensors: Mapping[str, LazyTensor], config: LlamaConfig) -> dict[str, LazyTensor]:
    """Tensors by Llama's names -> tensors by the names of the family, in the same order."""
    groups: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(stored_name(name, config), {})[_module(name)] = tensor
    rows = _rows(config)
    stored = {}
    for name, group in groups.items():
        if len(group) == 1:
            (stored[name],) = group.values()
        else:
            stored[name] = _fused([group[module] for module in PROJECTIONS], rows)
    return stored


def from_stored(
    stored: Mapping[str, LazyTensor], names: list[str], config: LlamaConfig
) -> dict[str, LazyTensor]:
    """The tensors that Llama's files call `names`, of the tensors of a file of the family."""
    fused = family_of(config).fused
    rows: dict[str, np.ndarray] = dict(zip(PROJECTIONS, _rows(config), strict=True))
    tensors = {}
    for name in names:
        tensor = stored[stored_name(name, config)]
        if fused is not None and _module(name) in PROJECTIONS:
            tensor = _part(tensor, rows[_module(name)])
        tensors[name] = tensor
    return tensors


def _module(name: str) -> str:
    """The module that a tensor of a layer belongs to, within the layer."""
    return name.removeprefix(f"{LLAMA.layers}.").partition(".")[2].rpartition(".")[0]


def _rows(config: LlamaConfig) -> list[np.ndarray]:
    """The rows of queries, keys and values in the fused matrix of the family."""
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    rows = np.arange((N + 2 * K) * H)
    fused = family_of(config).fused
    if fused is None or not fused.grouped:
        return np.split(rows, [N * H, (N + K) * H])
    groups = rows.reshape(K, N // K + 2, H)
    return [groups[:, :-2].reshape(-1), groups[:, -2].reshape(-1), groups[:, -1].reshape(-1)]


def _part(whole: LazyTensor, rows: np.ndarray) -> LazyTensor:
    """These rows of a tensor; of it, only what lies between the first and the last one is read."""

    def read(index: Index | None = None) -> np.ndarray:
        of_rows, *others = index or (slice(None),)
        wanted = rows[of_rows]
        first = wanted[0]
        span = whole.read((slice(first, wanted[-1] + 1), *others))
        return span[wanted - first]

    return LazyTensor((len(rows), *whole.shape[1:]), whole.dtype, read)


def _fused(parts: list[LazyTensor], rows: list[np.ndarray]) -> LazyTensor:
    """One tensor with the rows of several."""
    shape = (sum(len(part) for part in rows), *parts[0].shape[1:])
    dtypes = {part.dtype for part in parts}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"

    def read(index: Index | None = None) -> np.ndarray:
        values = [part.read() for part in parts]
        whole = np.empty(shape, values[0].dtype)
        for value, where in zip(values, rows, strict=True):
            whole[where] = value
        return whole if index is None else whole[index]

    return LazyTensor(shape, dtype, read)

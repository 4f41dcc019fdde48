"""The tensors of a family's files by Llama's names, and back.

Only names change, but for queries, keys and values that a file holds as one matrix: reading takes
rows out of it, and writing puts them together.
"""

import re
from collections.abc import Callable, Mapping

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


def rows_in_stored(name: str, config: LlamaConfig) -> np.ndarray | None:
    """The rows of `stored_name` that are the tensor that Llama's files call `name`; None: all."""
    module = _module(name)
    if family_of(config).fused is None or module not in PROJECTIONS:
        return None
    return _own_rows(config)[PROJECTIONS.index(module)]


def to_stored(tensors: Mapping[str, LazyTensor], config: LlamaConfig) -> dict[str, LazyTensor]:
    """Tensors by Llama's names -> tensors by the names of the family, in the same order."""
    return fuse(tensors, lambda name: stored_name(name, config), _own_rows(config))


def from_stored(
    stored: Mapping[str, LazyTensor], names: list[str], config: LlamaConfig
) -> dict[str, LazyTensor]:
    """The tensors that Llama's files call `names`, of the tensors of a file of the family."""
    return split(stored, names, lambda name: stored_name(name, config), _own_rows(config))


def fuse(
    tensors: Mapping[str, LazyTensor], rename: Callable[[str], str], rows: list[np.ndarray]
) -> dict[str, LazyTensor]:
    """The tensors by the names that `rename` gives them, in the same order.

    Queries, keys and values that get one name become one matrix, in which they have the `rows`.
    """
    groups: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(rename(name), {})[_module(name)] = tensor
    stored = {}
    for name, group in groups.items():
        if len(group) == 1:
            (stored[name],) = group.values()
        else:
            stored[name] = _fused([group[module] for module in PROJECTIONS], rows)
    return stored


def split(
    stored: Mapping[str, LazyTensor],
    names: list[str],
    rename: Callable[[str], str],
    rows: list[np.ndarray],
) -> dict[str, LazyTensor]:
    """The tensors `names` of those that `fuse` would make of them."""
    of_module: dict[str, np.ndarray] = dict(zip(PROJECTIONS, rows, strict=True))
    tensors = {}
    for name in names:
        tensor = stored[rename(name)]
        if _is_fused(name, rename):
            tensor = _part(tensor, of_module[_module(name)])
        tensors[name] = tensor
    return tensors


def _is_fused(name: str, rename: Callable[[str], str]) -> bool:
    """Whether a tensor and its siblings, of queries, keys and values, get one name."""
    module = _module(name)
    if module not in PROJECTIONS:
        return False
    siblings = [name.replace(module, sibling) for sibling in PROJECTIONS]
    return len({rename(sibling) for sibling in siblings}) == 1


def _module(name: str) -> str:
    """The module that a tensor of a layer belongs to, within the layer."""
    return name.removeprefix(f"{LLAMA.layers}.").partition(".")[2].rpartition(".")[0]


def _own_rows(config: LlamaConfig) -> list[np.ndarray]:
    fused = family_of(config).fused
    return fused_rows(config, grouped=fused is not None and fused.grouped)


def fused_rows(config: LlamaConfig, *, grouped: bool) -> list[np.ndarray]:
    """The rows of queries, keys and values in a fused matrix; see `FusedProjection.grouped`."""
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    rows = np.arange((N + 2 * K) * H)
    if not grouped:
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

    return LazyTensor((len(rows), *whole.shape[1:]), whole.dtype, read, file=whole.file)


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

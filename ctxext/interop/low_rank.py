"""Low-rank changes of matrices, by Llama's names and by those of a family's files.

Where a family holds queries, keys and values as one matrix, an adapter of it is, for each of them,
the same A with some of the rows of B. Back, adapters of several become one: their A on top of each
other, and every B in its own rows and columns, with zeros elsewhere. Both are exact; the rank of
that one is the sum of theirs. Reading leaves the zeros out again, so that the sums of a product are
those of its own rank, bit by bit.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ctxext.interop import family_tensors
from ctxext.interop.family_tensors import rows_in_stored, stored_name
from ctxext.interop.lazy_tensor import Index, LazyTensor
from ctxext.model.config import LlamaConfig


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """The product s B A that an adapter adds to a matrix W, [out, in] as it is stored.

    `a`: [R, in]. `b`: [out, R]. `magnitude`: with DoRA, the norm [out] that each row of the sum is
    scaled to. Of an embedding [vocabulary, D], `in` is the vocabulary and `out` D.
    """

    a: LazyTensor
    b: LazyTensor
    scale: float
    magnitude: LazyTensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]


def to_stored(products: Mapping[str, LowRank], config: LlamaConfig) -> dict[str, LowRank]:
    """Products of one scale, by Llama's names of their matrices -> by the names of the family.

    Without magnitudes.
    """
    groups: dict[str, dict[str, LowRank]] = {}
    for name, product in products.items():
        groups.setdefault(stored_name(name, config), {})[name] = product
    return {name: _as_one(group, config) for name, group in groups.items()}


def from_stored(
    products: Mapping[str, LowRank], names: Sequence[str], config: LlamaConfig
) -> dict[str, LowRank]:
    """The products that change the tensors that Llama's files call `names`.

    Of a fused matrix, A and B are read here, to leave out the ranks that do not change a part.
    """
    b = {name: product.b for name, product in products.items()}
    magnitudes = {
        name: product.magnitude
        for name, product in products.items()
        if product.magnitude is not None
    }
    changed = [name for name in names if stored_name(name, config) in products]
    scaled = [name for name in changed if stored_name(name, config) in magnitudes]
    b_of = family_tensors.from_stored(b, changed, config)
    magnitude_of = family_tensors.from_stored(magnitudes, scaled, config)
    of_llama = {}
    for name in changed:
        product = products[stored_name(name, config)]
        part = dataclasses.replace(product, b=b_of[name], magnitude=magnitude_of.get(name))
        of_llama[name] = part if rows_in_stored(name, config) is None else _own_ranks(part)
    return of_llama


def _own_ranks(product: LowRank) -> LowRank:
    """The product from its first to its last rank with a B that is not zero; its scale is kept.

    A rank whose A is not finite is left in, and refused with its name where the product is merged.
    """
    a = product.a.read()
    b = product.b.read()
    used = np.flatnonzero((b != 0).any(axis=0) | ~np.isfinite(a).all(axis=1))
    ranks = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
    return dataclasses.replace(
        product,
        a=_sliced(product.a, (ranks, slice(None))),
        b=_sliced(product.b, (slice(None), ranks)),
    )


def _sliced(tensor: LazyTensor, own: tuple[slice, slice]) -> LazyTensor:
    """A slice of a matrix."""
    sizes = [len(range(*part.indices(size))) for part, size in zip(own, tensor.shape, strict=True)]

    def read(index: Index | None = None) -> np.ndarray:
        values = tensor.read(own)
        return values if index is None else values[index]

    return LazyTensor(tuple(sizes), tensor.dtype, read, file=tensor.file)


def _as_one(group: Mapping[str, LowRank], config: LlamaConfig) -> LowRank:
    """The products of one stored matrix, each of some of its rows, as one product."""
    products = list(group.values())
    rows = [rows_in_stored(name, config) for name in group]
    if rows[0] is None:
        (product,) = products
        return product
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    outputs = heads * config.head_dim
    ends = np.cumsum([product.rank for product in products])
    rank = int(ends[-1])

    def read_a(index: Index | None = None) -> np.ndarray:
        whole = np.concatenate([product.a.read() for product in products])
        return whole if index is None else whole[index]

    def read_b(index: Index | None = None) -> np.ndarray:
        whole = np.zeros((outputs, rank), np.float32)
        for product, its_rows, end in zip(products, rows, ends, strict=True):
            whole[its_rows, end - product.rank : end] = product.b.read()
        return whole if index is None else whole[index]

    return LowRank(
        LazyTensor((rank, products[0].a.shape[1]), "float32", read_a),
        LazyTensor((outputs, rank), "float32", read_b),
        products[0].scale,
    )

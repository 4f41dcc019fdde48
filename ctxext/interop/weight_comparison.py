"""Two sets of weights compared: whether they hold the same numbers, and how they differ."""

from pathlib import Path

from ctxext.interop.lazy_tensor import LazyTensor, blocks, cast, numpy_dtype


def describe_difference(
    one: dict[str, LazyTensor], other: dict[str, LazyTensor], names: tuple[str, str]
) -> str:
    """How two sets differ, as the part of a sentence; empty if they hold the same numbers.

    `names`: of their files. Shapes are compared first, then the numbers, block by block up to the
    first difference. Sets that are equal once one is rounded differ in dtype alone. Raises
    ValueError for numbers that are not finite.
    """
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            owner = names[0] if name in one else names[1]
            return f"first at {name}, which only {owner} has"
        shapes = (list(one[name].shape), list(other[name].shape))
        if shapes[0] != shapes[1]:
            return f"first at {name}, {shapes[0]} in {names[0]} and {shapes[1]} in {names[1]}"
    first = next((name for name in one if not same_numbers(name, one[name], other[name])), None)
    if first is None:
        return ""
    dtypes = (one[first].dtype, other[first].dtype)
    if dtypes[0] == dtypes[1]:
        return f"first at {first}"
    in_words = f"{dtypes[0]} in {names[0]}, {dtypes[1]} in {names[1]}"
    if all(_same_once_rounded(name, one[name], other[name]) for name in one):
        return f"the same numbers in two dtypes: {in_words}"
    return f"first at {first}, {in_words}, by more than rounding"


def same_numbers(name: str, one: LazyTensor, other: LazyTensor) -> bool:
    """True if two tensors of one shape hold the same numbers, whatever their dtypes.

    Block by block up to the first difference; what is at the same place of the same file is not
    read. Raises ValueError for numbers that are not finite.
    """
    # float32 holds the numbers of all three dtypes exactly.
    return _same(name, one, other, one.dtype if one.dtype == other.dtype else "float32")


def _same_once_rounded(name: str, one: LazyTensor, other: LazyTensor) -> bool:
    try:
        return _same(name, one, other, other.dtype if one.dtype == "float32" else one.dtype)
    except ValueError:  # too large for the narrower dtype
        return False


def _same(name: str, one: LazyTensor, other: LazyTensor, dtype: str) -> bool:
    """True if two tensors of one shape hold the same numbers in `dtype`."""
    if one.chunks and _places(one) == _places(other) and one.dtype == other.dtype:
        return True  # links to the same file
    numpy_type = numpy_dtype(dtype)
    if len(one.chunks) == len(other.chunks) == 1:
        pairs = zip(blocks(one, numpy_type, name), blocks(other, numpy_type, name), strict=True)
    else:
        whole = [cast(x.read(), numpy_type, x.describe(name)) for x in (one, other)]
        pairs = iter([(whole[0], whole[1])])
    return all(bool((a == b).all()) for a, b in pairs)


def _places(tensor: LazyTensor) -> list[tuple[Path, int, int]]:
    return [(chunk.path.resolve(), chunk.start, chunk.size) for chunk in tensor.chunks]

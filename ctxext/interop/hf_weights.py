"""The parameter tree and Hugging Face's tensor names.

Layers are stacked in the tree and separate tensors in a file; kernels are [in, out] in the tree and
[out, in] in a file.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ctxext.interop.families.llama import LLAMA
from ctxext.interop.lazy_tensor import Index, LazyTensor, cast
from ctxext.model.config import LlamaConfig
from ctxext.model.context import DeclaredContext
from ctxext.model.decoder import Params, param_shapes
from ctxext.model.quantized import is_quantized
from ctxext.parallel import distributed
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import Tokenizer

# The end of a tensor's name for each leaf that is not called "weight"; PEFT's names for adapters.
ENDINGS = {"bias": "bias", "lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
TRANSPOSED = ("kernel", "lora_a", "lora_b")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredModel:
    """A model as a format stores it, with tensors that are read one at a time.

    `window`: the extended window L', tokens. `tensors`: by HF's names, in HF's layout.
    `generation_config`: the contents of generation_config.json, None without such a file.
    `about`: what the files say for people, such as a license, by its name.
    """

    config: LlamaConfig
    scaling: RopeScaling
    window: int
    tensors: dict[str, LazyTensor]
    tokenizer: Tokenizer
    generation_config: Mapping[str, Any] | None = None
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def context(self) -> DeclaredContext:
        """The context that the checkpoint declares."""
        return DeclaredContext.of(self.config.max_position_embeddings, self.scaling, self.window)


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """How a model is written.

    `card` (facts for the README) and `max_shard_size` (bytes) are for HF, `shards` (a number of
    files, by default as many as Meta ships for that size) for Meta's format.
    """

    dtype: str
    card: dict[str, Any] | None = None
    max_shard_size: int = 5 * 10**9
    shards: int | None = None


class Slot(NamedTuple):
    """The place of a tensor in the tree: a leaf, or one layer of it.

    `path`: of the leaf. A file holds the tensor in HF's orientation, [out, in], if `transposed`.
    """

    path: tuple[str, ...]
    leaf: Any
    layer: int | None
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor in a file."""
        shape = tuple(self.leaf.shape if self.layer is None else self.leaf.shape[1:])
        return shape[::-1] if self.transposed else shape

    def get(self) -> np.ndarray:
        """The tensor as a file holds it, gathered from all devices."""
        value = distributed.gather(self.leaf if self.layer is None else self.leaf[self.layer])
        return value.T if self.transposed else value

    def read(self, tensor: LazyTensor, index: Index) -> np.ndarray:
        """The slice `index` of the leaf, or of its layer, read from the stored tensor."""
        return tensor.read(index[::-1]).T if self.transposed else tensor.read(index)


def leaves(
    tree: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, leaf) for every leaf of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def slots(params: Params) -> dict[str, Slot]:
    """HF tensor name -> Slot, for a tree of arrays or shapes, in the order of the forward pass.

    The names are Llama's for all families; see `family_tensors`.
    """

    def slot(*path: str, transposed: bool = False) -> Slot:
        leaf = functools.reduce(lambda tree, key: tree[key], path, params)
        return Slot(path, leaf, None, transposed)

    named = {LLAMA.embedding: slot("embed_tokens", "embedding")}
    layers_before = 0
    for number in sorted(params["segments"], key=int):
        segment = params["segments"][number]
        num_layers = segment["input_layernorm"]["weight"].shape[0]
        for layer in range(num_layers):
            prefix = f"{LLAMA.layers}.{layers_before + layer}"
            for path, leaf in leaves(segment):
                name = ".".join([prefix, *path[:-1], ENDINGS.get(path[-1], "weight")])
                transposed = path[-1] in TRANSPOSED
                named[name] = Slot(("segments", number, *path), leaf, layer, transposed)
        layers_before += num_layers
    for leaf in params["norm"]:
        named[f"model.norm.{leaf}"] = slot("norm", leaf)
    if "lm_head" in params:
        named[LLAMA.lm_head] = slot("lm_head", "kernel", transposed=True)
    return named


def lazy_tensors(config: LlamaConfig, params: Params) -> dict[str, LazyTensor]:
    """The tensors of a tree, to be written.

    Raises ValueError if their shapes are not those of `config`.
    """
    expected = {name: slot.shape for name, slot in slots(param_shapes(config)).items()}
    named = slots(params)
    shapes = {name: slot.shape for name, slot in named.items()}
    if shapes != expected:
        names = expected.keys() | shapes.keys()
        first = min(name for name in names if shapes.get(name) != expected.get(name))
        raise ValueError(f"the parameters do not fit the configuration, first at {first}")
    return {name: LazyTensor(slot.shape, "", slot.get) for name, slot in named.items()}


def read_whole(leaf: Any, read: Callable[[Index], np.ndarray]) -> np.ndarray:
    """All of a leaf, in host memory."""
    return read(tuple(slice(0, size) for size in leaf.shape))


def assemble(
    shapes: Params,
    expected: dict[str, Slot],
    stored: dict[str, LazyTensor],
    make_leaf: Callable[..., Any] = read_whole,
) -> Params:
    """The tree `shapes` filled with the stored tensors that `expected` has slots for, leaf by leaf.

    `make_leaf(leaf of shapes, read)` builds a leaf from the slices it reads, so that only a
    device's own slice is read for it; for a quantized leaf `read` returns float32. Raises
    ValueError for numbers that are not finite.
    """
    by_path: dict[tuple[str, ...], list[tuple[str, Slot]]] = {}
    for name, slot in expected.items():  # the layers of a stack, in order
        by_path.setdefault(slot.path, []).append((name, slot))

    def fill(path: tuple[Any, ...], leaf: Any) -> Any:
        tensors = by_path[tuple(entry.key for entry in path)]
        read = functools.partial(_read_slice, stored, tensors, np.dtype(leaf.dtype))
        return make_leaf(leaf, read)

    return jax.tree_util.tree_map_with_path(fill, shapes, is_leaf=is_quantized)


def _read_slice(
    stored: dict[str, LazyTensor],
    tensors: list[tuple[str, Slot]],
    dtype: np.dtype,
    index: Index,
) -> np.ndarray:
    """The slice `index` of a leaf that is one tensor, or a stack with a tensor for each layer."""
    name, slot = tensors[0]
    index = _bounded(index, slot.leaf.shape)
    if slot.layer is None:
        tensor = stored[name]
        return cast(slot.read(tensor, index), dtype, tensor.describe(name))
    layers, *within_layer = index
    out = np.empty([part.stop - part.start for part in index], dtype)
    for layer_out, (name, slot) in zip(out, tensors[layers], strict=True):
        tensor = stored[name]
        values = slot.read(tensor, tuple(within_layer))
        layer_out[...] = cast(values, dtype, tensor.describe(name))
    return out


def _bounded(index: Index, shape: tuple[int, ...]) -> Index:
    return tuple(slice(*part.indices(size)) for part, size in zip(index, shape, strict=True))


def wait_for_primary(tensors: dict[str, LazyTensor]) -> None:
    """Help to gather the tensors that the primary process writes, and wait until it is done."""
    for tensor in tensors.values():
        tensor.read()
    distributed.barrier()


def storage_dtype(tensors: Iterable[LazyTensor]) -> str:
    """The dtype that holds all tensors exactly: the one they share, or else float32."""
    names = {tensor.dtype for tensor in tensors}
    return names.pop() if len(names) == 1 else "float32"

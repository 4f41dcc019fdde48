"""The parameter tree and Hugging Face's tensor names: unstack the layers, transpose the kernels."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ctxext.interop.safetensors_files import find_tensors
from ctxext.interop.tensor_blocks import Entry, Index, cast, numpy_dtype
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, param_shapes
from ctxext.parallel.distributed import gather
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import Tokenizer

# The last part of a tensor's name, where it is not "weight"; adapters as PEFT calls them.
ENDINGS = {"bias": "bias", "lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
TRANSPOSED = ("kernel", "lora_a", "lora_b")
# Buffers that older transformers saved; they follow from the configuration.
DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A directory before its numbers are read. `window`: L' in tokens; `tensors`: by HF's names, in HF's layout."""

    config: LlamaConfig
    scaling: RopeScaling
    window: int
    tensors: dict[str, Entry]
    tokenizer: Tokenizer


class Slot(NamedTuple):
    """Where a tensor lives in the tree: a leaf, or one layer of it, in HF's orientation [out, in] if `transposed`."""

    leaf: Any
    layer: int | None
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.leaf.shape if self.layer is None else self.leaf.shape[1:])
        return shape[::-1] if self.transposed else shape

    def get(self) -> np.ndarray:
        value = gather(self.leaf if self.layer is None else self.leaf[self.layer])
        return value.T if self.transposed else value

    def read(self, entry: Entry, index: Index) -> np.ndarray:
        """Part `index` (of the leaf, or of its layer) of the stored tensor, in the leaf's orientation."""
        return entry.read(index[::-1]).T if self.transposed else entry.read(index)


def _leaves(
    tree: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def slots(params: Params) -> dict[str, Slot]:
    """HF tensor name -> Slot, for a tree of arrays or shapes, in the order of the forward pass."""

    def name(*path: str) -> str:
        return ".".join([*path[:-1], ENDINGS.get(path[-1], "weight")])

    found, done = (
        {
            name("model", "embed_tokens", "_"): Slot(
                params["embed_tokens"]["embedding"], None, False
            )
        },
        0,
    )
    for _, segment in sorted(params["segments"].items(), key=lambda item: int(item[0])):
        size = segment["input_layernorm"]["weight"].shape[0]
        for layer in range(size):
            prefix = ("model", "layers", str(done + layer))
            for path, leaf in _leaves(segment):
                found[name(*prefix, *path)] = Slot(leaf, layer, path[-1] in TRANSPOSED)
        done += size
    found["model.norm.weight"] = Slot(params["norm"]["weight"], None, False)
    if "lm_head" in params:
        found["lm_head.weight"] = Slot(params["lm_head"]["kernel"], None, True)
    return found


def entries(config: LlamaConfig, params: Params) -> dict[str, Entry]:
    """Tensors to write. Raises ValueError if the tree does not have the shapes of `config`."""
    expected = {name: slot.shape for name, slot in slots(param_shapes(config)).items()}
    given = slots(params)
    if {name: slot.shape for name, slot in given.items()} != expected:
        wrong = [
            name
            for name in expected.keys() | given.keys()
            if name not in given or given[name].shape != expected.get(name)
        ]
        raise ValueError(
            f"the parameters do not fit the configuration, first at {sorted(wrong)[0]}"
        )
    return {name: Entry(slot.shape, "", slot.get) for name, slot in given.items()}


def find_weights(directory: str | Path, config: LlamaConfig) -> dict[str, Entry]:
    """Tensors of an HF directory before they are read: those of `entries`, for parameters that only pass through.

    Raises ValueError naming the tensor for one that is missing, unknown or of another shape.
    """
    found = {
        name: entry
        for name, entry in find_tensors(directory).items()
        if not DERIVED.fullmatch(name)
    }
    if config.num_hidden_layers > len(found):  # before anything is made for each layer
        raise ValueError(
            f"config.json in {directory} says {config.num_hidden_layers} layers, but there are "
            f"{len(found)} tensors in all; one of the two is of another model"
        )
    expected = {name: slot.shape for name, slot in slots(param_shapes(config)).items()}
    _check(directory, config, found, expected)
    return {name: found[name] for name in expected}


def whole(leaf: Any, read: Callable[[Index], np.ndarray]) -> np.ndarray:
    """All of a leaf, in host memory."""
    return read(tuple(slice(0, size) for size in leaf.shape))


def load_params(
    directory: str | Path,
    config: LlamaConfig,
    dtype: str = "float32",
    *,
    shapes: Params | None = None,
    make: Callable[[Any, Callable[[Index], np.ndarray]], Any] = whole,
) -> Params:
    """The parameter tree of an HF directory in `dtype`, or in those of `shapes`, leaf by leaf.

    `make(leaf of shapes, read)` builds a leaf from the parts it reads, so that a device's slice is all that is read for
    it. Raises ValueError naming the tensor for one that is missing, unknown, of another shape or not finite.
    """
    numpy_dtype(dtype)
    shapes = param_shapes(config, dtype) if shapes is None else shapes
    return assemble(shapes, slots(shapes), find_weights(directory, config), make)


def assemble(
    shapes: Params,
    expected: dict[str, Slot],
    stored: dict[str, Entry],
    make: Callable[..., Any] = whole,
) -> Params:
    """The tree `shapes` filled with the stored tensors that `expected` has slots for, leaf by leaf."""
    parts: dict[int, list[tuple[str, Slot]]] = {}
    for name, slot in expected.items():  # a stack's layers in order
        parts.setdefault(id(slot.leaf), []).append((name, slot))

    def leaf(shape: Any) -> Any:
        return make(
            shape, functools.partial(_read, stored, parts[id(shape)], np.dtype(shape.dtype))
        )

    return jax.tree.map(leaf, shapes)


def _read(
    stored: dict[str, Entry], parts: list[tuple[str, Slot]], kind: np.dtype, index: Index
) -> np.ndarray:
    """Part `index` of a leaf that is one tensor, or a stack with a tensor for each layer."""
    name, slot = parts[0]
    if slot.layer is None:
        return cast(slot.read(stored[name], _bounded(index, slot.leaf.shape)), kind, name)
    layers, *rest = _bounded(index, slot.leaf.shape)
    out = np.empty([part.stop - part.start for part in (layers, *rest)], kind)
    for row, (name, slot) in zip(out, parts[layers], strict=True):
        row[...] = cast(slot.read(stored[name], tuple(rest)), kind, name)
    return out


def _bounded(index: Index, shape: tuple[int, ...]) -> Index:
    return tuple(slice(*part.indices(size)) for part, size in zip(index, shape, strict=True))


def _check(
    directory: Any,
    config: LlamaConfig,
    stored: dict[str, Entry],
    expected: dict[str, tuple[int, ...]],
) -> None:
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        hint = "; set tie_word_embeddings if the output shares the embedding" * (
            missing == ["lm_head.weight"]
        )
        raise ValueError(f"{directory} lacks {len(missing)} tensors, first {missing[0]}{hint}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(
                f"{name} in {directory} has shape {list(stored[name].shape)}, but config.json says "
                f"{list(shape)}; one of the two is of another model"
            )
    unknown = sorted(stored.keys() - expected.keys())
    if unknown == ["lm_head.weight"] and config.tie_word_embeddings:
        if not np.array_equal(
            stored["lm_head.weight"].read(), stored["model.embed_tokens.weight"].read()
        ):
            raise ValueError(
                f"lm_head.weight in {directory} differs from the embedding though config.json ties them; "
                "set tie_word_embeddings to false"
            )
    elif unknown:
        hint = "; set attention_bias or mlp_bias in config.json" * unknown[0].endswith(".bias")
        raise ValueError(
            f"{directory} has {len(unknown)} tensors that model_type llama does not, "
            f"first {unknown[0]}{hint}"
        )


def storage_dtype(tensors: Iterable[Entry]) -> str:
    """The dtype that holds all of them exactly: their own, or float32 if they have several."""
    names = {entry.dtype for entry in tensors}
    return names.pop() if len(names) == 1 else "float32"

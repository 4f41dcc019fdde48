"""The parameter tree and Hugging Face's tensor names: unstack the layers, transpose the kernels."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctxext.config import LlamaConfig
from ctxext.interop.tensors import DTYPES, Entry, cast, numpy_dtype, open_tensors
from ctxext.model import Params, param_shapes

# Buffers that older transformers saved; they follow from the configuration.
DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


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
        value = np.asarray(self.leaf if self.layer is None else self.leaf[self.layer])
        return value.T if self.transposed else value

    def set(self, value: np.ndarray) -> None:
        value = value.T if self.transposed else value
        self.leaf[... if self.layer is None else self.layer] = value


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def slots(params: Params) -> dict[str, Slot]:
    """HF tensor name -> Slot, for a tree of arrays or shapes, in the order of the forward pass."""

    def name(*path: str) -> str:
        return ".".join([*path[:-1], "bias" if path[-1] == "bias" else "weight"])

    found, done = {name("model", "embed_tokens", "_"): Slot(params["embed_tokens"]["embedding"], None, False)}, 0
    for _, segment in sorted(params["segments"].items(), key=lambda item: int(item[0])):
        size = segment["input_layernorm"]["weight"].shape[0]
        for layer in range(size):
            prefix = ("model", "layers", str(done + layer))
            for path, leaf in _leaves(segment):
                found[name(*prefix, *path)] = Slot(leaf, layer, path[-1] == "kernel")
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
        wrong = [name for name in expected.keys() | given.keys()
                 if name not in given or given[name].shape != expected.get(name)]  # fmt: skip
        raise ValueError(f"the parameters do not fit the configuration, first at {sorted(wrong)[0]}")
    return {name: Entry(slot.shape, "", slot.get) for name, slot in given.items()}


def load_params(directory: str | Path, config: LlamaConfig, dtype: str = "float32") -> Params:
    """The parameter tree of an HF directory as numpy arrays in `dtype`, read tensor by tensor into place.

    Raises ValueError naming the tensor for one that is missing, unknown, of another shape or not finite.
    """
    kind = numpy_dtype(dtype)
    shapes = param_shapes(config)
    with open_tensors(directory) as found:
        stored = {name: entry for name, entry in found.items() if not DERIVED.fullmatch(name)}
        _check(directory, config, stored, {name: slot.shape for name, slot in slots(shapes).items()})
        params = _empty(shapes, kind)
        for name, slot in slots(params).items():
            slot.set(cast(stored[name].read(), kind, name))
    return params


def _empty(shapes: dict[str, Any], kind: np.dtype) -> Params:
    return {k: _empty(v, kind) if isinstance(v, dict) else np.empty(v.shape, kind) for k, v in shapes.items()}


def _check(directory: Any, config: LlamaConfig, stored: dict[str, Entry], expected: dict[str, tuple[int, ...]]) -> None:
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        hint = "; set tie_word_embeddings if the output shares the embedding" * (missing == ["lm_head.weight"])
        raise ValueError(f"{directory} lacks {len(missing)} tensors, first {missing[0]}{hint}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(f"{name} in {directory} has shape {list(stored[name].shape)}, but config.json says "
                             f"{list(shape)}; one of the two is of another model")  # fmt: skip
    unknown = sorted(stored.keys() - expected.keys())
    if unknown == ["lm_head.weight"] and config.tie_word_embeddings:
        if not np.array_equal(stored["lm_head.weight"].read(), stored["model.embed_tokens.weight"].read()):
            raise ValueError(f"lm_head.weight in {directory} differs from the embedding though config.json ties them; "
                             "set tie_word_embeddings to false")  # fmt: skip
    elif unknown:
        hint = "; set attention_bias or mlp_bias in config.json" * unknown[0].endswith(".bias")
        raise ValueError(f"{directory} has {len(unknown)} tensors that model_type llama does not, "
                         f"first {unknown[0]}{hint}")  # fmt: skip


def storage_dtype(directory: str | Path) -> str:
    """The widest dtype of the weights in an HF directory, e.g. "bfloat16"; reads headers only."""
    with open_tensors(directory) as found:
        names = {entry.dtype for entry in found.values()}
    return names.pop() if len(names) == 1 else max(names, key=lambda name: DTYPES[name].itemsize)

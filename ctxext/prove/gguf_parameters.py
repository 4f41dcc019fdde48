"""Our own reading of a GGUF file's parameters: by our names, in our order of rows."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ctxext.interop.gguf import LAYER, OUTER, tensor_name
from ctxext.interop.hf_weights import assemble, slots, whole
from ctxext.interop.meta_layout import halves, rotary_heads
from ctxext.interop.tensor_blocks import Entry
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.prove.reference import GGUFTextbook


def dtypes(path: Path) -> dict[str, str]:
    """The type of each tensor, by HF's names. Raises ValueError for tensors that Llama 2 does not have."""
    book = GGUFTextbook(path)
    left = {
        name: found.kind for name, found in book.file.tensors.items() if name != "rope_freqs.weight"
    }
    names = [f"{stem}.weight" for stem in OUTER]
    names += [
        f"model.layers.{i}.{stem}.weight" for i in range(book.num_hidden_layers) for stem in LAYER
    ]
    found = {name: left.pop(tensor_name(name)) for name in names if tensor_name(name) in left}
    if left:
        raise ValueError(f"{path} holds {min(left)}, which Llama 2 does not have")
    return found


def open_like(path: Path, like: LM) -> LM:
    """`like` with the parameters of the file, float32. Raises ValueError if they have other names or shapes."""
    book, names, shapes = GGUFTextbook(path), dtypes(path), param_shapes(like.config)
    expected, tensors = slots(shapes), {}
    for name, slot in expected.items():
        shape = book.file.tensors[tensor_name(name)].shape if name in names else None
        if shape != slot.shape:
            there = "lacks it" if shape is None else f"has {list(shape)}"
            raise ValueError(
                f"{tensor_name(name)} is {list(slot.shape)} in the model that {path} is compared with, "
                f"and the file {there}; is it what the file was written from?"
            )
        tensors[name] = Entry(
            slot.shape, "float32", _read(book, name, rotary_heads(name, like.config))
        )
    if extra := sorted(names.keys() - expected.keys()):
        raise ValueError(
            f"{path} holds {tensor_name(extra[0])}, which the model that it is compared with has not"
        )
    return dataclasses.replace(
        like, params=jax.device_put(assemble(shapes, expected, tensors, whole))
    )


def _read(book: GGUFTextbook, name: str, heads: int | None) -> Callable[..., np.ndarray]:
    def read(index=...) -> np.ndarray:
        return halves(book.file.numbers(tensor_name(name)), heads)[index]

    return read


def q8_0(values: np.ndarray) -> np.ndarray:
    """What q8_0 keeps of float32 rows: whole steps of a 127th of the largest of 32, that scale in float16."""
    blocks = values.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, 0, 1 / scale).astype(np.float32)
    steps = blocks * inverse
    steps = np.sign(steps) * np.floor(
        np.abs(steps) + np.float32(0.5)
    )  # halves away from zero, as C's roundf
    return (scale.astype(np.float16).astype(np.float32) * steps).reshape(values.shape)

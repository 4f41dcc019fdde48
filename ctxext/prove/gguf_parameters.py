"""The parameters of a GGUF file under our names and in our order of rows."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ctxext.interop.gguf import ROPE_FREQS
from ctxext.interop.hf_weights import assemble, slots
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.meta_layout import rotary_heads, to_halves
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.prove.reference.gguf import GGUFReference


def dtypes(path: Path) -> dict[str, str]:
    """The type of each tensor, by HF's names for a Llama.

    Raises ValueError for tensors that the file's architecture does not have.
    """
    reader = GGUFReference(path)
    stored = {name: tensor.kind for name, tensor in reader.file.tensors.items()}
    stored.pop(ROPE_FREQS, None)
    names = {name: reader.tensor_name(name) for name in reader.tensor_names()}
    known = {name: stored[new_name] for name, new_name in names.items() if new_name in stored}
    others = stored.keys() - set(names.values())
    if others:
        raise ValueError(
            f"{path} holds {min(others)}, which the architecture {reader.architecture} does not "
            "have"
        )
    return known


def open_like(path: Path, like: LM) -> LM:
    """`like` with the parameters of the file, float32.

    Raises ValueError if they have other names or shapes.
    """
    reader = GGUFReference(path)
    stored = dtypes(path)
    shapes = param_shapes(like.config)
    expected = slots(shapes)
    tensors = {}
    for name, slot in expected.items():
        shape = reader.shape(name) if name in stored else None
        if shape != slot.shape:
            difference = "lacks it" if shape is None else f"has {list(shape)}"
            raise ValueError(
                f"{_name_in(reader, name)} is {list(slot.shape)} in the model that {path} is "
                f"compared with, and the file {difference}; is it what the file was written from?"
            )
        heads = rotary_heads(name, like.config) if reader.neighbours else None
        tensors[name] = LazyTensor(
            slot.shape, "float32", _row_reader(reader, name, heads), file=path
        )
    if extra := sorted(stored.keys() - expected.keys()):
        raise ValueError(
            f"{path} holds {reader.tensor_name(extra[0])}, which the model that it is compared "
            "with does not have"
        )
    params = jax.device_put(assemble(shapes, expected, tensors))
    return dataclasses.replace(like, params=params)


def _name_in(reader: GGUFReference, name: str) -> str:
    """The name of a tensor in the file, or Llama's where the architecture has none for it."""
    try:
        return reader.tensor_name(name)
    except KeyError:
        return name


def _row_reader(reader: GGUFReference, name: str, heads: int | None) -> Callable[..., np.ndarray]:
    def read(index=...) -> np.ndarray:
        return to_halves(reader.numbers(name), heads)[index]

    return read


def q8_0(values: np.ndarray) -> np.ndarray:
    """float32 rows as q8_0 keeps them, written from its definition in llama.cpp.

    32 numbers share a scale, a 127th of their largest magnitude, stored as float16; each is a whole
    number of steps of that scale.
    """
    blocks = values.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, 0, 1 / scale).astype(np.float32)
    steps = blocks * inverse
    # Halves are rounded away from zero, as by C's roundf.
    steps = np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5))
    return (scale.astype(np.float16).astype(np.float32) * steps).reshape(values.shape)


ROUNDED = {"q8_0": q8_0}
"""What is kept of float32 rows, by the quantized dtypes that are written."""

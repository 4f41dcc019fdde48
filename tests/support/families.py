"""Tiny models of every family as files, from the golden data and from transformers."""

import dataclasses
import functools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from ctxext.interop import hf
from ctxext.interop.family_tensors import to_stored
from ctxext.interop.hf_weights import assemble, lazy_tensors, slots
from ctxext.interop.stored_weights import find_weights
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.prove.reference.hf import HFReference
from ctxext.rope import Unscaled, rotation_at
from support import tiny
from support.llamas import TINY

GOLDEN = Path(__file__).parents[1] / "golden" / "models.json"


@functools.cache
def cases() -> dict[str, dict[str, Any]]:
    """The golden models by name: `params` (config.json), `state_dict`, `tokens` and `logits`."""
    return {case["id"]: case for case in json.loads(GOLDEN.read_text())["cases"]}


def lcg(seed: int, count: int) -> np.ndarray:
    """The generator of the golden data, float32."""
    values = np.empty(count, np.float32)
    for i in range(count):
        seed = (1664525 * seed + 1013904223) % 2**32
        values[i] = (seed >> 8) / 2**24 - 0.5
    return values


def _weight(name: str, shape: list[int]) -> np.ndarray:
    u = lcg(zlib.crc32(name.encode()), math.prod(shape)).reshape(shape)
    module = name.split(".")[-2]
    if name.endswith("bias"):
        return 0.25 * u
    if "norm" in module or module.startswith("ln_"):
        return 1 + 0.5 * u
    return (2.0 if "embed" in name or "wte" in name else 0.5) * u


def write_golden(directory: Path, case: dict[str, Any]) -> Path:
    """The files of a golden model, without a tokenizer."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(case["params"]))
    tied = case["params"].get("tie_word_embeddings")
    weights = {
        name: _weight(name, shape)
        for name, shape in case["state_dict"].items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def open_model(directory: Path, **options: Any) -> LM:
    """The model in a directory, which needs no tokenizer."""
    config, scaling = hf.read_config(directory)
    shapes = param_shapes(config)
    params = assemble(shapes, slots(shapes), find_weights(directory, config))
    tokenizer: Any = None
    return LM(config, params, tokenizer, scaling=scaling, **options)


def parts_config(name: str, **changes: Any) -> LlamaConfig:
    """The golden model `name`, with the vocabulary of the tokenizer of `support.llamas`."""
    case = cases()[name]
    config, _ = hf.parse_config(case["params"] | changes)
    return dataclasses.replace(config, vocab_size=TINY.vocab_size, initializer_range=0.12)


def torch_model(directory: Path) -> Any:
    """transformers' model of the files in `directory`, float32, eager attention."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()


def gradients(config: LlamaConfig, params: Any, tokens: np.ndarray) -> Any:
    """Of the mean loss of every next token, as a tree like `params`."""
    B, T = tokens.shape
    batch = tiny.next_token_batch(tokens)
    rotation = rotation_at(Unscaled(), config.rope_base(), T)
    gradient = jax.grad(lambda params: tiny.loss(params, batch, rotation, config=config))(params)
    return jax.tree.map(lambda x: np.asarray(x) / (B * (T - 1)), gradient)


def stored_tensors(config: LlamaConfig, params: Any) -> dict[str, np.ndarray]:
    """The tensors of a tree by the names of the family's files."""
    stored = to_stored(lazy_tensors(config, params), config)
    return {name: tensor.read() for name, tensor in stored.items()}


class ByDistance(HFReference):
    """The plain reader of an MPT with six heads, with other distances than those of the tokens."""

    distance: np.ndarray
    """[T, T]; NaN where the key is not visible."""

    def _attention(self, x, turn, positions, layer):
        name = f"model.layers.{layer}.self_attn"
        q, k, v = (self._heads(x, f"{name}.{part}_proj") for part in "qkv")
        scores = np.einsum("tnh,snh->nts", q, k) / self.head_dim**0.5
        slopes = np.array([2.0**-i for i in (2, 4, 6, 8, 1, 3)])
        scores = scores - slopes[:, None, None] * np.nan_to_num(self.distance)
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * ~np.isnan(self.distance)
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("nts,snh->tnh", weights, v)
        return self._linear(out.reshape(len(x), -1), f"{name}.o_proj")

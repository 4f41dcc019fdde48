"""Tiny random Llamas, ours and transformers', and their tokenizer, for interop and parity."""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, param_shapes
from ctxext.tokenization.tokenizer import MODEL, Tokenizer, train_tokenizer
from support import tiny

WINDOW = 64
FACTOR = 4
LENGTH = FACTOR * WINDOW
TINY = tiny.config(vocab_size=420, max_position_embeddings=WINDOW, initializer_range=0.12)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer({MODEL: train_tokenizer([inspect.getsource(inspect)], TINY.vocab_size)})


def random_params(config: LlamaConfig = TINY, seed: int = 0, dtype: Any = np.float32) -> Params:
    """Random parameters, norms and biases too, so that a swapped or dropped one is noticed."""
    rng = np.random.default_rng(seed)

    def fill(tree: dict[str, Any], name: str = "") -> dict[str, Any]:
        if isinstance(tree, dict):
            return {key: fill(value, key) for key, value in tree.items()}
        noise = 0.1 * rng.standard_normal(tree.shape)
        return np.asarray(noise + (name == "weight"), np.float32).astype(dtype)

    return fill(param_shapes(config))


def torch_llama(
    directory: Path, rope: dict[str, Any] | None = None, seed: int = 0, **changes: Any
) -> Any:
    """A random float32 LlamaForCausalLM with eager attention, also saved to `directory`."""
    import torch
    import transformers

    fields = dataclasses.asdict(TINY)
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    fields |= changes
    fields.pop("rope_theta")
    if rope is not None:
        fields["rope_parameters"] = {"rope_theta": 10000.0, **rope}
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**fields, attn_implementation="eager")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter) + float("norm" in name))
    model.save_pretrained(directory)
    for name, data in tokenizer().export_files(LENGTH).items():
        (directory / name).write_bytes(data)
    return model.eval()

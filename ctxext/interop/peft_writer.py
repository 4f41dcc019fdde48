"""PEFT directories, written: adapter_config.json and adapter_model.safetensors.

PEFT stores A as [R, in] and B as [out, R]; queries and keys have Hugging Face's rotate-half layout,
which is also ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ctxext.files import atomic_directory, write_json
from ctxext.interop.family_tensors import stored_name
from ctxext.interop.hf_weights import ENDINGS, slots
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.low_rank import LowRank, to_stored
from ctxext.interop.peft_reader import CONFIG, PREFIX
from ctxext.interop.safetensors_files import write_file
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.quantized import QuantizedKernel
from ctxext.model.trainable import LoRA, join

ENDING_OF_A = f".{ENDINGS['lora_a']}"
ENDING_OF_B = f".{ENDINGS['lora_b']}"
TENSORS = "adapter_model.safetensors"
"""Describes the base's parameters; it and the base's config.json are in the same directory."""


def write(
    directory: str | Path,
    config: LlamaConfig,
    lora: LoRA,
    params: Params,
    *,
    base: str,
    extra_files: dict[str, Any] | None = None,
) -> None:
    """Write adapters and modules_to_save in float32, completely or not at all.

    `base`: the name or path under which PEFT finds the base model. `extra_files`: JSON by file
    name, which PEFT does not read. Raises ValueError for an existing directory and for what PEFT
    cannot represent, OSError if the disk is full.
    """
    _check_tied(config, lora)
    saved, products = _stored(config, lora, params)
    tensors = {PREFIX + name: tensor for name, tensor in saved.items()}
    for name, product in products.items():
        module = PREFIX + name.removesuffix(".weight")
        tensors[module + ENDING_OF_A] = product.a
        tensors[module + ENDING_OF_B] = product.b
    with atomic_directory(directory) as out:
        write_json(out / CONFIG, config_json(lora, products, list(saved), base))
        for name, value in (extra_files or {}).items():
            write_json(out / name, value)
        write_file(out / TENSORS, tensors, "float32")


def expected_config_json(config: LlamaConfig, lora: LoRA, *, base: str) -> dict[str, Any]:
    """The adapter_config.json that `write` gives any parameters that were trained in this way."""
    shapes, _ = lora.shapes(config)
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    saved, products = _stored(config, lora, params)
    return config_json(lora, products, list(saved), base)


def _stored(
    config: LlamaConfig, lora: LoRA, params: Params
) -> tuple[dict[str, LazyTensor], dict[str, LowRank]]:
    """(tensors that were trained whole, adapters), by the names of the family."""
    _, frozen_shapes = lora.shapes(config)
    trained = {
        name: LazyTensor(slot.shape, "float32", slot.get)
        for name, slot in slots(join(params, frozen_shapes)).items()
        if not isinstance(slot.leaf, jax.ShapeDtypeStruct | QuantizedKernel)
    }
    saved = {
        stored_name(name, config): tensor
        for name, tensor in trained.items()
        if not name.endswith((ENDING_OF_A, ENDING_OF_B))
    }
    products = {
        f"{module}.weight": LowRank(tensor, trained[module + ENDING_OF_B], lora.scale)
        for module, tensor in _modules_of_a(trained)
    }
    return saved, to_stored(products, config)


def _modules_of_a(trained: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """(module, its A) of every adapter."""
    for name, tensor in trained.items():
        if name.endswith(ENDING_OF_A):
            yield name.removesuffix(ENDING_OF_A), tensor


def config_json(
    lora: LoRA, products: Mapping[str, LowRank], saved: Sequence[str], base: str
) -> dict[str, Any]:
    """The contents of adapter_config.json.

    `products` and `saved`: the adapters and the tensors that are trained whole, by the names of the
    family. The rank of an adapter of several projections is the sum of theirs, at the same scale.
    """
    ranks = {_leaf_module(name): product.rank for name, product in products.items()}
    others = {module: rank for module, rank in ranks.items() if rank != lora.rank}
    alphas = {
        module: lora.scale * (rank**0.5 if lora.rslora else rank) for module, rank in others.items()
    }
    patterns = {"rank_pattern": others, "alpha_pattern": alphas} if others else {}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        **patterns,
        "target_modules": list(ranks),
        "bias": "none",
        "modules_to_save": list(dict.fromkeys(map(_leaf_module, saved))) or None,
        "fan_in_fan_out": False,
    }


def _leaf_module(name: str) -> str:
    """The last part of the name of the module that a tensor belongs to."""
    return name.split(".")[-2]


def _check_tied(config: LlamaConfig, lora: LoRA) -> None:
    if config.tie_word_embeddings and {"embed_tokens", "lm_head"} & set(lora.modules_to_save):
        raise ValueError(
            "the embedding of this model is its output projection too, and PEFT would separate "
            "them; export the merged model with --to hf instead"
        )

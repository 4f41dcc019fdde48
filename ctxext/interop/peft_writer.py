"""PEFT directories, written: adapter_config.json and adapter_model.safetensors.

PEFT stores A as [R, in] and B as [out, R]; queries and keys have Hugging Face's rotate-half layout,
which is also ours.
"""

from pathlib import Path
from typing import Any

import jax

from ctxext.files import atomic_directory, write_json
from ctxext.interop.families import family_of
from ctxext.interop.hf_weights import slots
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.peft_reader import CONFIG, PREFIX, check_family
from ctxext.interop.safetensors_files import write_file
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.quantized import QuantizedKernel
from ctxext.model.trainable import LoRA, join

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
    check_family(config)
    _check_tied(config, lora)
    _, frozen_shapes = lora.shapes(config)
    named = slots(join(params, frozen_shapes))
    tensors = {
        PREFIX + name: LazyTensor(slot.shape, "float32", slot.get)
        for name, slot in named.items()
        if not isinstance(slot.leaf, jax.ShapeDtypeStruct | QuantizedKernel)
    }
    with atomic_directory(directory) as out:
        write_json(out / CONFIG, config_json(config, lora, base))
        for name, value in (extra_files or {}).items():
            write_json(out / name, value)
        write_file(out / TENSORS, tensors, "float32")


def config_json(config: LlamaConfig, lora: LoRA, base: str) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    modules_to_save = [
        module
        for name in lora.modules_to_save
        for module in (family_of(config).modules_to_save or {})[name]
    ]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": list(lora.targets),
        "bias": "none",
        "modules_to_save": modules_to_save or None,
        "fan_in_fan_out": False,
    }


def _check_tied(config: LlamaConfig, lora: LoRA) -> None:
    if config.tie_word_embeddings and {"embed_tokens", "lm_head"} & set(lora.modules_to_save):
        raise ValueError(
            "the embedding of this model is its output projection too, and PEFT would separate "
            "them; export the merged model with --to hf instead"
        )

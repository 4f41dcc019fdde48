"""PEFT directories, read and written: adapter_config.json and adapter_model.safetensors.

PEFT stores A as [R, in] and B as [out, R]; queries and keys have Hugging Face's rotate-half layout,
which is also ours.
"""

import re
from pathlib import Path
from typing import Any

import jax

from ctxext.files import atomic_directory, read_json, write_json
from ctxext.interop.families import family_of
from ctxext.interop.hf_weights import Slot, assemble, leaves, slots
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.safetensors_files import write_file
from ctxext.interop.weight_files import ADAPTER_FILES, find_sets, open_set
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.trainable import LoRA, join

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
BASE = "base.json"
"""Describes the base's parameters; it and the base's config.json are in the same directory."""
PREFIX = "base_model.model."
PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base's weights as they are; the others change them."""
MUST_BE_UNSET = (
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layer_replication",
    "use_dora",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
)


def is_adapter(path: Path) -> bool:
    """True for a PEFT directory."""
    return (path / CONFIG).is_file()


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
    _, frozen_shapes = lora.shapes(config)
    named = slots(join(params, frozen_shapes), family_of(config))
    tensors = {
        PREFIX + name: LazyTensor(slot.shape, "float32", slot.get)
        for name, slot in named.items()
        if not isinstance(slot.leaf, jax.ShapeDtypeStruct)
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
        for module in family_of(config).modules_to_save[name]
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


def read(directory: str | Path, config: LlamaConfig) -> tuple[LoRA, Params]:
    """The adapter of a PEFT directory and its parameters, float32, to `join` with the base's.

    Raises ValueError naming the key or tensor for anything but a plain LoRA over every layer of
    this model.
    """
    path = Path(directory) / CONFIG
    settings = _read_settings(path)
    stored = open_set(directory, find_sets(directory, ADAPTER_FILES)[0])
    lora = _lora(path, settings, config, list(stored))
    _check_tied(config, lora)
    shapes, frozen_shapes = lora.shapes(config)
    trained_paths = {path for path, _ in leaves(shapes)}
    expected = {
        PREFIX + name: slot
        for name, slot in slots(join(shapes, frozen_shapes), family_of(config)).items()
        if slot.path in trained_paths
    }
    _check_tensors(directory, stored, expected)
    return lora, assemble(shapes, expected, stored)


def _read_settings(path: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ValueError for an adapter that is not a plain LoRA."""
    data = read_json(path)
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        raise ValueError(f"{path}: only adapters of peft_type LORA are supported")
    if data.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias {data['bias']!r} is not supported, only 'none'")
    unsupported = [key for key in MUST_BE_UNSET if data.get(key)]
    if unsupported:
        raise ValueError(
            f"{path}: {unsupported[0]} is not supported; merge the adapter with PEFT and import "
            "the result"
        )
    if data.get("init_lora_weights") not in PLAIN_INITS:
        raise ValueError(
            f"{path}: init_lora_weights {data['init_lora_weights']!r} changes the base too; merge "
            "the adapter with PEFT and import the result"
        )
    return data


def _lora(
    path: Path, settings: dict[str, Any], config: LlamaConfig, tensor_names: list[str]
) -> LoRA:
    """The LoRA of adapter_config.json; its targets are those that there are tensors of."""
    names = [name.removeprefix(PREFIX) for name in tensor_names]
    matches = [re.search(r"(\w+)\.lora_[AB]\.weight$", name) for name in names]
    targets = dict.fromkeys(match[1] for match in matches if match)
    stored_modules = {name.split(".")[-2] for name in names}
    modules_to_save = [
        name
        for name, modules in family_of(config).modules_to_save.items()
        if stored_modules & set(modules)
    ]
    try:
        return LoRA(
            rank=settings["r"],
            alpha=float(settings["lora_alpha"]),
            dropout=float(settings.get("lora_dropout") or 0),
            targets=tuple(targets),
            rslora=bool(settings.get("use_rslora")),
            modules_to_save=tuple(modules_to_save),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: r or lora_alpha is missing or not a number ({error})") from None


def _check_tied(config: LlamaConfig, lora: LoRA) -> None:
    if config.tie_word_embeddings and {"embed_tokens", "lm_head"} & set(lora.modules_to_save):
        raise ValueError(
            "the embedding of this model is its output projection too, and PEFT would separate "
            "them; export the merged model with --to hf instead"
        )


def _check_tensors(
    directory: str | Path, stored: dict[str, LazyTensor], expected: dict[str, Slot]
) -> None:
    for name, slot in expected.items():
        if name not in stored:
            raise ValueError(
                f"{directory} lacks {name}; only adapters over every layer are supported"
            )
        if stored[name].shape != slot.shape:
            raise ValueError(
                f"{name} in {directory} has shape {list(stored[name].shape)}, this base needs "
                f"{list(slot.shape)}; is it of another base or rank?"
            )
    unknown = sorted(stored.keys() - expected.keys())
    if unknown:
        raise ValueError(
            f"{directory} holds {unknown[0]}, which is not part of a LoRA of this model"
        )

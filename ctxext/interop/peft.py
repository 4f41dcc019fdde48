"""Adapters as PEFT directories, both directions: adapter_config.json and adapter_model.safetensors.

PEFT stores A as [R, in] and B as [out, R]; q and k keep the rotate-half layout of Hugging Face, which is ours.
"""

import re
from pathlib import Path
from typing import Any

import jax

from ctxext.files import atomic_directory, read_json, write_json
from ctxext.interop.hf_weights import Slot, assemble, slots
from ctxext.interop.safetensors_files import find_tensors, write_file
from ctxext.interop.tensor_blocks import Entry
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.trainable import LoRA, join

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base.json"
"""Beside them, with the base's config.json: what the base's parameters were."""
PREFIX = "base_model.model."
MODULES = {
    "norm": ("norm", "input_layernorm", "post_attention_layernorm"),
    "embed_tokens": ("embed_tokens",),
    "lm_head": ("lm_head",),
}
"""PEFT's modules_to_save for each name in `LoRA.modules_to_save`."""
PLAIN_INITS = (
    None,
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # the others change the base's weights too
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


def save(
    directory: str | Path,
    config: LlamaConfig,
    lora: LoRA,
    params: Params,
    *,
    base: str,
    beside: dict[str, Any] | None = None,
) -> None:
    """Write adapter and modules_to_save, float32; all of it or nothing. `base`: where PEFT finds the base model.

    beside: JSON files by name, which PEFT does not read.
    Raises ValueError for an existing directory and for what PEFT cannot say, OSError if the disk is full.
    """
    _check_tied(config, lora)
    _, rest = lora.shapes(config)
    mine = {
        name: slot for name, slot in slots(join(params, rest)).items() if not _is_shape(slot.leaf)
    }
    with atomic_directory(directory) as out:
        for name, value in {CONFIG: config_json(lora, base), **(beside or {})}.items():
            write_json(out / name, value)
        tensors = {
            PREFIX + name: Entry(slot.shape, "float32", slot.get) for name, slot in mine.items()
        }
        write_file(out / TENSORS, tensors, "float32")


def config_json(lora: LoRA, base: str) -> dict[str, Any]:
    """adapter_config.json."""
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
        "modules_to_save": [name for part in lora.modules_to_save for name in MODULES[part]]
        or None,
        "fan_in_fan_out": False,
    }


def read(directory: str | Path, config: LlamaConfig) -> tuple[LoRA, Params]:
    """The adapter of a PEFT directory and its parameters, float32: a tree to `join` with the rest of the base's.

    Raises ValueError naming the key or tensor for anything that is not a plain LoRA over every layer of this model.
    """
    path = Path(directory) / CONFIG
    data = read_json(path)
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        raise ValueError(f"{path}: only adapters of peft_type LORA are read")
    if data.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias {data['bias']!r} is not supported, only 'none'")
    if wrong := [key for key in MUST_BE_UNSET if data.get(key)]:
        raise ValueError(
            f"{path}: {wrong[0]} is not supported; merge the adapter with PEFT and import the result"
        )
    if data.get("init_lora_weights") not in PLAIN_INITS:
        raise ValueError(
            f"{path}: init_lora_weights {data['init_lora_weights']!r} changes the base too; merge the "
            "adapter with PEFT and import the result"
        )
    stored = find_tensors(directory, TENSORS)
    names = [name.removeprefix(PREFIX) for name in stored]
    targets = {
        match[1]: None for name in names if (match := re.search(r"(\w+)\.lora_[AB]\.weight$", name))
    }
    also = (
        part for part, modules in MODULES.items() if any(x.split(".")[-2] in modules for x in names)
    )
    try:
        lora = LoRA(
            rank=data["r"],
            alpha=float(data["lora_alpha"]),
            dropout=float(data.get("lora_dropout") or 0),
            targets=tuple(targets),
            rslora=bool(data.get("use_rslora")),
            modules_to_save=tuple(also),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: r or lora_alpha is missing or no number ({error})") from None
    _check_tied(config, lora)
    shapes, rest = lora.shapes(config)
    mine = {id(leaf) for leaf in jax.tree.leaves(shapes)}
    expected = {
        PREFIX + k: slot for k, slot in slots(join(shapes, rest)).items() if id(slot.leaf) in mine
    }
    _check(directory, {name: entry.shape for name, entry in stored.items()}, expected)
    return lora, assemble(shapes, expected, stored)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _check_tied(config: LlamaConfig, lora: LoRA) -> None:
    if config.tie_word_embeddings and {"embed_tokens", "lm_head"} & set(lora.modules_to_save):
        raise ValueError(
            "the embedding of this model is its output projection too, and PEFT would part them; export "
            "the merged model with --to hf instead"
        )


def _check(directory: Any, stored: dict[str, tuple[int, ...]], expected: dict[str, Slot]) -> None:
    for name, slot in expected.items():
        if name not in stored:
            raise ValueError(f"{directory} lacks {name}; only adapters over every layer are read")
        if stored[name] != slot.shape:
            raise ValueError(
                f"{name} in {directory} has shape {list(stored[name])}, this base needs "
                f"{list(slot.shape)}; is it of another base or rank?"
            )
    if unknown := sorted(stored.keys() - expected.keys()):
        raise ValueError(
            f"{directory} holds {unknown[0]}, which is no part of a LoRA of this model"
        )

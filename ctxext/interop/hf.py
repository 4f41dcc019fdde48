"""Hugging Face directories: config.json and the files around it, read and written."""

import dataclasses
from pathlib import Path
from typing import Any

from ctxext.files import (
    atomic_directory,
    check_free,
    read_json,
    within,
    write_bytes,
    write_json,
    write_text,
)
from ctxext.interop.context_lengths import declared_length, token_count
from ctxext.interop.families import FAMILIES, family_of
from ctxext.interop.family_tensors import to_stored
from ctxext.interop.front_matter import read_about
from ctxext.interop.generation_config import (
    GENERATION_CONFIG,
    extended_generation_config,
    read_generation_config,
)
from ctxext.interop.hf_weights import (
    StoredModel,
    WriteOptions,
    wait_for_primary,
)
from ctxext.interop.lazy_tensor import numpy_dtype
from ctxext.interop.model_card import model_card
from ctxext.interop.ropespec import rope_to_config
from ctxext.interop.safetensors_files import write_tensors
from ctxext.interop.stored_weights import find_weights
from ctxext.model.config import LlamaConfig
from ctxext.parallel import distributed
from ctxext.rope import RopeScaling, scaling_factor
from ctxext.tokenization.tokenizer import load_tokenizer

CONFIG = "config.json"


def read(directory: str | Path) -> StoredModel:
    """A Hugging Face directory; numbers stay on disk until a tensor is read.

    Raises ValueError naming the file for one that is missing, corrupt, contradictory or of another
    kind of model.
    """
    config, scaling, window = _read_config(directory)
    tokenizer = load_tokenizer(directory, vocab_size=config.vocab_size)
    tensors = find_weights(directory, config)
    generation_config = read_generation_config(directory)
    about = read_about(directory)
    return StoredModel(config, scaling, window, tensors, tokenizer, generation_config, about)


def read_config(directory: str | Path) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and scaling of a directory; `max_position_embeddings` is the original window, L.

    Raises ValueError naming the key for an unsupported model_type, missing or contradictory keys
    and unknown scalings.
    """
    config, scaling, _ = _read_config(directory)
    return config, scaling


def window(directory: str | Path) -> int:
    """The extended window L' in tokens that a directory declares. Raises as `read_config`."""
    _, _, length = _read_config(directory)
    return length


def stated_window(directory: str | Path) -> int:
    """`max_position_embeddings` in tokens, under whatever name, before any factor multiplies it.

    Raises ValueError as `read_config` does.
    """
    data = read_json(within(directory, CONFIG))
    stated = FAMILIES[data["model_type"]].translate(data)
    return token_count(stated, "max_position_embeddings") or declared_length(stated)


def _read_config(directory: str | Path) -> tuple[LlamaConfig, RopeScaling, int]:
    path = within(directory, CONFIG)
    try:
        return read_settings(read_json(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def parse_config(data: Any) -> tuple[LlamaConfig, RopeScaling]:
    """`read_config` for the contents of a config.json."""
    model_type = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(repr(name) for name in FAMILIES)
        raise ValueError(f"model_type {model_type!r} is not supported, only {known}")
    family = FAMILIES[model_type]
    return family.read_config(family.translate(data))


def _extended_window(data: dict[str, Any], config: LlamaConfig, scaling: RopeScaling) -> int:
    original = config.max_position_embeddings
    factor = scaling_factor(scaling) or 1.0
    length = declared_length(FAMILIES[data["model_type"]].translate(data), factor)
    # Files that leave max_position_embeddings at L declare the extended window by the factor alone.
    if scaling.depends_on_length or length == original:
        return max(length, round(factor * original))
    return length


def read_settings(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling, int]:
    """Shape, scaling and the extended window L' for the contents of a config.json."""
    config, scaling = parse_config(data)
    return config, scaling, _extended_window(data, config, scaling)


def declared_window(config: LlamaConfig, scaling: RopeScaling, *, seq_len: int) -> int:
    """The extended window L', tokens, of a directory that is written for texts of `seq_len`."""
    data = config_json(config, scaling, seq_len=seq_len, dtype="float32")
    _, _, length = read_settings(data)
    return length


def config_json(
    config: LlamaConfig, scaling: RopeScaling, *, seq_len: int, dtype: str
) -> dict[str, Any]:
    """config.json for transformers 4 and 5.

    Raises ValueError for a scaling that it cannot represent, and for a decoder that is not of its
    family.
    """
    family = family_of(config)
    config.check_scaling(scaling)
    rope = rope_to_config(scaling, config, seq_len)
    of_family = family.write_config(config)
    if "rope_theta" not in rope:  # it would be that of all layers
        of_family.pop("rope_theta", None)
    further = family.rope_keys(config)
    for form in ("rope_scaling", "rope_parameters"):
        if further and rope.get(form):
            rope[form] |= further
    if family.window_key is not None:
        rope = {family.window_key: rope["max_position_embeddings"]}
    written = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **of_family,
        **rope,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    _check_family(config, parse_config(written)[0])
    return written


def _check_family(config: LlamaConfig, written: LlamaConfig) -> None:
    """Raise ValueError if a file would say something else of the decoder than its shape."""
    for name in ("parts", "attention_bias", "mlp_bias", "hidden_act", "intermediate_size"):
        actual, expected = getattr(written, name), getattr(config, name)
        if name == "parts":  # theta is also how some scalings are written
            actual = dataclasses.replace(actual, sliding_rope_theta=expected.sliding_rope_theta)
        if actual != expected:
            raise ValueError(
                f"config.json of model_type {config.family} cannot represent {name} {expected}; "
                f"it would be read as {actual}"
            )


def check(config: LlamaConfig, scaling: RopeScaling, *, window: int, dtype: str) -> None:
    """Raise ValueError, with the reason, for a model that a directory cannot represent.

    `window`: the extended window L', tokens.
    """
    numpy_dtype(dtype)
    config_json(config, scaling, seq_len=window, dtype=dtype)


def write(directory: str | Path, model: StoredModel, options: WriteOptions) -> None:
    """Write a directory that stock readers load, completely or not at all.

    Raises ValueError for what the format cannot represent and for an existing directory, OSError if
    the disk is full.
    """
    config = model.config
    numpy_dtype(options.dtype)
    model.tokenizer.check_fits(config.vocab_size)
    settings = config_json(config, model.scaling, seq_len=model.window, dtype=options.dtype)
    _, _, window = read_settings(settings)
    tensors = to_stored(model.tensors, config)
    generation = extended_generation_config(model.generation_config, config, window=window)
    check_free(directory)
    if not distributed.is_primary():
        return wait_for_primary(tensors)
    with atomic_directory(directory) as out:
        write_json(out / CONFIG, settings)
        if generation is not None:
            write_json(out / GENERATION_CONFIG, generation)
        for name, content in model.tokenizer.export_files(window).items():
            write_bytes(out / name, content)
        facts = {**model.about, "summary": "", **(options.card or {})}
        write_text(out / "README.md", model_card(settings, config, facts))
        write_tensors(out, tensors, options.dtype, max_shard_size=options.max_shard_size)
    distributed.barrier()

"""Hugging Face directories: config.json and everything beside it, both directions."""

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
from ctxext.interop import validation
from ctxext.interop.context_lengths import declared_length
from ctxext.interop.hf_weights import Checkpoint, entries, find_weights, load_params
from ctxext.interop.model_card import model_card
from ctxext.interop.ropespec import rope_from_config, rope_to_config
from ctxext.interop.safetensors_files import Entry, numpy_dtype, write_tensors
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.parallel import distributed
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import Tokenizer, load_tokenizer

__all__ = ["load_params", "read", "read_config", "save", "window"]

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
)
NUMBERS = ("rms_norm_eps", "attention_dropout", "initializer_range")
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
SIZES = (*REQUIRED[:-1], "num_key_value_heads", "head_dim")
# Keys of `LlamaConfig` that a file may leave out, with the format's own meaning of that.
OPTIONAL = (
    *FLAGS,
    "hidden_act",
    "attention_dropout",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _ids(value: Any) -> bool:
    return all(type(x) is int for x in (value if isinstance(value, list) and value else [value]))


RULES: dict[str, validation.Rule] = {
    **dict.fromkeys(SIZES, validation.SIZE),
    **dict.fromkeys(FLAGS, validation.FLAG),
    **dict.fromkeys(NUMBERS, validation.NUMBER),
    "rms_norm_eps": validation.EPSILON,
    "hidden_act": (lambda x: type(x) is str, "a name"),
    "eos_token_id": (_ids, "a token id or a list of them"),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), (lambda x: type(x) is int, "a token id")),
}


def read_config(directory: str | Path) -> tuple[LlamaConfig, RopeScaling]:
    """Shape and scaling of an HF directory; `max_position_embeddings` of the result is the original window.

    Raises ValueError naming the key for another model_type, missing or contradictory keys, and unknown scalings.
    """
    path = within(directory, "config.json")
    try:
        return _read(read_json(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _read(data: Any) -> tuple[LlamaConfig, RopeScaling]:
    if not isinstance(data, dict) or data.get("model_type") != "llama":
        kind = data.get("model_type") if isinstance(data, dict) else None
        raise ValueError(f"model_type {kind!r} is not supported, only 'llama'")
    missing = [key for key in REQUIRED if data.get(key) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    validation.check(data, RULES)
    for key, why in (
        ("quantization_config", "quantised weights"),
        ("sliding_window", "a sliding window"),
    ):
        if data.get(key) is not None:
            raise ValueError(f"{why} ({key}) is not supported; use the original checkpoint")
    theta, original, scaling = rope_from_config(data)
    heads = data["num_attention_heads"]
    head_dim = data.get("head_dim")
    if head_dim is None:
        if data["hidden_size"] % heads:
            raise ValueError(
                f"hidden_size {data['hidden_size']} is not a multiple of num_attention_heads {heads}; "
                "add head_dim"
            )
        head_dim = data["hidden_size"] // heads
    kv_heads = data.get("num_key_value_heads")
    given = (key for key in (*REQUIRED, *OPTIONAL) if key in data)
    fields = {key: data[key] for key in given if data[key] is not None or key.endswith("token_id")}
    if isinstance(fields.get("eos_token_id"), list):
        fields["eos_token_id"] = tuple(fields["eos_token_id"])
    fields |= {key: float(fields[key]) for key in NUMBERS if key in fields}
    if fields.get("pad_token_id") == -1:  # how files of Llama 1 say that there is none
        fields["pad_token_id"] = None
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = fields.get(key)
        ids = ids if isinstance(ids, tuple) else (ids,)
        if any(token is not None and not 0 <= token < data["vocab_size"] for token in ids):
            raise ValueError(
                f"{key} {fields[key]} lies outside the vocabulary of {data['vocab_size']}; set it to "
                "null, or use the config.json of the model that has it"
            )
    config = LlamaConfig(
        **fields,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        max_position_embeddings=original,
    )
    scaling.rope(config.rope_base(), original)  # lists that do not fit head_dim are refused here
    return config, scaling


def config_json(
    config: LlamaConfig, scaling: RopeScaling, *, seq_len: int, dtype: str
) -> dict[str, Any]:
    """config.json for transformers 4 and 5. Raises ValueError for a scaling it cannot say."""
    fields = dataclasses.asdict(config)
    fields["eos_token_id"] = list(eos) if isinstance(eos := config.eos_token_id, tuple) else eos
    fields |= rope_to_config(scaling, config, seq_len)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **fields,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def window(directory: str | Path) -> int:
    """The extended window L' in tokens that an HF directory declares."""
    data = read_json(Path(directory) / "config.json")
    config, scaling = read_config(directory)
    original, factor = config.max_position_embeddings, float(getattr(scaling, "factor", 1.0))
    length = declared_length(data, factor)
    # Files that leave max_position_embeddings as it was say the extended window by the factor alone.
    return (
        max(length, round(factor * original))
        if scaling.depends_on_length or length == original
        else length
    )


def read(directory: str | Path) -> Checkpoint:
    """An HF directory; numbers stay on disk until an entry is read.

    Raises ValueError naming the file, key or tensor for what is missing, contradictory or not supported.
    """
    config, scaling = read_config(directory)
    tokenizer = load_tokenizer(directory)
    tensors = find_weights(directory, config)
    return Checkpoint(config, scaling, window(directory), tensors, tokenizer)


def save(
    directory: str | Path,
    config: LlamaConfig,
    params: Params,
    scaling: RopeScaling,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    seq_len: int | None = None,
    max_shard_size: int = 5 * 10**9,
    card: dict[str, Any] | None = None,
) -> None:
    """`write` for a tree of parameters. Raises ValueError if it does not have the shapes of `config`."""
    write(
        directory,
        config,
        entries(config, params),
        scaling,
        tokenizer,
        dtype=dtype,
        seq_len=seq_len,
        max_shard_size=max_shard_size,
        card=card,
    )


def write(
    directory: str | Path,
    config: LlamaConfig,
    tensors: dict[str, Entry],
    scaling: RopeScaling,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    seq_len: int | None = None,
    max_shard_size: int = 5 * 10**9,
    card: dict[str, Any] | None = None,
) -> None:
    """Write an HF directory that stock readers load; all of it or nothing. `seq_len`: the extended window L', tokens.

    `tensors`: by their names in this format, read and written one at a time.
    Raises ValueError for what the format cannot say and for an existing directory, OSError if the disk is full.
    """
    numpy_dtype(dtype)
    tokenizer.check_fits(config.vocab_size)
    settings = config_json(
        config, scaling, seq_len=seq_len or config.max_position_embeddings, dtype=dtype
    )
    length = settings["max_position_embeddings"]
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": settings["eos_token_id"],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    check_free(directory)
    if not distributed.is_primary():  # the first process writes what all of them hold
        for entry in tensors.values():
            entry.read()
        return distributed.barrier()
    with atomic_directory(directory) as out:
        write_json(out / "config.json", settings)
        write_json(out / "generation_config.json", generation)
        for name, data in tokenizer.export_files(length).items():
            write_bytes(out / name, data)
        write_text(out / "README.md", model_card(settings, config, card or {}))
        write_tensors(out, tensors, dtype, max_shard_size=max_shard_size)
    distributed.barrier()

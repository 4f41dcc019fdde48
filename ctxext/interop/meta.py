"""Meta's own format, read and written: consolidated.NN.pth, params.json and tokenizer.model.

params.json has theta and nothing else of the rotary embedding, so a directory that is written here
also has a rope.json with the window and the frequencies.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from ctxext import progress
from ctxext.files import (
    atomic_directory,
    check_free,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from ctxext.interop import validation
from ctxext.interop.families import family_of
from ctxext.interop.hf_weights import (
    Slot,
    StoredModel,
    WriteOptions,
    slots,
    wait_for_primary,
)
from ctxext.interop.lazy_tensor import LazyTensor, num_values, numpy_dtype, read_into
from ctxext.interop.meta_layout import (
    join_shards,
    meta_name,
    rotary_heads,
    shard_shape,
    to_interleaved,
)
from ctxext.interop.meta_rope import read_rope, readme, rope_json
from ctxext.interop.pth import open_archive
from ctxext.interop.pth_writer import create
from ctxext.interop.stored_names import describe_unknown, without_wrappers
from ctxext.interop.unread_weights import warn_of_unread
from ctxext.model.config import LlamaConfig, merge_ids
from ctxext.model.decoder import param_shapes
from ctxext.parallel import distributed
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import MODEL, Tokenizer, load_tokenizer

PARAMS = "params.json"
ROPE = "rope.json"
MISTRAL_WEIGHTS = "consolidated.safetensors"
"""The weights of Mistral's own form, which has a params.json too."""
SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "max_seq_len", "max_batch_size")
REQUIRED = ("dim", "n_layers", "n_heads", "norm_eps")
RULES: dict[str, validation.Rule] = {
    **dict.fromkeys(SIZES, validation.SIZE),
    "vocab_size": (
        lambda value: value == -1 or validation.SIZE[0](value),
        f"-1 or {validation.SIZE[1]}",
    ),
    "norm_eps": validation.EPSILON,
    "ffn_dim_multiplier": validation.NUMBER,
    "rope_theta": validation.NUMBER,
    "use_scaled_rope": validation.FLAG,
    "rope_scaling_factor": validation.NUMBER,
    "rope_high_freq_factor": validation.NUMBER,
}
DERIVED_TENSOR = "rope.freqs"
"""A buffer that follows from params.json."""


def is_meta(directory: Path) -> bool:
    """True for a directory in Meta's format, not in Hugging Face's."""
    return (directory / PARAMS).is_file() and not (directory / "config.json").is_file()


def write(directory: str | Path, model: StoredModel, options: WriteOptions) -> None:
    """Write a Meta directory, completely or not at all, with one tensor in memory.

    Raises ValueError for what the format cannot represent and for an existing directory, OSError if
    the disk is full.
    """
    config = model.config
    dtype = options.dtype
    check(config, model.scaling, window=model.window, dtype=dtype)
    _check_tokenizer(config, model.tokenizer)
    _check_stop_ids(model)
    num_shards = count_shards(config, options.shards)
    rope = rope_json(config, model.scaling, model.window)
    tensors = model.tensors
    if config.tie_word_embeddings:
        tensors = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    check_free(directory)
    if not distributed.is_primary():
        return wait_for_primary(tensors)
    with atomic_directory(directory) as out:
        write_json(out / PARAMS, params_json(config, rope["rope_theta"]))
        write_json(out / ROPE, rope)
        write_text(out / "README.md", readme(rope, dtype=dtype, shards=num_shards))
        write_bytes(out / MODEL, model.tokenizer.files[MODEL])
        _write_shards(out, config, tensors, dtype, num_shards)
    distributed.barrier()


def _write_shards(
    directory: Path,
    config: LlamaConfig,
    tensors: dict[str, LazyTensor],
    dtype: str,
    num_shards: int,
) -> None:
    meta_names = {name: meta_name(name) for name in tensors}
    shapes = {
        new_name: shard_shape(tensors[name].shape, dim, num_shards)
        for name, (new_name, dim) in meta_names.items()
    }
    largest = max(math.prod(tensor.shape) for tensor in tensors.values())
    memory = np.empty(largest, numpy_dtype(dtype))
    with contextlib.ExitStack() as stack:
        add_to_shard = [
            stack.enter_context(create(directory / f"consolidated.{i:02d}.pth", shapes, dtype))
            for i in range(num_shards)
        ]
        for name, tensor in progress.each(tensors.items(), num_values):
            array = to_interleaved(read_into(memory, tensor, name), rotary_heads(name, config))
            _, dim = meta_names[name]
            parts = [array] * num_shards if dim is None else np.split(array, num_shards, dim)
            for add, part in zip(add_to_shard, parts, strict=True):
                add(part)


def check(config: LlamaConfig, scaling: RopeScaling, *, window: int, dtype: str) -> None:
    """Raise ValueError, with the reason, for a model that Meta's format cannot represent.

    `window`: the extended window L', tokens.
    """
    numpy_dtype(dtype)
    if not family_of(config).meta:
        raise ValueError(
            f"Meta's format holds Llamas, not model_type {config.family}; export with --to hf"
        )
    rope_json(config, scaling, window)
    unsupported = {
        "biases": config.attention_bias or config.mlp_bias,
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
        "heads wider or narrower than the model": (
            config.head_dim * config.num_attention_heads != config.hidden_size
        ),
    }
    for feature, is_used in unsupported.items():
        if is_used:
            raise ValueError(f"Meta's format has no field for {feature}; export with --to hf")


def count_shards(config: LlamaConfig, requested: int | None = None) -> int:
    """The number of files to write, by default as many as Meta ships for a model of this size.

    Raises ValueError if the model cannot be divided into as many equal ones as are requested.
    """
    num_shards = _default_shards(config) if requested is None else requested
    divisible = math.gcd(
        config.num_key_value_heads, config.hidden_size, config.intermediate_size, config.vocab_size
    )
    if num_shards < 1 or divisible % num_shards:
        raise ValueError(
            f"this model cannot be divided into {num_shards} equal shards; --shards must divide "
            f"{divisible}"
        )
    return num_shards


def _check_tokenizer(config: LlamaConfig, tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(config.vocab_size)
    if MODEL not in tokenizer.files:
        raise ValueError(
            f"Meta's format needs a SentencePiece {MODEL}, which this model does not have; use "
            "--to hf"
        )
    if not tokenizer.adds_bos:
        raise ValueError(
            "Meta's code begins every text with BOS, and this model's texts begin without; export "
            "with --to hf"
        )
    plain = [token["content"] for token in tokenizer.added if not token.get("special")]
    if plain:
        raise ValueError(
            f"Meta's format has only the tokens of {MODEL}, and this model also has "
            f"{', '.join(plain[:3])}; export with --to hf"
        )
    if (tokenizer.bos_id, tokenizer.eos_id) != (config.bos_token_id, config.eos_token_id):
        raise ValueError(
            f"Meta's format takes the ids of bos and eos from {MODEL}, where they are "
            f"{tokenizer.bos_id} and {tokenizer.eos_id}, not {config.bos_token_id} and "
            f"{config.eos_token_id}; export with --to hf"
        )


def _check_stop_ids(model: StoredModel) -> None:
    stops = merge_ids((model.generation_config or {}).get("eos_token_id"))
    lost = [token for token in stops if token != model.tokenizer.eos_id]
    if lost:
        raise ValueError(
            f"generation_config.json also stops at {lost}, and Meta's format knows one end of a "
            "text; export with --to hf"
        )


def _default_shards(config: LlamaConfig) -> int:
    """The number of shards that Meta ships for a model of this size (7B, 13B, 33B, 65B)."""
    for largest, num_shards in ((10e9, 1), (30e9, 2), (50e9, 4)):
        if config.num_parameters < largest:
            return num_shards
    return 8


def params_json(config: LlamaConfig, rope_theta: float) -> dict[str, Any]:
    """The contents of params.json; keys at their default are left out, as Meta publishes them."""
    multiple_of, multiplier = _feed_forward_settings(config.hidden_size, config.intermediate_size)
    grouped = config.num_key_value_heads != config.num_attention_heads
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads if grouped else None,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": rope_theta if rope_theta != 10000.0 else None,
    }
    return {key: value for key, value in params.items() if value is not None}


def _feed_forward_settings(dim: int, width: int) -> tuple[int, float | None]:
    """(multiple_of, ffn_dim_multiplier) from which Meta's code computes the MLP's width."""
    published = ((256, None), (4096, 1.3), (1024, 1.3), (256, 1.5))
    any_width = (1, (width + 0.5) / (8 * dim // 3))  # rounds to exactly this width
    for multiple_of, multiplier in (*published, any_width):
        if _feed_forward_width(dim, multiple_of, multiplier) == width:
            return multiple_of, multiplier
    raise AssertionError(f"no multiplier gives the width {width}")


def _feed_forward_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    width = int(8 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def read(directory: str | Path, original: int | None = None) -> StoredModel:
    """A Meta directory; numbers stay on disk until a tensor is read.

    `original`: the window of pre-training in tokens, for directories without rope.json, as the
    format itself does not have it. Raises ValueError naming the file for one that is missing,
    corrupt, contradictory or of another kind of model.
    """
    directory = Path(directory)
    if (directory / MISTRAL_WEIGHTS).is_file() and not list(directory.glob("consolidated.*.pth")):
        raise ValueError(
            f"{directory} holds {PARAMS} and {MISTRAL_WEIGHTS}, the form of Mistral's own code, "
            "which is not read; use the Hugging Face version of the model (config.json and "
            "model.safetensors)"
        )
    params = _read_params(directory / PARAMS)
    shards = _open_shards(directory)
    tokenizer = load_tokenizer(directory)
    try:
        config, scaling, window = _read_config(directory, params, shards, tokenizer, original)
    except (KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"{directory / PARAMS} or a tensor lacks or misstates {error}; copy the checkpoint "
            "again"
        ) from None
    expected = slots(param_shapes(config))
    tensors = {
        name: _find_tensor(directory, config, shards, name, slot) for name, slot in expected.items()
    }
    known = {meta_name(name)[0] for name in expected} | {DERIVED_TENSOR}
    unknown = sorted(shards[0].keys() - known)
    if unknown:
        description = describe_unknown(unknown)
        hint = f"; {description}" if description else ""
        raise ValueError(f"{directory} holds {unknown[0]}, which Llama does not have{hint}")
    first, *others = (f"consolidated.{i:02d}.pth" for i in range(len(shards)))
    warn_of_unread(directory, first, others, as_in="Meta's code (there is no config.json)")
    return StoredModel(config, scaling, window, tensors, tokenizer)


def _read_params(path: Path) -> dict[str, Any]:
    params = read_json(path)
    if not isinstance(params, dict):
        raise ValueError(f"{path} must hold an object")
    unknown = sorted(params.keys() - RULES.keys())
    if unknown:
        raise ValueError(
            f"{path}: {unknown[0]} is not supported; import the model in Hugging Face's format"
        )
    try:
        validation.check(params, RULES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    missing = [key for key in REQUIRED if params.get(key) is None]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}; copy the file again")
    return params


def _open_shards(directory: Path) -> list[dict[str, LazyTensor]]:
    files = sorted(directory.glob("consolidated.*.pth"))
    expected = [f"consolidated.{i:02d}.pth" for i in range(len(files))]
    if not files or [file.name for file in files] != expected:
        raise ValueError(
            f"{directory} lacks shards: consolidated.00.pth and so on without a gap; copy it again"
        )
    shards = [_open_shard(file) for file in files]
    for file, shard in zip(files, shards, strict=True):
        if shard.keys() != shards[0].keys():
            name = sorted(shard.keys() ^ shards[0].keys())[0]
            raise ValueError(
                f"only one of {file} and {files[0].name} has {name}; copy the shards again"
            )
    return shards


def _open_shard(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a shard, by their names without what training tools add to them."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in open_archive(file).items():
        plain = without_wrappers(name)
        if plain in tensors:
            raise ValueError(f"{file} holds {plain} twice, also as {name}; remove one of them")
        tensors[plain] = tensor
    return tensors


def _find_tensor(
    directory: Path,
    config: LlamaConfig,
    shards: list[dict[str, LazyTensor]],
    name: str,
    slot: Slot,
) -> LazyTensor:
    """One tensor by HF's name, from its shards."""
    new_name, dim = meta_name(name)
    if new_name not in shards[0]:
        raise ValueError(f"{directory} lacks {new_name}; copy it again")
    parts = [shard[new_name] for shard in shards]
    if name == "model.embed_tokens.weight" and parts[0].shape[1:] == slot.shape[1:]:
        dim = 0  # Llama 3 divides the vocabulary, not the width
    if any(part.shape != shard_shape(slot.shape, dim, len(shards)) for part in parts):
        raise ValueError(
            f"{new_name} in {directory} has shape {list(parts[0].shape)} in {len(shards)} shards, "
            f"but {PARAMS} requires {list(slot.shape)} in all"
        )
    return join_shards(new_name, parts, dim, rotary_heads(name, config))


def _read_config(
    directory: Path,
    params: dict[str, Any],
    shards: list[dict[str, LazyTensor]],
    tokenizer: Tokenizer,
    original: int | None,
) -> tuple[LlamaConfig, RopeScaling, int]:
    """Shape, scaling and extended window; widths that params.json lacks come from tensors."""
    dim = params["dim"]
    num_heads = params["n_heads"]
    layers = {name.split(".")[1] for name in shards[0] if name.startswith("layers.")}
    if params["n_layers"] != len(layers):
        raise ValueError(
            f"{directory / PARAMS} has n_layers {params['n_layers']}, but the shards have "
            f"{len(layers)}"
        )
    width = shards[0]["layers.0.feed_forward.w1.weight"].shape[0] * len(shards)
    vocab_size = shards[0]["output.weight"].shape[0] * len(shards)
    if params.get("vocab_size", -1) not in (-1, vocab_size):  # -1: that of the tokenizer
        raise ValueError(
            f"{directory / PARAMS} has vocab_size {params['vocab_size']}, but the shards have "
            f"{vocab_size} rows"
        )
    head_dim = dim // num_heads
    theta, original, scaling, window = read_rope(directory / ROPE, params, head_dim, original)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=dim,
        intermediate_size=width,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=num_heads,
        num_key_value_heads=params.get("n_kv_heads") or num_heads,
        head_dim=head_dim,
        rms_norm_eps=params["norm_eps"],
        rope_theta=theta,
        max_position_embeddings=original,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    return config, scaling, window

"""Meta's own format, both directions: consolidated.NN.pth, params.json and tokenizer.model, and our rope.json.

params.json knows theta alone, so that rope.json beside it says the window and the frequencies.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.files import (
    atomic_directory,
    check_free,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from ctxext.interop import validation
from ctxext.interop.hf_weights import Checkpoint, slots
from ctxext.interop.meta_layout import joined, neighbours, part, place, rotary_heads
from ctxext.interop.meta_rope import read_rope, readme, rope_json
from ctxext.interop.pth import open_archive
from ctxext.interop.pth_writer import create
from ctxext.interop.tensor_blocks import Entry, numpy_dtype, read_into
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes
from ctxext.parallel import distributed
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import MODEL, Tokenizer, load_tokenizer

PARAMS, ROPE = "params.json", "rope.json"
SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "max_seq_len", "max_batch_size")
RULES: dict[str, validation.Rule] = {
    **dict.fromkeys(SIZES, validation.SIZE),
    "vocab_size": (lambda x: x == -1 or validation.SIZE[0](x), f"-1 or {validation.SIZE[1]}"),
    "norm_eps": validation.EPSILON,
    "ffn_dim_multiplier": validation.NUMBER,
    "rope_theta": validation.NUMBER,
}
DERIVED = "rope.freqs"  # a buffer that follows from params.json


def is_meta(directory: Path) -> bool:
    """True for a directory in Meta's format, not in Hugging Face's."""
    return (directory / PARAMS).is_file() and not (directory / "config.json").is_file()


def save(
    directory: str | Path,
    config: LlamaConfig,
    tensors: dict[str, Entry],
    scaling: RopeScaling,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    seq_len: int | None = None,
    shards: int | None = None,
) -> None:
    """Write a Meta directory, all of it or nothing, one tensor in memory. `tensors`: by HF's names, in HF's layout.

    `shards`: by default as many as Meta ships for a model of this size. `seq_len`: the extended window L', tokens.
    Raises ValueError for what the format cannot say and for an existing directory, OSError if the disk is full.
    """
    shards = check(config, scaling, tokenizer, dtype=dtype, seq_len=seq_len, shards=shards)
    rope = rope_json(config, scaling, seq_len or config.max_position_embeddings)
    if config.tie_word_embeddings:
        tensors = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    check_free(directory)
    if not distributed.is_primary():  # the first process writes what all of them hold
        for entry in tensors.values():
            entry.read()
        return distributed.barrier()
    places = {name: place(name) for name in tensors}
    shapes = {new: part(tensors[name].shape, dim, shards) for name, (new, dim) in places.items()}
    with atomic_directory(directory) as out:
        write_json(out / PARAMS, params_json(config, rope["rope_theta"]))
        write_json(out / ROPE, rope)
        write_text(out / "README.md", readme(rope, dtype=dtype, shards=shards))
        write_bytes(out / MODEL, tokenizer.files[MODEL])
        with contextlib.ExitStack() as stack:
            files = [out / f"consolidated.{i:02d}.pth" for i in range(shards)]
            puts = [stack.enter_context(create(file, shapes, dtype)) for file in files]
            memory = np.empty(
                max(math.prod(entry.shape) for entry in tensors.values()), numpy_dtype(dtype)
            )
            for name, entry in tensors.items():
                array = neighbours(read_into(memory, entry, name), rotary_heads(name, config))
                dim = places[name][1]
                parts = [array] * shards if dim is None else np.split(array, shards, dim)
                for put, values in zip(puts, parts, strict=True):
                    put(values)
    distributed.barrier()


def check(
    config: LlamaConfig,
    scaling: RopeScaling,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str,
    seq_len: int | None = None,
    shards: int | None = None,
) -> int:
    """The number of shards. Raises ValueError, with the reason, for what Meta's format cannot say."""
    numpy_dtype(dtype)
    rope_json(config, scaling, seq_len or config.max_position_embeddings)
    for wrong, what in (
        (config.attention_bias or config.mlp_bias, "biases"),
        (config.hidden_act != "silu", f"the activation {config.hidden_act}"),
        (
            config.head_dim * config.num_attention_heads != config.hidden_size,
            "heads wider or narrower than the model",
        ),
    ):
        if wrong:
            raise ValueError(f"Meta's format has no field for {what}; export with --to hf")
    if tokenizer is not None:
        tokenizer.check_fits(config.vocab_size)
        if MODEL not in tokenizer.files:
            raise ValueError(
                f"Meta's format needs a SentencePiece {MODEL}, which this model has not; use --to hf"
            )
        if (tokenizer.bos_id, tokenizer.eos_id) != (config.bos_token_id, config.eos_token_id):
            raise ValueError(
                f"Meta's format takes the ids of bos and eos from {MODEL}, where they are "
                f"{tokenizer.bos_id} and {tokenizer.eos_id}, not {config.bos_token_id} and "
                f"{config.eos_token_id}; export with --to hf"
            )
    size = config.num_parameters
    if shards is None:
        shards = 1 if size < 10e9 else 2 if size < 30e9 else 4 if size < 50e9 else 8
    most = math.gcd(
        config.num_key_value_heads, config.hidden_size, config.intermediate_size, config.vocab_size
    )
    if shards < 1 or most % shards:
        raise ValueError(
            f"this model does not make {shards} equal shards; --shards must divide {most}"
        )
    return shards


def params_json(config: LlamaConfig, rope_theta: float) -> dict[str, Any]:
    """params.json; keys that have no value are left out, as Meta's code takes them for given otherwise."""
    D, F = config.hidden_size, config.intermediate_size
    # As Meta publishes them; other widths are said with a multiplier that rounds to the very number.
    known = ((256, None), (4096, 1.3), (1024, 1.3), (256, 1.5), (1, (F + 0.5) / (8 * D // 3)))
    multiple, factor = next((m, f) for m, f in known if _feed_forward(D, m, f) == F)
    found = {
        "dim": D,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads
        if config.num_key_value_heads != config.num_attention_heads
        else None,
        "multiple_of": multiple,
        "ffn_dim_multiplier": factor,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": rope_theta if rope_theta != 10000.0 else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _feed_forward(dim: int, multiple_of: int, multiplier: float | None) -> int:
    width = int(8 * dim / 3)
    width = width if multiplier is None else int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def read(directory: str | Path, original: int | None = None) -> Checkpoint:
    """A Meta directory; numbers stay on disk until an entry is read.

    `original`: the window of pre-training in tokens, for directories without rope.json, whose format does not say it.
    Raises ValueError naming the file for one that is missing, damaged, contradictory or of another kind of model.
    """
    directory = Path(directory)
    path = directory / PARAMS
    params = read_json(path)
    unknown = sorted(params.keys() - RULES.keys()) if isinstance(params, dict) else ["no object"]
    if unknown:
        raise ValueError(
            f"{path}: {unknown[0]} is not supported; import the model in Hugging Face's format"
        )
    try:
        validation.check(params, RULES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    files = sorted(directory.glob("consolidated.*.pth"))
    if not files or [file.name for file in files] != [
        f"consolidated.{i:02d}.pth" for i in range(len(files))
    ]:
        raise ValueError(
            f"{directory} lacks shards: consolidated.00.pth and so on without a gap; copy it again"
        )
    shards = [open_archive(file) for file in files]
    for file, shard in zip(files, shards, strict=True):
        if shard.keys() != shards[0].keys():
            name = sorted(shard.keys() ^ shards[0].keys())[0]
            raise ValueError(
                f"{file} and {files[0].name} disagree on having {name}; copy the shards again"
            )
    tokenizer = load_tokenizer(directory)
    try:
        config, scaling, window = _config(directory, params, shards, tokenizer, original)
    except (KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} or a tensor lacks or misstates {error}; copy the checkpoint again"
        ) from None
    expected = slots(param_shapes(config))
    tensors = {}
    for name, slot in expected.items():
        new, dim = place(name)
        if new not in shards[0]:
            raise ValueError(f"{directory} lacks {new}; copy it again")
        parts = [shard[new] for shard in shards]
        if name == "model.embed_tokens.weight" and parts[0].shape[1:] == slot.shape[1:]:
            dim = 0  # Llama 3 splits the vocabulary
        if any(entry.shape != part(slot.shape, dim, len(shards)) for entry in parts):
            raise ValueError(
                f"{new} in {directory} has shape {list(parts[0].shape)} in {len(shards)} shards, but "
                f"{PARAMS} says {list(slot.shape)} in all"
            )
        tensors[name] = joined(new, parts, dim, rotary_heads(name, config))
    if extra := sorted(shards[0].keys() - {place(name)[0] for name in expected} - {DERIVED}):
        raise ValueError(f"{directory} holds {extra[0]}, which Llama 2 does not have")
    return Checkpoint(config, scaling, window, tensors, tokenizer)


def _config(
    directory: Path,
    params: dict[str, Any],
    shards: list[dict[str, Entry]],
    tokenizer: Tokenizer,
    original: int | None,
) -> tuple[LlamaConfig, RopeScaling, int]:
    D, heads = params["dim"], params["n_heads"]
    layers = {name.split(".")[1] for name in shards[0] if name.startswith("layers.")}
    if params["n_layers"] != len(layers):
        raise ValueError(
            f"{directory / PARAMS} says n_layers {params['n_layers']}, the shards have {len(layers)}"
        )
    width = shards[0]["layers.0.feed_forward.w1.weight"].shape[0] * len(shards)
    vocab = shards[0]["output.weight"].shape[0] * len(shards)
    if params.get("vocab_size", -1) not in (-1, vocab):  # -1: that of the tokenizer
        raise ValueError(
            f"{directory / PARAMS} says vocab_size {params['vocab_size']}, the shards have {vocab} rows"
        )
    theta, original, scaling, window = read_rope(
        directory / ROPE, params.get("rope_theta"), D // heads, original
    )
    config = LlamaConfig(
        vocab,
        D,
        width,
        params["n_layers"],
        heads,
        params.get("n_kv_heads") or heads,
        D // heads,
        params["norm_eps"],
        theta,
        original,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    return config, scaling, window

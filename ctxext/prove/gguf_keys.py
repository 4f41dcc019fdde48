"""The keys of a GGUF file that llama.cpp obeys, compared with those of the model.

The model's tensors have the shapes of its configuration, and those of the file are compared with
them by name, so that a key that differs from the configuration contradicts the tensors too.
Frequencies and token ids are also compared by their effect; here every key has to be right by
itself. An absent key is what llama.cpp then takes.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.interop.gguf_metadata import FILE_TYPES, NEUTRAL, NEUTRAL_OF_TOKENIZERS
from ctxext.interop.gguf_names import architecture_of
from ctxext.interop.gguf_vocabulary import vocabulary
from ctxext.model.lm import LM
from ctxext.prove.reference.gguf_file import GGUFFile
from ctxext.tokenization.sentencepiece_pieces import NORMAL

ABOUT = (
    "general.name",
    "general.description",
    "general.type",
    "general.author",
    "general.organization",
    "general.version",
    "general.basename",
    "general.finetune",
    "general.size_label",
    "general.license",
    "general.url",
    "general.doi",
    "general.uuid",
    "general.repo_url",
    "general.source",
    "general.base_model",
    "general.tags",
    "general.languages",
    "general.dataset",
    "general.quantized_by",
)
"""Keys for people, and the beginnings of others; no reader computes anything with them."""
READ_AS_FREQUENCIES = (
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
)
"""Keys after the architecture's name that are compared by the frequencies that they give."""
NAMED_AS_INCOMPATIBLE = ("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")
"""Read or not by version; `known_incompatibilities` names any but 32 and 1."""
WITHOUT_EFFECT = ("rope.scaling.finetuned", "tensor_data_layout")
WITHOUT_EFFECT_IN_GENERAL = ("general.file_type", "general.quantization_version")


def compare_keys(
    file: GGUFFile, model: LM, windows: Collection[int]
) -> tuple[list[str], list[str]]:
    """(keys that are not the model's, in words; keys that are not known here).

    `windows`: the extended windows that the file may declare, in tokens. Raises ValueError for a
    model that no GGUF file holds.
    """
    architecture = architecture_of(model.config)
    prefix = f"{architecture.name}."
    expected = _shape(model, architecture) | _general(file)
    expected[prefix + "context_length"] = tuple(windows)
    keys = {**_shape_defaults(file.keys, prefix), **file.keys}
    differences = [
        _difference(key, keys.get(key), values)
        for key, values in expected.items()
        if not _is_one_of(keys.get(key), values)
    ]
    by_effect = (*READ_AS_FREQUENCIES, *NAMED_AS_INCOMPATIBLE, *WITHOUT_EFFECT)
    compared = {*expected, *(prefix + key for key in by_effect), *WITHOUT_EFFECT_IN_GENERAL}
    neutral = {prefix + key: values for key, values in NEUTRAL.items()} | NEUTRAL_OF_TOKENIZERS
    neutral |= {
        prefix + "rope.scaling.original_context_length": (model.config.max_position_embeddings,),
        prefix + "rope.scaling.yarn_ext_factor": _ext_factors(file.keys, prefix),
        prefix + "attention.scale": (0.0, 1 / math.sqrt(model.config.head_dim)),
    }
    optional = {key: values for key, values in neutral.items() if key not in expected}
    for key in file.keys.keys() & optional.keys():
        if not _is_one_of(file.keys[key], optional[key]):
            differences.append(_difference(key, file.keys[key], optional[key]))
    try:
        expected_vocabulary = vocabulary(model.tokenizer, model.config, model.stop_ids)
    except ValueError as error:
        differences.append(f"tokenizer.*: {error}")
        expected_vocabulary = {}
    differences += _tokenizer_differences(file.keys, expected_vocabulary)
    known = compared | optional.keys() | TOKENIZER_KEYS
    unknown = [key for key in file.keys if key not in known and not _is_about(key)]
    return sorted(differences), sorted(unknown)


def keys_not_read(file: GGUFFile) -> list[str]:
    """The keys that the file's own kind of tokenizer has no use for, in words."""
    kind = file.keys.get("tokenizer.ggml.model", "")
    key = {"llama": "tokenizer.ggml.merges", "gpt2": "tokenizer.ggml.scores"}.get(kind, "")
    if key not in file.keys:
        return []
    return [f"{key} is not read for a tokenizer of the model {kind}"]


def _shape(model: LM, architecture: GGUFArchitecture) -> dict[str, tuple[Any, ...]]:
    config = model.config
    own = {
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        architecture.epsilon: config.rms_norm_eps,
        **architecture.keys(config),
    }
    if config.layers.rotates:
        own["rope.dimension_count"] = config.head_dim
    name = architecture.name
    shape: dict[str, tuple[Any, ...]] = {"general.architecture": (name,)}
    return shape | {f"{name}.{key}": (value,) for key, value in own.items()}


def _general(file: GGUFFile) -> dict[str, tuple[Any, ...]]:
    """`general.file_type` is the type of the matrices; most files have no alignment.

    In a file that another program quantized it is the name of a mixture of types, for people.
    """
    kinds = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    expected: dict[str, tuple[Any, ...]] = {
        "general.alignment": (None, 32, *(2**i for i in range(3, 17)))
    }
    if kinds <= FILE_TYPES.keys():
        file_types = tuple(FILE_TYPES[kind][1] for kind in sorted(kinds))
        expected["general.file_type"] = (*file_types, None)
    return expected


def _shape_defaults(keys: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What llama.cpp takes where the file has no such key."""
    heads = keys.get(prefix + "attention.head_count")
    width = keys.get(prefix + "embedding_length")
    head_dim = None
    if type(heads) is int and type(width) is int and heads > 0:
        head_dim = width // heads
    defaults = {
        "vocab_size": len(keys.get("tokenizer.ggml.tokens") or ()),
        "attention.head_count_kv": heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": keys.get(prefix + "attention.key_length", head_dim),
    }
    return {prefix + key: value for key, value in defaults.items()}


def _ext_factors(keys: dict[str, Any], prefix: str) -> tuple[float, float]:
    """llama.cpp's own values for the type of scaling; below zero it chooses between them."""
    return (1.0 if keys.get(prefix + "rope.scaling.type") == "yarn" else 0.0, -1.0)


def _is_one_of(value: Any, values: Collection[Any]) -> bool:
    """Of the same type too, as llama.cpp refuses any other; floats as float32 holds them."""
    for expected in values:
        if type(value) is not type(expected):
            continue
        if value == expected:
            return True
        if isinstance(expected, float) and value == float(np.float32(expected)):
            return True
    return False


def _difference(key: str, value: Any, values: Collection[Any]) -> str:
    expected = next((expected for expected in values if expected is not None), None)
    actual = "missing" if value is None else _short(value)
    return f"{key} is {actual}, not {_short(expected)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


IDS = ("bos", "eos", "eot", "eom", "unknown", "padding")
TOKENIZER_KEYS = {
    "tokenizer.chat_template",
    *(f"tokenizer.ggml.{name}_token_id" for name in IDS),
    *(
        f"tokenizer.ggml.{name}"
        for name in (
            "model",
            "pre",
            "tokens",
            "token_type",
            "scores",
            "merges",
            "add_bos_token",
            "add_eos_token",
            "add_space_prefix",
        )
    ),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "pre": "default",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": True,
    },
    "gpt2": {
        "bos_token_id": 11,
        "eos_token_id": 11,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_space_prefix": False,
    },
}
"""What llama.cpp takes for a key that is absent, by the model of the tokenizer."""


def _tokenizer_differences(keys: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of the tokenizer that are not the expected ones, in words."""
    if not expected:
        return
    kind = expected["tokenizer.ggml.model"]
    defaults = {f"tokenizer.ggml.{name}": value for name, value in DEFAULTS[kind].items()}
    if kind == "gpt2" and expected["tokenizer.ggml.pre"] == "llama-bpe":
        defaults["tokenizer.ggml.add_bos_token"] = True
    ignored = {"tokenizer.ggml.scores"}  # compared below, where they count
    if kind == "llama":
        ignored.add("tokenizer.ggml.merges")
    for key in sorted(TOKENIZER_KEYS - ignored):
        actual_value = keys.get(key, defaults.get(key))
        expected_value = expected.get(key, defaults.get(key))
        if actual_value == expected_value and type(actual_value) is type(expected_value):
            continue
        if isinstance(actual_value, list) and isinstance(expected_value, list):
            yield _first_difference(key, actual_value, expected_value)
        else:
            yield _difference(key, actual_value, (expected_value,))
    if kind == "llama":
        yield from _score_differences(keys.get("tokenizer.ggml.scores"), expected)


def _first_difference(key: str, actual: list[Any], expected: list[Any]) -> str:
    if len(actual) != len(expected):
        return f"{key} has {len(actual)} entries, not {len(expected)}"
    i = next(i for i, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b)
    return f"{key} is first different at {i}: {_short(actual[i])}, not {_short(expected[i])}"


def _score_differences(actual: Any, expected: dict[str, Any]) -> Iterator[str]:
    """Scores decide which pieces are joined, so that only those of normal tokens count."""
    key = "tokenizer.ggml.scores"
    scores = expected[key]
    if not isinstance(actual, list) or len(actual) != len(scores):
        yield f"{key} is missing or has another length, not {len(scores)} entries"
        return
    for i, kind in enumerate(expected["tokenizer.ggml.token_type"]):
        if kind == NORMAL and actual[i] != float(np.float32(scores[i])):
            yield f"{key} is first different at {i}: {actual[i]}, not {scores[i]}"
            return


def _is_about(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in ABOUT)

"""Readers that are known to get an export wrong, recognized by the export's own keys.

What a config.json says of positions is in `rope_readers`; the rest of the files is here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.files import read_json
from ctxext.interop.gguf_byte_level import normalizes
from ctxext.interop.gguf_metadata import OF_NAMES
from ctxext.interop.gguf_vocabulary import differently_found
from ctxext.interop.meta import PARAMS, ROPE
from ctxext.prove.artifact import Artifact
from ctxext.prove.reference.gguf import GGUFReference, frequencies
from ctxext.prove.rope_readers import (
    TESTED,
    TESTED_IN_LLAMA_CPP,
    KnownIncompatibility,
    rope_incompatibilities,
)
from ctxext.tokenization.expressions import QWEN2
from ctxext.tokenization.sentencepiece_pieces import CONTROL
from ctxext.tokenization.tokenizer import MODEL, Tokenizer

META_CODE = "https://github.com/meta-llama/llama/blob/main/llama/model.py"
CONVERTER_OF_META = "transformers 4.44, models/llama/convert_llama_weights_to_hf.py"


def known_incompatibilities(artifact: Artifact, tokenizer: Tokenizer) -> list[KnownIncompatibility]:
    """The known incompatibilities of an export in any format, or of an adapter and its base.

    `tokenizer`: of the model that was exported.
    """
    if artifact.format == "gguf":
        reader = GGUFReference(artifact.path)
        return [
            *_gguf(reader),
            *_gguf_in_transformers(reader),
            *_spelled_in_gguf(reader),
            *_first_space("llama.cpp", tokenizer),
            *_special_tokens_in_gguf(tokenizer),
            *_normal_form_in_gguf(tokenizer),
        ]
    if artifact.format == "meta":
        return [*_meta(artifact.path), *_first_space("Meta's code", tokenizer)]
    config = read_json(artifact.base / "config.json")
    known = [*_config(config), *_dtype(artifact, config), *_tokenizer(artifact.base)]
    if has_rules_replaced(artifact.base):
        known.append(
            KnownIncompatibility(
                "transformers 5",
                "cuts the text of every qwen2 by Qwen's rules, not by those of its tokenizer.json, "
                "which gives other ids; PreTrainedTokenizerFast.from_pretrained reads the file",
                TESTED,
            )
        )
    if artifact.format == "peft" and _is_scaled(config):
        known.append(
            KnownIncompatibility(
                "peft",
                "an adapter carries no frequencies: on a base without this scaling it loads all "
                "the same, and runs with the wrong ones",
                TESTED,
            )
        )
    return known


def _config(config: dict[str, Any]) -> Iterator[KnownIncompatibility]:
    if (config.get("attn_config") or {}).get("alibi_bias_max", 8) != 8:
        yield KnownIncompatibility(
            "transformers",
            "takes alibi_bias_max to be 8; the code of MPT's authors reads it, as ctxext does",
            TESTED,
        )
    yield from rope_incompatibilities(config)


def _dtype(artifact: Artifact, config: dict[str, Any]) -> Iterator[KnownIncompatibility]:
    """Yield the dtype of config.json, if weights that are stored in another one are rounded to it.

    transformers 4 does not obey it unless it is asked to.
    """
    stated = config.get("dtype") or config.get("torch_dtype")
    if artifact.format != "hf" or stated not in ("float16", "bfloat16"):
        return
    stored = set(artifact.dtypes().values())
    if stated not in stored:
        yield KnownIncompatibility(
            "transformers 5",
            f"rounds the weights, which are stored in {', '.join(sorted(stored))}, to {stated}, as "
            "the dtype in config.json says",
            TESTED,
        )


def has_rules_replaced(directory: Path) -> bool:
    """Whether AutoTokenizer of transformers 5 cuts texts otherwise than tokenizer.json says.

    It gives a qwen2 the normalizer, pre-tokenizer and decoder of Qwen, whatever tokenizer_class is.
    """
    path = directory / "tokenizer.json"
    if read_json(directory / "config.json").get("model_type") != "qwen2" or not path.is_file():
        return False
    rules = read_json(path)
    if rules.get("normalizer") != {"type": "NFC"}:
        return True
    if (rules.get("decoder") or {}).get("type") != "ByteLevel":
        return True
    parts = (rules.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if [part.get("type") for part in parts] != ["Split", "ByteLevel"]:
        return True
    split, to_bytes = parts
    splits_alike = (split.get("pattern"), split.get("behavior")) == ({"Regex": QWEN2}, "Isolated")
    keeps_text = (to_bytes.get("add_prefix_space"), to_bytes.get("use_regex")) == (False, False)
    return not (splits_alike and keeps_text)


def _is_scaled(config: dict[str, Any]) -> bool:
    spec = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = spec.get("rope_theta") or config.get("rope_theta") or 10000.0
    rope_type = spec.get("rope_type") or spec.get("type") or "default"
    return theta != 10000.0 or rope_type != "default"


def _tokenizer(directory: Path) -> Iterator[KnownIncompatibility]:
    path = directory / "tokenizer_config.json"
    tokenizer_json = directory / "tokenizer.json"
    saved = read_json(tokenizer_json) if tokenizer_json.is_file() else {}
    for key, effect in (("truncation", "cut a long text short"), ("padding", "pad a short text")):
        if saved.get(key) is not None:
            yield KnownIncompatibility(
                "programs that use the tokenizers library",
                f"{effect}, as the {key} in tokenizer.json says; ctxext import clears it",
                TESTED,
            )
    if (saved.get("model") or {}).get("dropout"):
        yield KnownIncompatibility(
            "programs that use the tokenizers library",
            "draw the ids of a text at random, as the dropout in tokenizer.json says; ctxext "
            "import clears it",
            TESTED,
        )
    if not (directory / "tokenizer.json").is_file():
        yield KnownIncompatibility(
            "transformers 5",
            "does not begin texts with BOS where there is only a tokenizer.model; ctxext import "
            "writes a tokenizer.json",
            TESTED,
        )
    elif path.is_file():
        if str(read_json(path).get("tokenizer_class")).startswith("LlamaTokenizer"):
            yield KnownIncompatibility(
                "transformers 5",
                "recomputes tokenizer.json for this tokenizer_class, and ids can differ; ctxext "
                "import writes one that it leaves alone",
                TESTED,
            )


def _first_space(reader: str, tokenizer: Tokenizer) -> Iterator[KnownIncompatibility]:
    if tokenizer.encode_as_model(" a") != tokenizer.encode_as_readers(" a"):
        yield KnownIncompatibility(
            reader,
            "begins a text with one space more than transformers does where the text begins with a "
            "space (legacy: false)",
            TESTED,
        )


def _spelled_in_gguf(reader: GGUFReference) -> Iterator[KnownIncompatibility]:
    """Special tokens that merges of SentencePiece's tokens lead to, as the reader has them too."""
    keys = reader.keys
    if keys.get("tokenizer.ggml.model") != "llama":
        return
    kinds = zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True)
    special = {text: i for i, (text, kind) in enumerate(kinds) if kind == CONTROL}
    around = reader.token_ids(["ab"])[0]
    found = [
        text
        for text, i in special.items()
        if reader.token_ids([f"a{text}b"])[0].count(i) > around.count(i)
    ]
    if found:
        yield KnownIncompatibility(
            "llama.cpp",
            f"makes the special token {', '.join(found[:3])} of a text that spells it, also where "
            "it is told not to read special tokens: it merges into them, as SentencePiece does not",
            TESTED_IN_LLAMA_CPP,
        )


def _normal_form_in_gguf(tokenizer: Tokenizer) -> Iterator[KnownIncompatibility]:
    if MODEL not in tokenizer.files and normalizes(tokenizer.json_data):
        yield KnownIncompatibility(
            "llama.cpp",
            "does not bring a text into Unicode's normal form C, as this tokenizer does: a text "
            "with accents as characters of their own gets other ids",
            TESTED_IN_LLAMA_CPP,
        )


def _special_tokens_in_gguf(tokenizer: Tokenizer) -> Iterator[KnownIncompatibility]:
    special = differently_found(tokenizer, special=True)
    if special:
        yield KnownIncompatibility(
            "llama.cpp",
            f"gives a chat other ids next to {', '.join(special[:3])}: it cuts the text at every "
            "special token as it is spelled and begins what follows like a text",
            TESTED_IN_LLAMA_CPP,
        )


def _meta(directory: Path) -> Iterator[KnownIncompatibility]:
    theta = read_json(directory / PARAMS).get("rope_theta")
    rope = directory / ROPE
    if rope.is_file() and read_json(rope).get("rope_scaling") is not None:
        yield KnownIncompatibility(
            "Meta's code",
            "does not read rope.json: it runs the frequencies of pre-training without a warning, "
            "unless it is patched as README.md describes",
            META_CODE,
        )
        yield KnownIncompatibility(
            "transformers' converter",
            "does not read rope.json: what it writes has no scaling; convert with ctxext import",
            CONVERTER_OF_META,
        )
    if theta is not None and theta != 10000.0:
        yield KnownIncompatibility(
            "Llama 2's code",
            "does not know rope_theta in params.json and stops; Code Llama's does",
            META_CODE,
        )


def _gguf(reader: GGUFReference) -> Iterator[KnownIncompatibility]:
    keys = reader.keys
    scaling = f"{reader.architecture}.rope.scaling"
    beta_fast = keys.get(f"{scaling}.yarn_beta_fast", 32.0)
    beta_slow = keys.get(f"{scaling}.yarn_beta_slow", 1.0)
    if (beta_fast, beta_slow) != (32.0, 1.0):
        yield KnownIncompatibility(
            "llama.cpp",
            "runs yarn with the betas 32 and 1 of its programs, whatever is in the file",
            TESTED_IN_LLAMA_CPP,
        )
    if keys.get(f"{scaling}.type") == "yarn" or keys.get(f"{scaling}.attn_factor", 1.0) != 1.0:
        yield KnownIncompatibility(
            "llama.cpp",
            "puts the attention factor on keys once more whenever it shifts a full context; keep "
            "the text within the window",
            "llama.cpp, src/llama-kv-cache.cpp",
        )
    name = keys.get("general.name")
    if isinstance(name, str) and OF_NAMES.search(name):
        yield KnownIncompatibility(
            "llama.cpp",
            f"takes another tokenizer for a model whose general.name is {name!r:.60}: it drops "
            "spaces next to special tokens; give the file another name",
            "llama.cpp, src/llama-vocab.cpp",
        )
    if reader.hidden_act == "gelu":
        yield KnownIncompatibility(
            "llama.cpp",
            "computes gelu by its approximation with tanh, from a table in float16, where the "
            "model has the exact function: its logits differ by about a thousandth",
            TESTED_IN_LLAMA_CPP,
        )


def _gguf_in_transformers(reader: GGUFReference) -> Iterator[KnownIncompatibility]:
    """Of rotary embeddings it reads the base alone."""
    if reader.has_rotary:
        base = f"{reader.architecture}.rope.freq_base"
        given = {base: reader.keys[base]} if base in reader.keys else {}
        as_read, _ = frequencies(given, None, reader.head_dim, reader.architecture)
        inv_freq, attention_factor = reader.rope(reader.window)
        if attention_factor != 1.0 or not np.allclose(inv_freq, as_read, rtol=1e-4, atol=0.0):
            yield KnownIncompatibility(
                "transformers",
                "does not read the scaling of a GGUF file: it runs the frequencies of pre-training "
                "without a warning; give it a directory written with --to hf",
                TESTED,
            )
    if reader.architecture == "llama" and reader.keys.get("general.name") == "mistral":
        yield KnownIncompatibility(
            "transformers",
            "stops at a file whose general.name is mistral; give it another name",
            TESTED,
        )

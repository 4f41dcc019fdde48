"""The vocabulary of a GGUF file: pieces, scores and kinds of a SentencePiece model, read from its own bytes."""

import json
import struct
from collections.abc import Iterator
from typing import Any

from ctxext.model.config import LlamaConfig
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer, to_tokenizer_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = (
    1,
    2,
    3,
    4,
    5,
)  # the same numbers in SentencePiece and in GGUF
UNSCORED = -10000.0  # never made by merging


def vocabulary(tokenizer: Tokenizer, config: LlamaConfig) -> dict[str, Any]:
    """tokenizer.*: one piece for every row of the embedding.

    Raises ValueError without a SentencePiece model, and for one that `to_tokenizer_json` refuses.
    """
    tokenizer.check_fits(config.vocab_size)
    if MODEL not in tokenizer.files:
        raise ValueError(
            f"GGUF is written with a SentencePiece {MODEL}, which this model has not; use --to hf"
        )
    model = tokenizer.files[MODEL]
    to_tokenizer_json(model)  # refuses models without Llama's settings
    rows = dict(enumerate(pieces(model)))
    for token in json.loads(tokenizer.files.get(JSON, b"{}")).get("added_tokens", []):
        if token["id"] >= tokenizer.vocab_size:  # put behind the model's own, for chat or padding
            rows[token["id"]] = (
                token["content"],
                UNSCORED,
                CONTROL if token["special"] else USER_DEFINED,
            )
    unused = ((f"[PAD{i}]", UNSCORED, UNUSED) for i in range(config.vocab_size))
    texts, scores, kinds = zip(*(rows.get(i, spare) for i, spare in enumerate(unused)), strict=True)
    ids = {
        "bos": config.bos_token_id,
        "eos": config.eos_token_id,
        "padding": config.pad_token_id,
        "unknown": kinds.index(UNKNOWN),
    }
    template = json.loads(tokenizer.files.get(CONFIG, b"{}")).get("chat_template")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(texts),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.token_type": list(kinds),
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": config.bos_token_id is not None,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        **({"tokenizer.chat_template": template} if isinstance(template, str) else {}),
    }


def pieces(model: bytes) -> Iterator[tuple[str, float, int]]:
    """(text, score, kind) of every piece, in the order of ids: field 1 of a SentencePiece ModelProto."""
    for number, piece in _fields(model):
        if number == 1:
            fields = dict(_fields(piece))
            yield (
                fields[1].decode(),
                struct.unpack("<f", fields.get(2, bytes(4)))[0],
                fields.get(3, NORMAL),
            )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protobuf message: an int, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, size = tag & 7, 0
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        size = {1: 8, 2: size, 5: 4}[kind]
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at

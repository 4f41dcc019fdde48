"""The vocabulary of a GGUF file: text, score and kind of every token of a SentencePiece model.

The library does not hand out the kinds, so they are read from the model's own bytes, a protobuf
message. sentencepiece ships a parser for it, but importing that in a process that has imported
transformers' copy of it fails, in either order.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxext.model.config import LlamaConfig
from ctxext.tokenization.added_tokens import added_tokens
from ctxext.tokenization.tokenizer import MODEL, Tokenizer, to_tokenizer_json

# Kinds of tokens; the numbers are the same in SentencePiece and in GGUF.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5

UNMERGED_SCORE = -10000.0
"""The score of tokens that no merge produces."""


class Token(NamedTuple):
    """One token of a vocabulary."""

    text: str
    score: float
    kind: int


def vocabulary(tokenizer: Tokenizer, config: LlamaConfig) -> dict[str, Any]:
    """The keys tokenizer.*, with a token for every row of the embedding.

    Raises ValueError without a SentencePiece model, and for one that `to_tokenizer_json` refuses.
    """
    tokenizer.check_fits(config.vocab_size)
    if MODEL not in tokenizer.files:
        raise ValueError(
            f"GGUF is written with a SentencePiece {MODEL}, which this model does not have; use "
            "--to hf"
        )
    model = tokenizer.files[MODEL]
    to_tokenizer_json(model)  # refuses models without Llama's settings
    tokens = [Token(f"[PAD{i}]", UNMERGED_SCORE, UNUSED) for i in range(config.vocab_size)]
    for token_id, token in enumerate(read_tokens(model)):
        tokens[token_id] = token
    for added in added_tokens(tokenizer.files):
        if tokens[added["id"]].kind == UNUSED:
            kind = CONTROL if added["special"] else USER_DEFINED
            tokens[added["id"]] = Token(added["content"], UNMERGED_SCORE, kind)
    kinds = [token.kind for token in tokens]
    ids = {
        "bos": config.bos_token_id,
        "eos": config.eos_token_id,
        "padding": config.pad_token_id,
        "unknown": kinds.index(UNKNOWN),
    }
    template = tokenizer.chat_template
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [token.text for token in tokens],
        "tokenizer.ggml.scores": [token.score for token in tokens],
        "tokenizer.ggml.token_type": kinds,
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.adds_eos,
        "tokenizer.ggml.add_space_prefix": True,
        **({} if template is None else {"tokenizer.chat_template": template}),
    }


def read_tokens(model: bytes) -> Iterator[Token]:
    """Yield the tokens of a SentencePiece model in the order of their ids.

    They are field 1 of its ModelProto, messages with the fields text (1), score (2) and kind (3).
    Raises ValueError if the model is cut off or corrupt.
    """
    try:
        for number, value in _fields(model):
            if number == 1:
                fields = dict(_fields(value))
                (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
                yield Token(fields[1].decode(), score, fields.get(3, NORMAL))
    except (IndexError, KeyError, AttributeError, TypeError, UnicodeError, struct.error) as error:
        raise ValueError(f"{MODEL} is cut off or corrupt ({error}); copy it again") from None


# The wire format of protobuf: a tag (field number and wire type), then the value.
VARINT = 0
FIXED_64 = 1
LENGTH_DELIMITED = 2
FIXED_32 = 5


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) for the fields of a protobuf message: an int, or bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        size = {FIXED_64: 8, FIXED_32: 4}.get(wire_type)
        if size is None and wire_type == LENGTH_DELIMITED:
            size, position = _varint(message, position)
        if size is None or position + size > len(message):
            raise IndexError(f"field {tag >> 3} does not fit")
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits per byte, the lowest first, and the position after it."""
    value = 0
    shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position

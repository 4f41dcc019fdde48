"""The vocabulary of a GGUF file: text and kind of every token, and how texts become tokens.

SentencePiece does not hand out the kinds of a model's tokens, so they are read from the model's own
bytes, a protobuf message. It ships a parser for it, but importing that in a process that has
imported transformers' copy of it fails, in either order.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ctxext.interop.gguf_byte_level import byte_level_vocabulary
from ctxext.model.config import LlamaConfig
from ctxext.tokenization.added_tokens import added_tokens
from ctxext.tokenization.tokenizer import MODEL, Tokenizer, to_tokenizer_json

# Kinds of tokens; the numbers are the same in SentencePiece and in GGUF.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
BYTE = 6

UNMERGED_SCORE = -10000.0
"""The score of tokens that no merge produces."""
KNOWN_ENDS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"}
"""Tokens at which every version of llama.cpp stops by their names."""


class Token(NamedTuple):
    """One token of a vocabulary."""

    text: str
    score: float
    kind: int


def vocabulary(
    tokenizer: Tokenizer, config: LlamaConfig, stop_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """The keys tokenizer.*, with a token for every row of the embedding.

    `stop_ids`: every token that ends an answer. Raises ValueError for a tokenizer that llama.cpp
    would run differently, and for more ends than the format has keys for.
    """
    tokenizer.check_fits(config.vocab_size)
    tokens = [Token(f"[PAD{i}]", UNMERGED_SCORE, UNUSED) for i in range(config.vocab_size)]
    if MODEL in tokenizer.files:
        keys = _fill_from_sentencepiece(tokens, tokenizer.files[MODEL])
    else:
        keys = byte_level_vocabulary(tokenizer.json_data)
        for text, token_id in tokenizer.json_data["model"]["vocab"].items():
            tokens[token_id] = Token(text, 0.0, NORMAL)
    for added in added_tokens(tokenizer.files):
        known = tokens[added["id"]]
        if known.kind in (NORMAL, UNUSED):
            kind = CONTROL if added["special"] else USER_DEFINED
            tokens[added["id"]] = Token(added["content"], known.score, kind)
    kinds = [token.kind for token in tokens]
    by_text = {token.text: i for i, token in enumerate(tokens)}
    named = {key: by_text.get(text) for key, text in tokenizer.special_tokens.items()}
    ids = {
        "bos": config.bos_token_id if tokenizer.bos_id is None else tokenizer.bos_id,
        "padding": named.get("pad_token") if config.pad_token_id is None else config.pad_token_id,
        "unknown": kinds.index(UNKNOWN) if UNKNOWN in kinds else named.get("unk_token"),
        **_ends(tokenizer, stop_ids, tokens),
    }
    template = tokenizer.chat_template
    return {
        **keys,
        "tokenizer.ggml.tokens": [token.text for token in tokens],
        "tokenizer.ggml.token_type": kinds,
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.adds_eos,
        **({} if template is None else {"tokenizer.chat_template": template}),
    }


def _fill_from_sentencepiece(tokens: list[Token], model: bytes) -> dict[str, Any]:
    """Put a model's tokens in their places; returns the keys that go with them."""
    to_tokenizer_json(model)  # refuses models without Llama's settings
    for token_id, token in enumerate(read_tokens(model)):
        tokens[token_id] = token
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [token.score for token in tokens],
        "tokenizer.ggml.add_space_prefix": True,
    }


def _ends(
    tokenizer: Tokenizer, stop_ids: Sequence[int], tokens: list[Token]
) -> dict[str, int | None]:
    """The keys of the tokens that end an answer: of a text, of a turn, of a message.

    llama.cpp stops at all of them, and at some names without any key. Raises ValueError if that is
    not enough.
    """
    first = tokenizer.eos_id if tokenizer.eos_id in stop_ids else next(iter(stop_ids), None)
    others = [i for i in stop_ids if i != first and tokens[i].text not in KNOWN_ENDS]
    if len(others) > 2:
        names = ", ".join(tokens[i].text for i in others)
        raise ValueError(
            f"GGUF has keys for three ends of an answer, and this model also stops at {names}; "
            "export with --to hf, or leave some out of eos_token_id in generation_config.json"
        )
    keys = ("eos", "eot", "eom")
    return dict(zip(keys, (first, *others), strict=False))


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

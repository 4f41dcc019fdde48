"""The pieces of a SentencePiece model, read from its bytes and written to them.

The library does not hand out the kinds of pieces, and writes no model from them. It ships a parser
of its protobuf messages, but importing that in a process that has imported transformers' copy of it
fails, in either order.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ctxext.tokenization.tokenizer_files import MODEL

# Kinds of pieces; GGUF has the same numbers.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
BYTE = 6

BPE = 2
"""`model_type` of a TrainerSpec."""
ABSENT = -1
"""The id of a special piece that a model does not have."""


class Piece(NamedTuple):
    """One piece of a model, or one token of another vocabulary with such kinds."""

    text: str
    score: float
    kind: int


def read_pieces(model: bytes) -> Iterator[Piece]:
    """Yield the pieces of a SentencePiece model in the order of their ids.

    They are field 1 of its ModelProto, messages with the fields text (1), score (2) and kind (3).
    Raises ValueError if the model is cut off or corrupt.
    """
    try:
        for number, value in fields(model):
            if number == 1:
                parts = dict(fields(value))
                (score,) = struct.unpack("<f", parts.get(2, bytes(4)))
                yield Piece(parts[1].decode(), score, parts.get(3, NORMAL))
    except (RuntimeError, KeyError, AttributeError, TypeError, UnicodeError, struct.error) as error:
        raise ValueError(f"{MODEL} is cut off or corrupt ({error}); copy it again") from None


def write_model(pieces: Iterable[Piece], *, unk: int, bos: int | None, eos: int | None) -> bytes:
    """The bytes of a model with Llama's settings: BPE, bytes for unknown characters, a space first.

    `unk`, `bos`, `eos`: ids of pieces.
    """
    pieces = list(pieces)
    trainer = [_number(3, BPE), _number(4, len(pieces)), _number(35, 1), _number(40, unk)]
    trainer += [_number(41, ABSENT if bos is None else bos)]
    trainer += [_number(42, ABSENT if eos is None else eos), _number(43, ABSENT)]
    for field, token_id in ((45, unk), (46, bos), (47, eos)):
        if token_id is not None:
            trainer.append(_text(field, pieces[token_id].text))
    normalizer = [_text(1, "identity"), _number(3, 1), _number(4, 0), _number(5, 1)]
    parts = [_message(1, _piece(piece)) for piece in pieces]
    parts += [_message(2, b"".join(trainer)), _message(3, b"".join(normalizer))]
    return b"".join(parts)


# The wire format of protobuf: a tag (field number and wire type), then the value.
VARINT = 0
FIXED_64 = 1
LENGTH_DELIMITED = 2
FIXED_32 = 5


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) for the fields of a protobuf message: an int, or bytes.

    Raises RuntimeError, as the library does, for what is not a message.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        wire_type = tag & 7
        if wire_type == VARINT:
            value, at = _read_varint(message, at)
            yield tag >> 3, value
            continue
        size = {FIXED_64: 8, FIXED_32: 4}.get(wire_type)
        if wire_type == LENGTH_DELIMITED:
            size, at = _read_varint(message, at)
        if size is None or at + size > len(message):
            raise RuntimeError(f"field {tag >> 3} does not fit")
        yield tag >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits per byte, the lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise RuntimeError("an integer does not end")


def _piece(piece: Piece) -> bytes:
    score = _varint(2 << 3 | 5) + struct.pack("<f", piece.score)
    return _text(1, piece.text) + score + _number(3, piece.kind)


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value % 2**64)


def _varint(value: int) -> bytes:
    """An integer in groups of seven bits, the lowest first, each but the last with a high bit."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)

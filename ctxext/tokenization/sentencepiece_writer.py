"""A SentencePiece BPE model from its pieces, for formats that store the pieces by themselves.

The library trains models and reads them; it ships a parser of the messages, but importing that in a
process that has imported transformers' copy of it fails, in either order.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

BPE = 2
"""`model_type` of a TrainerSpec."""
ABSENT = -1
"""The id of a special piece that a model does not have."""


class Piece(NamedTuple):
    """One piece of a model; `kind` as in the library's format, 1 for a normal one."""

    text: str
    score: float
    kind: int


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

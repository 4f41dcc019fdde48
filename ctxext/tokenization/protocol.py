"""The part of a tokenizer that tasks and data use, so that a simpler one can stand in."""

from collections.abc import Iterable
from typing import Protocol


class TokenizerLike(Protocol):
    """Text to token ids and back, with its special tokens and a hash of its files.

    `adds_bos`: whether a text begins with BOS.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def num_ids(self) -> int:
        """One more than the highest id, which a special token may have."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def adds_bos(self) -> bool: ...

    @property
    def sha256(self) -> str: ...

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]: ...

    def special_literals(self, text: str) -> list[str]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

"""Documents held out of training: a share of them, by the hash of their text."""

import hashlib
import math
from typing import NamedTuple

HELD_OUT = 0.01
"""The share of documents that is held out of training by default."""


def hash_fraction(text: str) -> float:
    """The first 64 bits of the SHA-256 of a text as a fraction, 0 to 1; white space is not counted.

    The same document is the same fraction in every file and format, and in any order.
    """
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is one of the `share` of documents that training does not see."""
    return hash_fraction(text) < share


def split_of(text: str, share: float) -> str:
    """The part that a document belongs to: "heldout" or "train"."""
    return "heldout" if is_held_out(text, share) else "train"


def advice(smallest: float, total: int) -> str:
    """How to hold a document out of `total`, of which `smallest` is the smallest fraction."""
    share = math.ceil(1000 * smallest) / 1000
    if total < 2 or share > 0.5:
        return "it takes more documents, each of which is held out as a whole or not at all"
    enough = f"{max(share, 0.001):g}"
    return f"--train.held-out {enough} (in eval, --held-out {enough}) holds one out"


class HeldOut(NamedTuple):
    """How many documents of a text are held out of training; `advice`: what to do if none is."""

    name: str
    documents: int
    total: int
    advice: str

    @property
    def note(self) -> str:
        """A sentence about it."""
        total = f"{self.total:,} document{'s' * (self.total != 1)}"
        if self.documents:
            return f"{self.name}: {self.documents:,} of {total} held out of training"
        return f"{self.name}: none of {total} is held out of training: {self.advice}"

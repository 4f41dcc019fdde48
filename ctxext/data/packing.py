"""Whole documents packed into rows, for data of which only a part of the tokens is trained.

A window that begins anywhere would train answers without their questions. So each row has whole
documents that do not see each other, and padding at its end; every document is in one row, and
every row is drawn equally often.
"""

import bisect
from typing import NamedTuple

import numpy as np


def pack(sizes: np.ndarray, room: int) -> list[list[int]]:
    """Numbers of documents row by row: the largest first, each where the least room is left.

    sizes: int[documents], from 1 to `room`. Best fit decreasing: at most 11/9 as many rows as
    needed, and one more.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    """The sizes of the spaces that are left, each once, in order."""
    with_left: dict[int, list[int]] = {}
    """The rows that have a space of each of these sizes."""
    for document in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[document])
        place = bisect.bisect_left(left, size)
        if place == len(left):
            row = len(rows)
            rows.append([])
            space = room
        else:
            space = left[place]
            row = with_left[space].pop()
            if not with_left[space]:
                del with_left[space], left[place]
        rows[row].append(document)
        if space > size:
            if space - size not in with_left:
                bisect.insort(left, space - size)
            with_left.setdefault(space - size, []).append(row)
    return rows


class Packing(NamedTuple):
    """The rows of `seq_len` tokens that the documents of a corpus make.

    rows: the documents of each. num_cut: documents that are longer than a row, of which its end is
    cut off. num_without: documents that are left out, because no trained token is in what is left.
    num_tokens: those of all rows together, without padding. num_trained: those that are targets of
    the loss.
    """

    rows: list[list[int]]
    seq_len: int
    num_cut: int
    num_without: int
    num_tokens: int
    num_trained: int

    @classmethod
    def of(cls, offsets: np.ndarray, is_trained: np.ndarray, seq_len: int) -> "Packing":
        """offsets: int[documents + 1]; is_trained: bool[tokens], whether a token is a target."""
        # The last token of a document is a target only.
        sizes = np.minimum(np.diff(offsets) - 1, seq_len)
        num_targets = np.array(
            [
                np.count_nonzero(is_trained[start + 1 : start + 1 + size])
                for start, size in zip(offsets[:-1].tolist(), sizes.tolist(), strict=True)
            ],
            np.int64,
        )
        used = np.flatnonzero(num_targets)
        rows = [[int(used[i]) for i in row] for row in pack(sizes[used], seq_len)]
        num_cut = int((np.diff(offsets)[used] - 1 > seq_len).sum())
        num_without = len(sizes) - len(used)
        num_trained = int(num_targets.sum())
        return cls(rows, seq_len, num_cut, num_without, int(sizes[used].sum()), num_trained)

    @property
    def trained_note(self) -> str:
        """A sentence about what is trained of it."""
        share = self.num_trained / self.num_tokens if self.num_tokens else 0
        return (
            f"only answers are trained: the loss counts {self.num_trained:,} of "
            f"{self.num_tokens:,} tokens ({share:.0%})"
        )

    @property
    def note(self) -> str:
        """A sentence about how it is packed."""
        num_documents = sum(map(len, self.rows))
        share = 1 - self.num_tokens / (len(self.rows) * self.seq_len) if self.rows else 0
        note = (
            f"{num_documents:,} record{'s' * (num_documents != 1)} packed into {len(self.rows):,} "
            f"row{'s' * (len(self.rows) != 1)} of {self.seq_len:,} tokens, {share:.0%} padding"
        )
        if self.num_cut:
            note += f"; {self.num_cut:,} are longer than a row and lose their ends"
        if self.num_without:
            note += f"; {self.num_without:,} are left out, as their answers begin after so many"
        return note

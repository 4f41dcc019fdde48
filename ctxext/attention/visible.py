"""How many pairs of tokens a method leaves visible, counted without looking at each of them."""

import numpy as np

from ctxext.attention.length import pieces_of_any_length
from ctxext.attention.pieces import Attention, Mask, within

LEAF = 256
"""Queries of a block whose pairs are counted one by one."""


def visible_pairs(
    attention: Attention, seq_len: int, window: int | None = None, *, first: int = 0
) -> int:
    """(query, key) pairs of a row that see each other; for causal attention T (T + 1) / 2.

    The average over the query heads, where pieces apply to some of them only. window: how far a
    layer sees, in tokens; None: everything. first: only the queries from this token on count.
    """
    pairs = 0
    for piece in pieces_of_any_length(attention):
        mask = within(piece.mask, window)
        pairs += piece.heads.share * _visible(mask, range(first, seq_len), range(seq_len))
    return round(pairs)


def _visible(mask: Mask, query: range, key: range) -> int:
    """Visible pairs of a block, by quarters until they are uniform or small."""
    if not query or not key:
        return 0
    any_visible, all_visible = mask.block(query, key)
    if all_visible:
        return len(query) * len(key)
    if not any_visible:
        return 0
    if len(query) <= LEAF:
        return int(np.sum(mask.visible(np.array(query)[:, None], np.array(key)[None, :])))
    middle_query = query[len(query) // 2]
    middle_key = key[len(key) // 2]
    quarters = [
        (q, k)
        for q in (range(query.start, middle_query), range(middle_query, query.stop))
        for k in (range(key.start, middle_key), range(middle_key, key.stop))
    ]
    return sum(_visible(mask, *quarter) for quarter in quarters)

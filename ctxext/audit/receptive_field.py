"""What reaches the last token of a text through several layers of attention."""

import dataclasses

import numpy as np

from ctxext.attention.layers import LayerKind
from ctxext.attention.pieces import Mask
from ctxext.audit.subject import Subject

BLOCK = 128
"""Tokens of a block whose pairs are looked at one by one where a mask does not settle them."""
MOST_BLOCKS = 512
"""Blocks of a text; longer texts have larger blocks."""


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The tokens that the last one depends on, layer by layer."""

    by_layer: list[int]
    """How many tokens: after the last layer alone, after the last two, and so on."""
    reached: np.ndarray
    """bool [T], after all layers."""


def receptive_field(subject: Subject) -> ReceptiveField:
    """Follow the last token of the text down through all layers.

    Boolean products of the visibility of one layer after the other, of all heads. A token is always
    reached from itself, as residual connections carry it.
    """
    T = subject.seq_len
    reached = np.zeros(T, bool)
    reached[-1] = True
    done: dict[LayerKind, np.ndarray] = {kind: np.zeros(T, bool) for kind in subject.kinds}
    masks = {
        kind: [mask for view in subject.views(kind) for mask in view.masks]
        for kind in subject.kinds
    }
    by_layer: list[int] = []
    for kind in reversed(subject.layers):
        before = reached.copy()
        queries = reached & ~done[kind]
        if queries.any() and not reached.all():
            for mask in masks[kind]:
                _add_visible(mask, queries, reached)
        # What these queries see in such layers stays reached.
        done[kind] |= before
        by_layer.append(int(reached.sum()))
    return ReceptiveField(by_layer, reached)


def _add_visible(mask: Mask, queries: np.ndarray, reached: np.ndarray) -> None:
    """Mark every key that one of the queries sees."""
    T = len(reached)
    size = max(BLOCK, -(-T // MOST_BLOCKS))
    blocks = [range(first, min(first + size, T)) for first in range(0, T, size)]
    missing = [not reached[block.start : block.stop].all() for block in blocks]
    for of_queries in blocks:
        some = of_queries.start + np.flatnonzero(queries[of_queries.start : of_queries.stop])
        if not len(some):
            continue
        span = range(int(some[0]), int(some[-1]) + 1)
        for number, keys in enumerate(blocks):
            if not missing[number]:
                continue
            any_visible, all_visible = mask.block(span, keys)
            if not any_visible:
                continue
            part = reached[keys.start : keys.stop]
            if all_visible:
                part[:] = True
            else:
                part |= np.asarray(
                    mask.visible(some[:, None], np.arange(keys.start, keys.stop)[None, :])
                ).any(0)
            missing[number] = not part.all()

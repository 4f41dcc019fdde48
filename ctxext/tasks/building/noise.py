"""A haystack that says the same few sentences over and over: nothing in it is ever new."""

import numpy as np

from ctxext.tasks.base import Encoder, Example, encode_piece

SENTENCES = (
    " Rain fell on the hills all day.",
    " The train was late again.",
    " Nobody minded the wait.",
    " The tea stayed warm until the evening.",
)


def noise(tokenizer: Encoder) -> list[np.ndarray]:
    """One long document."""
    return [np.tile(np.asarray(encode_piece(tokenizer, "".join(SENTENCES)), np.int32), 1000)]


def without_pieces(example: Example) -> Example:
    """The same question; its haystack was noise, of which no document is to be recorded."""
    return example._replace(meta={**example.meta, "haystack": []})

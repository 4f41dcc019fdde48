"""The two lengths of a config.json: the window of pre-training, L, and the one it declares, L'.

Published files mean different things by `max_position_embeddings`, and some say the lengths under other names.
"""

import logging
from typing import Any

LONGEST = 2**31  # positions are counted in 31 bits
PRETRAINED = {1e4: (2048, 4096), 5e5: (8192,), 1e6: (16384,)}
"""rope_theta -> the windows with which Llama 1 and 2, Llama 3, and Code Llama were trained."""


def declared(config_json: dict[str, Any], factor: float | None = None) -> int:
    """`max_position_embeddings`, or `max_sequence_length` where the first files of Llama 1 have that instead.

    `factor` of a scaling: FastChat leaves max_position_embeddings as it was and writes the product down as
    max_sequence_length. Raises ValueError for lengths that are missing, no integers, or contradict each other.
    """
    length = integer(config_json, "max_position_embeddings")
    longer = integer(config_json, "max_sequence_length")
    if length is None:
        if longer is None:
            raise ValueError(
                "max_position_embeddings must be an integer, got None; add the window in tokens"
            )
        return longer
    if longer is not None and longer > length and longer != (factor or 1.0) * length:
        raise ValueError(
            f"max_sequence_length {longer} is longer than max_position_embeddings {length}, and no "
            "scaling says how; if positions are condensed, add rope_scaling with rope_type 'linear' and "
            f"factor {longer / length:g}, else set both to the window"
        )
    return length


def integer(place: dict[str, Any], key: str) -> int | None:
    """A length in tokens, if it is there. Raises ValueError for anything but a positive integer."""
    value = place.get(key)
    if value is not None and (type(value) is not int or not 1 <= value < LONGEST):
        raise ValueError(
            f"{key} must be an integer from 1 to {LONGEST - 1}, got {repr(value)[:80]}"
        )
    return value


def linear_window(config_json: dict[str, Any], theta: float, factor: float) -> int:
    """L under linear scaling without original_max_position_embeddings, whose frequencies do not depend on it.

    max_position_embeddings is the extended window in Together's files and the original one in those of FastChat and
    LongLoRA; which of them decides what was pre-trained with this theta. Raises ValueError where both could be.
    """
    length = declared(config_json, factor)
    longer = integer(config_json, "max_sequence_length")
    if longer is not None and longer == factor * length != length:
        return length  # said outright
    known = PRETRAINED.get(theta, ())
    if length in known and length / factor in known:
        raise ValueError(
            f"linear scaling by {factor:g} with max_position_embeddings {length} may start from "
            f"{length / factor:g} tokens or from {length}; add original_max_position_embeddings, "
            "the window before extension"
        )
    if length not in known and not (length / factor).is_integer():
        raise ValueError(
            f"max_position_embeddings {length} is no multiple of the linear factor {factor}; "
            "add original_max_position_embeddings, the window before extension"
        )
    window = length if length in known else int(length / factor)
    logging.getLogger("ctxext").warning(
        "linear scaling without original_max_position_embeddings: max_position_embeddings %d is read as the %s window, "
        "so the %s one is %d; add the key if that is wrong",
        length,
        *(
            ("original", "extended", round(factor * length))
            if window == length
            else ("extended", "original", window)
        ),
    )
    return window

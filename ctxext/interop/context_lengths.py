"""The two lengths of a config.json in tokens: the original window L and the extended window L'.

Published files mean different things by `max_position_embeddings`, and some have the lengths under
other names.
"""

import logging
from typing import Any

LONGEST = 2**31
"""One more than the largest position, as positions are counted in 31 bits."""
PRETRAINED_WINDOWS = {1e4: (2048, 4096), 5e5: (8192,), 1e6: (16384,)}
"""rope_theta -> the windows with which Llama 1 and 2, Llama 3, and Code Llama were trained."""


def token_count(config_json: dict[str, Any], key: str) -> int | None:
    """The length in tokens under `key`, or None.

    Raises ValueError for anything but a positive integer.
    """
    value = config_json.get(key)
    if value is not None and (type(value) is not int or not 1 <= value < LONGEST):
        raise ValueError(
            f"{key} must be an integer from 1 to {LONGEST - 1}, got {repr(value)[:80]}"
        )
    return value


def declared_length(config_json: dict[str, Any], factor: float | None = None) -> int:
    """`max_position_embeddings`, or `max_sequence_length` in the first files of Llama 1.

    `factor`: of the scaling, if there is one. FastChat leaves max_position_embeddings at L and
    writes factor x L to max_sequence_length. Raises ValueError for lengths that are missing, not
    integers, or contradict each other.
    """
    length = token_count(config_json, "max_position_embeddings")
    sequence_length = token_count(config_json, "max_sequence_length")
    if length is None:
        if sequence_length is None:
            raise ValueError(
                "max_position_embeddings must be an integer, got None; add the window in tokens"
            )
        return sequence_length
    condensed = (factor or 1.0) * length
    if sequence_length is not None and sequence_length > length and sequence_length != condensed:
        raise ValueError(
            f"max_sequence_length {sequence_length} is longer than max_position_embeddings "
            f"{length}, and no scaling explains it; if positions are condensed, add rope_scaling "
            f"with rope_type 'linear' and factor {sequence_length / length:g}, else set both to "
            "the window"
        )
    return length


def linear_window(config_json: dict[str, Any], theta: float, factor: float) -> int:
    """L under linear scaling in a file that has no original_max_position_embeddings.

    The frequencies do not depend on L, so that nothing else in the file decides it.

    max_position_embeddings is L' in Together's files and L in those of FastChat and LongLoRA. The
    windows that models with this theta were pre-trained with decide between the two. Raises
    ValueError where both are possible.
    """
    length = declared_length(config_json, factor)
    if factor == 1:
        return length
    sequence_length = token_count(config_json, "max_sequence_length")
    if sequence_length is not None and sequence_length == factor * length != length:
        return length  # FastChat's files, which have both lengths
    pretrained = PRETRAINED_WINDOWS.get(theta, ())
    if length in pretrained and length / factor in pretrained:
        raise ValueError(
            f"linear scaling by {factor:g} with max_position_embeddings {length} may start from "
            f"{length / factor:g} tokens or from {length}; add original_max_position_embeddings, "
            "the window before extension"
        )
    if length in pretrained:
        _warn_of_guess(length, "original", "extended", round(factor * length))
        return length
    if not (length / factor).is_integer():
        raise ValueError(
            f"max_position_embeddings {length} is not a multiple of the linear factor {factor}; "
            "add original_max_position_embeddings, the window before extension"
        )
    window = int(length / factor)
    _warn_of_guess(length, "extended", "original", window)
    return window


def _warn_of_guess(length: int, read_as: str, other: str, other_length: int) -> None:
    logging.getLogger("ctxext").warning(
        "linear scaling without original_max_position_embeddings: max_position_embeddings %d is "
        "read as the %s window, so the %s one is %d; add the key if that is wrong",
        length,
        read_as,
        other,
        other_length,
    )

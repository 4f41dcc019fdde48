"""The package `gguf`, which is optional."""

import functools
import logging
from typing import Any

import numpy as np


def import_library(purpose: str) -> Any:
    """The package. Raises ValueError, with the `purpose` that needs it, if it is missing."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise ValueError(f"{purpose} needs a package: pip install 'ctxext[gguf]'") from None
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf


@functools.cache
def block_layout(type_number: int) -> tuple[str, int, int]:
    """(name, numbers per block, bytes per block) of a type of tensors.

    Raises ValueError for a type that the package does not know, or cannot make numbers of.
    """
    library = import_library("reading quantized GGUF files")
    try:
        kind = library.GGMLQuantizationType(type_number)
    except ValueError:
        raise ValueError(
            f"type {type_number} is not known to the installed package gguf; a newer one may: "
            "pip install --upgrade gguf"
        ) from None
    numbers, size = library.GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, size), np.uint8), type_number)
    except NotImplementedError:
        raise ValueError(
            f"type {kind.name} cannot be made numbers of by the package gguf; use a file with "
            "another quantization"
        ) from None
    return kind.name, numbers, size


def dequantize(rows: np.ndarray, type_number: int) -> np.ndarray:
    """The numbers, float32 [rows, columns], of rows of bytes, uint8 [rows, bytes per row]."""
    library = import_library("reading quantized GGUF files")
    kind = library.GGMLQuantizationType(type_number)
    # Bytes that mean NaN or infinity are found when the numbers are used.
    with np.errstate(all="ignore"):
        return library.quants.dequantize(rows, kind)

"""PEFT adapters, and the file that LongLoRA adds to them, as their authors document them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.prove.reference.weight_files import OpenArchive, stored_tensors

CANDIDATES = ("adapter_model.safetensors", "adapter_model.bin")
"""In the order in which PEFT looks for them."""
PREFIX = "base_model.model."


class Adapter:
    """A PEFT directory: W + s B A, with DoRA m (W + s B A) / |W + s B A|.

    s = alpha / r (arXiv 2106.09685), or alpha / sqrt(r) with use_rslora (arXiv 2312.03732). The
    norm of DoRA (arXiv 2402.09353) is over the inputs.
    """

    def __init__(self, directory: str | Path, open_archive: OpenArchive) -> None:
        directory = Path(directory)
        self._settings: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
        stored = stored_tensors(directory, open_archive, CANDIDATES)
        tensors = {_plain(name): read() for name, read in stored.items()}
        trained_whole = directory / "trainable_params.bin"
        if trained_whole.is_file():  # LongLoRA's
            for name, entry in open_archive(trained_whole).items():
                tensors[name.removeprefix(PREFIX)] = entry.read()
        self._tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def changed(self, name: str, weight: np.ndarray) -> np.ndarray:
        """A tensor of the base with what the adapter adds to it or puts in its place."""
        module = name.removesuffix(".weight")
        weight = self._tensors.get(f"{module}.base_layer.weight", weight)
        weight = self._tensors.get(name, weight)
        inputs = 1
        a = self._tensors.get(f"{module}.lora_A")
        b = self._tensors.get(f"{module}.lora_B")
        if a is None or b is None:
            a = self._tensors.get(f"{module}.lora_embedding_A")
            b = self._tensors.get(f"{module}.lora_embedding_B")
            inputs = 0
        if a is None or b is None:
            return weight
        product = b @ a if inputs == 1 else (b @ a).T
        weight = weight + self._scale(module) * product
        magnitude = self._tensors.get(f"{module}.lora_magnitude_vector")
        if magnitude is None:
            return weight
        norm = np.linalg.norm(weight, axis=inputs, keepdims=True)
        return weight / norm * np.expand_dims(magnitude, inputs)

    def _scale(self, module: str) -> float:
        rank = _by_pattern(self._settings.get("rank_pattern"), module, self._settings["r"])
        alpha = _by_pattern(
            self._settings.get("alpha_pattern"), module, self._settings["lora_alpha"]
        )
        return alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)


def _plain(name: str) -> str:
    """A name without PEFT's prefix, the name of the adapter and a last ".weight"."""
    name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name.removeprefix(PREFIX))
    return re.sub(r"\.(lora_\w+)(\.(?!weight$)[^.]+)?(\.weight)?$", r".\1", name)


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default

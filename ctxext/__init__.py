"""ctxext: stretch the context window of Llama-family models, and know whether it worked.

The Python API, imported lazily: `load`, `LM`, `Experiment`, `run`, `RopeBase`, `methods`, `evals`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxext import evals as evals
    from ctxext import methods as methods
    from ctxext.experiment import Experiment as Experiment
    from ctxext.loading import load as load
    from ctxext.model.lm import LM as LM
    from ctxext.pipeline import run as run
    from ctxext.rope import RopeBase as RopeBase

__version__ = "0.1.0"
__all__ = ["LM", "Experiment", "RopeBase", "evals", "load", "methods", "run"]

_MODULES = {
    "LM": "ctxext.model.lm",
    "load": "ctxext.loading",
    "Experiment": "ctxext.experiment",
    "run": "ctxext.pipeline",
    "RopeBase": "ctxext.rope",
}


def __getattr__(name: str) -> Any:
    if name in ("methods", "evals"):
        return importlib.import_module(f"ctxext.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'ctxext' has no attribute {name!r}")

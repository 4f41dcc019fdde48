"""The settings that the programs of a model are compiled for."""

from dataclasses import dataclass

from ctxext.attention import Attention, Kernel
from ctxext.model.config import LlamaConfig
from ctxext.parallel.mesh import Mesh


@dataclass(frozen=True)
class ModelSetup:
    """All that a compiled program of a model depends on, besides the shapes of its arrays."""

    config: LlamaConfig
    attention: Attention
    kernel: Kernel
    dtype: str
    mesh: Mesh

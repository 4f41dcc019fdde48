"""The tensors of a GGUF file by Llama's names, and back."""

from collections.abc import Mapping

from ctxext.interop.families import family_of
from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.interop.families.llama import LLAMA
from ctxext.interop.family_tensors import fuse, fused_rows, split
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.model.config import LlamaConfig

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
"""Llama's name of a module outside the layers -> the name in a GGUF file."""
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"


def architecture_of(config: LlamaConfig) -> GGUFArchitecture:
    """What runs this family in llama.cpp. Raises ValueError for a family that nothing does."""
    architecture = family_of(config).gguf
    if architecture is None:
        raise ValueError(f"GGUF files of model_type {config.family} are not supported; use --to hf")
    return architecture


def tensor_name(name: str, config: LlamaConfig) -> str:
    """GGUF's name of the tensor that Llama's files call `name`.

    Of a fused matrix, that of the whole.
    """
    module, _, leaf = name.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{leaf}"
    layer, _, within_layer = module.removeprefix(f"{LLAMA.layers}.").partition(".")
    names = architecture_of(config).layer_names(config)
    return f"blk.{layer}.{names[within_layer]}.{leaf}"


def to_gguf(tensors: Mapping[str, LazyTensor], config: LlamaConfig) -> dict[str, LazyTensor]:
    """Tensors by Llama's names -> tensors by GGUF's, in the same order."""
    rows = fused_rows(config, grouped=False)
    return fuse(tensors, lambda name: tensor_name(name, config), rows)


def from_gguf(
    stored: Mapping[str, LazyTensor], names: list[str], config: LlamaConfig
) -> dict[str, LazyTensor]:
    """The tensors that Llama's files call `names`, of the tensors of a GGUF file."""
    rows = fused_rows(config, grouped=False)
    return split(stored, names, lambda name: tensor_name(name, config), rows)

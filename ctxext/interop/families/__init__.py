"""Model families: one file for each, and one entry in `FAMILIES`."""

from ctxext.interop.families.base import Family
from ctxext.interop.families.falcon import FALCON
from ctxext.interop.families.llama import LLAMA
from ctxext.interop.families.mistral import MINISTRAL, MISTRAL
from ctxext.interop.families.mpt import MPT
from ctxext.interop.families.qwen import QWEN2, QWEN3
from ctxext.interop.families.smollm3 import SMOLLM3
from ctxext.model.config import LlamaConfig

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN3, SMOLLM3, FALCON, MPT)
}
"""`model_type` in config.json -> its family."""


def family_of(config: LlamaConfig) -> Family:
    """The family whose configuration this is. Raises ValueError for one that is not known."""
    if config.family not in FAMILIES:
        raise ValueError(f"family {config.family!r} is not known; known: {', '.join(FAMILIES)}")
    return FAMILIES[config.family]

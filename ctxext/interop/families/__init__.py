"""Model families, one file for each; they are discovered, not listed."""

from ctxext.discovery import instances_in_package
from ctxext.interop.families.base import Family
from ctxext.interop.families.llama import LLAMA
from ctxext.model.config import LlamaConfig

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, *instances_in_package(__name__, Family))
}
"""`model_type` in config.json -> its family. Llama's is the first: a GGUF file of architecture
`llama` is read as its first family."""


def family_of(config: LlamaConfig) -> Family:
    """The family whose configuration this is. Raises ValueError for one that is not known."""
    if config.family not in FAMILIES:
        raise ValueError(f"family {config.family!r} is not known; known: {', '.join(FAMILIES)}")
    return FAMILIES[config.family]

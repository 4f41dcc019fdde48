"""Model families: one file for each, and one row of `FAMILIES`."""

from ctxext.interop.families.base import Family
from ctxext.interop.families.llama import LLAMA
from ctxext.model.config import LlamaConfig

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA,)}
"""`model_type` in config.json -> its family."""


def family_of(config: LlamaConfig) -> Family:
    """The family whose configuration this is."""
    return next(family for family in FAMILIES.values() if type(config) is family.config_class)

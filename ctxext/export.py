"""A model one can ask, written for other readers."""

from pathlib import Path
from typing import Any

from ctxext.attention import Attention, Causal
from ctxext.config import LlamaConfig
from ctxext.interop import hf
from ctxext.lm import LM
from ctxext.rope import RopeScaling

FORMATS = ("hf",)


def export(
    lm: LM, out: str | Path, *, to: str = "hf", dtype: str = "bfloat16", seq_len: int | None = None,
    card: dict[str, Any] | None = None, max_shard_size: int = 5 * 10**9,
) -> Path:  # fmt: skip
    """Write `lm` to the directory `out`; `seq_len` is the extended window L' in tokens, factor x L if None.

    Raises ValueError, before anything is written, for a format, dtype or method that cannot be written down.
    """
    check(lm.config, lm.scaling, lm.attention, to=to, dtype=dtype, seq_len=seq_len)
    hf.save(out, lm.config, lm.params, lm.scaling, lm.tokenizer, dtype=dtype, seq_len=seq_len,
            max_shard_size=max_shard_size, card=card)  # fmt: skip
    return Path(out)


def check(
    config: LlamaConfig, scaling: RopeScaling, attention: Attention, *, to: str, dtype: str, seq_len: int | None = None
) -> None:
    """Raise ValueError, with the reason, for a format, dtype or method that cannot be written down."""
    if to not in FORMATS:
        raise ValueError(f"there is no format {to!r}; known: {', '.join(FORMATS)}")
    if attention != Causal():
        raise ValueError(f"{type(attention).__name__} is a way to run a model that the {to} format has no field for; "
                         "export with causal attention (in an experiment: export=None) and choose it again when "
                         "loading")  # fmt: skip
    hf.config_json(config, scaling, seq_len=seq_len or config.max_position_embeddings, dtype=dtype)

"""A model one can ask, written for other readers."""

from pathlib import Path
from typing import Any

from ctxext.attention import Causal
from ctxext.interop import hf
from ctxext.lm import LM

FORMATS = ("hf",)


def export(
    lm: LM, out: str | Path, *, to: str = "hf", dtype: str = "bfloat16", seq_len: int | None = None,
    card: dict[str, Any] | None = None, max_shard_size: int = 5 * 10**9,
) -> Path:  # fmt: skip
    """Write `lm` to the directory `out`; `seq_len` is the extended window L' in tokens, factor x L if None.

    Raises ValueError, before anything is written, for a format, dtype or method that cannot be written down.
    """
    if to not in FORMATS:
        raise ValueError(f"there is no format {to!r}; known: {', '.join(FORMATS)}")
    if lm.attention != Causal():
        raise ValueError(f"the {to} format has no field for {type(lm.attention).__name__} attention; export without "
                         "it and choose it again when loading")  # fmt: skip
    hf.save(out, lm.config, lm.params, lm.scaling, lm.tokenizer, dtype=dtype, seq_len=seq_len,
            max_shard_size=max_shard_size, card=card)  # fmt: skip
    return Path(out)

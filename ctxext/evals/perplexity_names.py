"""Perplexities by the names that the command line has for them."""

from collections.abc import Callable, Sequence
from typing import Any

from ctxext.data.sources import TextSource
from ctxext.evals.base import Eval, Model
from ctxext.evals.key_tokens import Found
from ctxext.evals.longppl import LongPPL
from ctxext.evals.perplexity_estimators import ESTIMATORS
from ctxext.evals.rolling_perplexity import RollingPerplexity


def perplexities(
    names: Sequence[str],
    seq_lens: tuple[int, ...],
    *,
    small: bool,
    source: TextSource,
    load: Callable[[str], Model],
) -> dict[str, Callable[[], tuple[Eval, ...]]]:
    """Name -> evaluations: "ppl:<estimator>", "longppl" (key tokens by the model itself), "longppl:DIR" (by another).

    Strides and truncated contexts are the published ones where the lengths leave room for them, and all estimators
    read the same documents. load: opens DIR.
    """
    shortest, longest = min(seq_lens), max(seq_lens)
    count = {"num_documents": 4 if small else 16}
    rolling: dict[str, Any] = {
        "stride": min(256, max(1, shortest // 2)),
        "min_tokens": longest,
        "max_tokens": 4 * longest,
        "source": source,
        **count,
    }
    trunc_len = min(4096, shortest, longest // 2)  # what is longer can have key tokens
    short: dict[str, Any] = {"trunc_len": trunc_len, "stride": max(1, trunc_len // 4)}
    far: dict[str, Any] = {
        "seq_lens": tuple(n for n in seq_lens if n > trunc_len),
        "source": source,
        **count,
    }
    others = [name for name in names if name.startswith("longppl:")]
    return {
        **{
            f"ppl:{x}": lambda x=x: (RollingPerplexity(seq_lens, estimator=x, **rolling),)
            for x in ESTIMATORS
        },
        "longppl": lambda: (LongPPL(**far, keys=Found(**short)),),
        **{
            x: lambda x=x: (LongPPL(**far, keys=Found(**short, evaluator=x[8:], load=load)),)
            for x in others
        },
    }

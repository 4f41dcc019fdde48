"""What an evaluation costs beside the model's forward passes."""

import dataclasses
import time
from typing import Any

from ctxext import tasks
from ctxext.evals import Retrieval
from ctxext.evals.timing import TimedModel
from ctxext.model.lm import LM


def overhead(lm: LM, items: int = 1000) -> dict[str, Any]:
    """Passkeys, and as many pairs that share their texts, at one window and two, after everything was compiled.

    items_per_second; outside: the share of the time outside the model's forward passes; padding: the share that goes
    on padding in them.
    """
    window = lm.config.max_position_embeddings
    out = {}
    for name, whole in (
        ("passkey", Retrieval(seq_lens=(window, 2 * window), n=items // 10)),
        (
            "kv, shared context",
            Retrieval(
                seq_lens=(window, 2 * window),
                n=items // 10,
                task=tasks.KeyValue(),
                shared_context=True,
            ),
        ),
    ):
        list(
            dataclasses.replace(whole, seed=1)(lm)
        )  # every program that is used is compiled, and no item is the same
        timed, started = TimedModel(lm), time.perf_counter()
        records = list(whole(timed))
        seconds = time.perf_counter() - started
        outside, padding = timed.shares(seconds)
        out[name] = {
            "items": len(records),
            "seconds": seconds,
            "items_per_second": len(records) / seconds,
            "outside": outside,
            "padding": padding,
        }
    return out

"""The cost of an evaluation apart from the model's forward passes."""

import dataclasses
import time
from typing import Any

from ctxext import tasks
from ctxext.evals import Retrieval
from ctxext.evals.timing import TimedModel
from ctxext.model.lm import LM


def evaluations(lm: LM, items: int = 1000) -> dict[str, Retrieval]:
    """Retrieval questions with and without shared texts, at one window and two, by name."""
    window = lm.config.max_position_embeddings
    passkey = Retrieval(seq_lens=(window, 2 * window), n=items // 10)
    return {
        "passkey": passkey,
        "kv, shared context": dataclasses.replace(
            passkey, task=tasks.KeyValue(), shared_context=True
        ),
    }


def overhead(name: str, evaluation: Retrieval, lm: LM) -> dict[str, Any]:
    """The cost of an evaluation, with everything compiled before.

    "items_per_second"; "outside", the share of the time outside the model's forward passes;
    "padding", the share that they spend on padding.
    """
    # Compiles every program, on other questions, so that nothing is cached.
    list(dataclasses.replace(evaluation, seed=1)(lm))
    timed = TimedModel(lm)
    started = time.perf_counter()
    records = list(evaluation(timed))
    seconds = time.perf_counter() - started
    outside, padding = timed.shares(seconds)
    return {
        "evaluation": name,
        "items": len(records),
        "seconds": seconds,
        "items_per_second": len(records) / seconds,
        "outside": outside,
        "padding": padding,
    }

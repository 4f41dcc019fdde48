"""llama.cpp as a reader of GGUF files, through llama-cpp-python. The only file that knows it."""

from typing import Any

import numpy as np

from ctxext.prove.artifact import Subject
from ctxext.prove.reader_output import Probe, Reading
from ctxext.tokenization.tokenizer import PROBES

ROUNDING = {"float32": 0.0, "float16": 0.01, "bfloat16": 0.06, "q8_0": 0.25}
"""What its rounding of activations to the weights' type may cost, in standard deviations of the logits; seen are 0.003,
0.03 and 0.12. A wrong scaling costs one or more."""
LARGEST = 2e9  # logits that it keeps: tokens x vocabulary


class TooLong(Exception):
    """The probes are more than llama.cpp can be asked."""


def read(subject: Subject, probes: list[Probe]) -> Reading:
    """Without a flag: the scaling is what the file says. Raises ModuleNotFoundError where it is missing, TooLong for
    probes that leave positions out, which it cannot be given, or of too many logits."""
    import llama_cpp

    longest = max(len(probe.tokens) for probe in probes)
    if any(probe.positions[-1] + 1 != len(probe.tokens) for probe in probes):
        raise TooLong("it reads every position, which takes too long for a model of this size")
    model: Any = llama_cpp.Llama(
        str(subject.directory),
        n_ctx=longest,
        logits_all=True,
        verbose=False,
        n_gpu_layers=0,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    try:
        if longest * model.n_vocab() > LARGEST:
            raise TooLong(
                "it would keep too many logits for a window and a vocabulary of this size"
            )
        logits = []
        for probe in probes:
            model.reset()
            model.eval(probe.tokens.tolist())
            logits.append(np.array(model.scores[: len(probe.tokens)], np.float32)[probe.rows])
        ids = [model.tokenize(text.encode(), add_bos=True, special=False) for text in PROBES]
    finally:
        model.close()
    return Reading(
        "llama.cpp",
        f"(llama-cpp-python {llama_cpp.__version__})",
        logits,
        token_ids=ids,
        coarse=max(ROUNDING[dtype] for dtype in subject.dtypes().values()),
    )

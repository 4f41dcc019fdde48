"""llama.cpp as a reader of GGUF files, through llama-cpp-python. The only file that imports it."""

from typing import Any

import numpy as np

from ctxext.prove.artifact import Artifact
from ctxext.prove.reader_output import ReaderInput, ReaderOutput
from ctxext.prove.reference.gguf import GGUFReference
from ctxext.prove.token_texts import texts_for

ROUNDING = {"float32": 0.0, "float16": 0.01, "bfloat16": 0.06}
QUANTIZED_ROUNDING = 0.4
GELU_ROUNDING = 0.02
"""Errors allowed for rounding activations to the dtype of the weights, or to eight bits where these
are quantized, and for its approximation of GELU, in standard deviations of the logits.

Measured: 0.003, 0.03, and 0.003 with GELU. With quantized weights, at the random tokens of a proof:
0.12 for random weights; for the bundled model, which is trained, up to 0.17 at 90 % of 1,024
positions and 0.63 at the worst. Mistakes in the keys of a file cost 0.57 or more at one of the
positions that are compared. SmolLM2-135M has 0.32 at 90 % of 256 random tokens and far more at
single ones, which no limit tells from a mistake; a model of that size is not run here.
"""
MAX_LOGITS = 2e9
"""The most logits, tokens x vocabulary, that it is made to keep."""


class InputTooLong(Exception):
    """The input is longer than llama.cpp can be given here."""


def read(artifact: Artifact, inputs: list[ReaderInput]) -> ReaderOutput:
    """The file as llama.cpp runs it without any flag, in float32 on the CPU.

    Raises ModuleNotFoundError where it is missing, and InputTooLong for inputs that skip positions,
    which it does not accept, or that need too many logits.
    """
    import llama_cpp

    longest = max(len(x.tokens) for x in inputs)
    if any(x.positions[-1] + 1 != len(x.tokens) for x in inputs):
        raise InputTooLong("it reads every position, which takes too long for a model of this size")
    model: Any = llama_cpp.Llama(
        str(artifact.path),
        n_ctx=longest,
        logits_all=True,
        verbose=False,
        n_gpu_layers=0,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    try:
        if longest * model.n_vocab() > MAX_LOGITS:
            raise InputTooLong(
                "it would keep too many logits for a window and a vocabulary of this size"
            )
        logits = []
        for x in inputs:
            model.reset()
            model.eval(x.tokens.tolist())
            scores = np.array(model.scores[: len(x.tokens)], np.float32)
            logits.append(scores[x.compared])
        ids = [
            model.tokenize(text.encode(), add_bos=True, special=False)
            for text in texts_for(artifact)
        ]
    finally:
        model.close()
    return ReaderOutput(
        "llama.cpp",
        f"(llama-cpp-python {llama_cpp.__version__})",
        logits,
        token_ids=ids,
        reads_model=True,
        coarse=_coarse(artifact),
    )


def _coarse(artifact: Artifact) -> float:
    """The share of the logits' standard deviation that its lower precision may cost."""
    dtypes = artifact.dtypes().values()
    weights = max(ROUNDING.get(dtype, QUANTIZED_ROUNDING) for dtype in dtypes)
    has_gelu = GGUFReference(artifact.path).hidden_act == "gelu"
    return max(weights, GELU_ROUNDING) if has_gelu else weights

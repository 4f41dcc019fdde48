"""The frequencies of Llama 3.1, Llama 3 8B, 8,192 -> 131,072 tokens (arXiv 2407.21783).

    ctxext run experiments/llama3_8b_128k.py --init HF_DIR --data.path TEXT_DIR

Frequencies as in the config.json of Llama 3.1: factor 8, low and high 1 and 4, original window
8,192. Meta took six stages and about 800 B tokens, each stage until short tasks had recovered and
needles were found. This is one stage of 400 steps of 64 rows, the budget of the YaRN recipes, to
see what the frequencies alone do.

Hardware: 64 devices, 8 of them along a row (mesh.fsdp 8, mesh.seq 8). Time (an estimate; we have
not run it): 6 x 8.03e9 parameters x 3.4e9 tokens = 1.6e20 FLOPs; at an assumed 40 % of 989 TFLOP/s
(bfloat16, the rate of an H100) 114 device hours, plus attention, which is the larger part at this
length.

Published: nothing at this budget, so nothing is expected.
"""

import dataclasses

from ctxext.evals import Perplexity, Retrieval
from ctxext.methods import Llama3
from ctxext.model.config import SHAPES
from ctxext.parallel.mesh import Mesh
from ctxext.rope import Unscaled
from llama2_7b_yarn_8k import experiment as yarn

LENGTHS = (8192, 32768, 131072)

experiment = dataclasses.replace(
    yarn,
    name="llama3-8b-128k",
    model=SHAPES["llama3-8b"],
    rope=Llama3(factor=8.0),
    mesh=Mesh(fsdp=8, seq=8),
    train=dataclasses.replace(yarn.train, seq_len=131072, kernel="auto"),
    evals=(Perplexity(seq_lens=LENGTHS), Retrieval(seq_lens=LENGTHS)),
    expect=(),
    zero_shot=(Unscaled(), Llama3(factor=8.0)),
)

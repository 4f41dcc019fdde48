"""Position Interpolation, LLaMA 1 7B, 2,048 -> 8,192 tokens: a row of the paper's own table (arXiv
2306.15595).

    ctxext run experiments/llama1_7b_pi_8k.py --init HF_DIR --data.path TEXT_DIR

Settings of the paper: factor 4, 1,000 steps. Learning rate, warm-up and the 64 rows per step are
those of `llama2_7b_yarn_8k.py`. The paper trains on the Pile. For its other windows add
--rope.factor 8 --train.seq-len 16384, or 16 and 32768; their published values are in the table
below.

Hardware: eight devices, 8 rows at a time. Time (an estimate; we have not run it): 6 x 6.74e9
parameters x 0.52e9 tokens = 2.1e19 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of
an H100) 15 device hours.

Published, proof-pile perplexity, 128 documents cut at 32,768 tokens, windows sliding by 256 tokens:

    window          2,048   4,096   8,192   16,384   32,768
    base             2.77
    PI to 8k         2.79    2.57    2.39
    PI to 16k        2.79    2.57    2.37     2.25
    PI to 32k        2.82    2.59    2.39     2.24     2.48

"ppl:pi" is that protocol; it reads the texts in ./proof-pile.
"""

import dataclasses

from ctxext.data import Files
from ctxext.evals import Expected, Retrieval, RollingPerplexity
from ctxext.methods import Linear
from ctxext.model.config import SHAPES
from ctxext.rope import Unscaled
from llama2_7b_pi_8k import experiment as pi

PUBLISHED = {2048: 2.79, 4096: 2.57, 8192: 2.39}

experiment = dataclasses.replace(
    pi,
    name="llama1-7b-pi-8k",
    model=SHAPES["llama1-7b"],
    rope=Linear(factor=4.0),
    evals=(
        RollingPerplexity(
            tuple(PUBLISHED),
            "pi",
            256,
            num_documents=128,
            min_tokens=32768,
            max_tokens=32768,
            source=Files("proof-pile"),
        ),
        Retrieval(seq_lens=tuple(PUBLISHED)),
    ),
    expect=tuple(
        Expected(
            "ppl:pi", length, value, 0.05, "PI 2k -> 8k, LLaMA 1 7B, proof-pile", "arXiv:2306.15595"
        )
        for length, value in PUBLISHED.items()
    ),
    zero_shot=(Unscaled(), Linear(factor=4.0)),
)

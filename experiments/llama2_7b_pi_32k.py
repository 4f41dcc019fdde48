"""Position Interpolation, Llama 2 7B, 4,096 -> 32,768 tokens, as in Together's Llama-2-7B-32K
(factor 8).

    ctxext run experiments/llama2_7b_pi_32k.py --init HF_DIR --data.path TEXT_DIR

Factor and window are those of the released checkpoint's config.json. Its training is only described
in words (a mixture of books, papers and instructions); steps, rows and learning rate are those of
`llama2_7b_pi_8k.py`.

Hardware: eight devices, 8 rows at a time. Time (an estimate; we have not run it): 6 x 6.74e9
parameters x 2.1e9 tokens = 8.5e19 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of
an H100) 60 device hours, plus attention, which the 6 N rule leaves out.

Published for the released model, proof-pile perplexity by the protocol of the YaRN paper: 3.50 at
8,192 tokens, 2.64 at 32,768.
"""

import dataclasses

from ctxext.evals import Expected, Retrieval
from ctxext.methods import Linear
from ctxext.rope import Unscaled
from llama2_7b_pi_8k import experiment as pi
from llama2_7b_yarn_8k import proof_pile

PUBLISHED = {8192: 3.50, 32768: 2.64}

experiment = dataclasses.replace(
    pi,
    name="llama2-7b-pi-32k",
    rope=Linear(factor=8.0),
    train=dataclasses.replace(pi.train, seq_len=32768),
    evals=(proof_pile(4096, *PUBLISHED), Retrieval(seq_lens=(4096, 8192, 16384, 32768))),
    expect=tuple(
        Expected(
            "ppl:truncate",
            length,
            value,
            0.05,
            "Together's Llama-2-7B-32K, proof-pile",
            "arXiv:2309.00071",
        )
        for length, value in PUBLISHED.items()
    ),
    zero_shot=(Unscaled(), Linear(factor=8.0)),
)

"""Position Interpolation, Llama 2 7B, 4,096 -> 8,192 tokens (arXiv 2306.15595): the YaRN recipe
with PI, 1,000 steps.

    ctxext run experiments/llama2_7b_pi_8k.py --init HF_DIR --data.path TEXT_DIR

The paper trains LLaMA 1 for 1,000 steps. Learning rate, warm-up and the 64 rows per step are those
of `llama2_7b_yarn_8k.py`, so the two recipes differ only in method and number of steps: 0.52 B
tokens.

Hardware: eight devices, 27 GB each. Time (an estimate; we have not run it): 6 x 6.74e9 parameters x
0.52e9 tokens = 2.1e19 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of an H100) 15
device hours.

Published, Llama 2 7B, PI s = 2 trained on 1 B tokens (the comparison model of arXiv 2309.00071),
proof-pile perplexity, ten documents of >= 128k tokens cut to the window:

    window      2,048   4,096   6,144   8,192   10,240
    PI s = 2     3.92    3.51    3.51    3.34     8.07

Published, LLaMA 1 7B to 8k (arXiv 2306.15595), PG19 perplexity at 8,192 after 0 / 200 / 400 / 600 /
800 / 1,000 steps: 16.10, 7.12, 7.10, 7.02, 6.99, 6.95. A run whose loss has not dropped sharply by
step 200 is broken.
"""

import dataclasses

from ctxext.evals import Expected
from ctxext.methods import Linear
from llama2_7b_yarn_8k import TABLE
from llama2_7b_yarn_8k import experiment as yarn

experiment = dataclasses.replace(
    yarn,
    name="llama2-7b-pi-8k",
    rope=Linear(factor=2.0),
    train=dataclasses.replace(yarn.train, steps=1000),
    expect=(
        Expected(
            "ppl:truncate",
            8192,
            3.34,
            0.05,
            "PI s = 2 on 1 B tokens, Llama 2 7B, proof-pile",
            TABLE,
        ),
    ),
)
